"""System checks of the settings, the middleware, the URLs and the templates. check_site() runs all checks.

A check yields messages and never raises. It uses neither the network nor the database.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

from django.apps import apps
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured
from django.db.models import ForeignKey, IntegerField
from django.urls import get_resolver
from django.utils.module_loading import import_string

from django_moe_personalize import client, rendering
from django_moe_personalize.checks.experience_keys import check_keys, iterate_urls
from django_moe_personalize.checks.pasted_text import check_pasted_text
from django_moe_personalize.checks.schemas import check_schemas
from django_moe_personalize.checks.template_leaks import find_leaks, find_leaks_of_components, get_engines
from django_moe_personalize.conf import (
    DELIVERY,
    SETTING,
    ConfigurationError,
    Settings,
    find_problems,
    get_settings,
    list_workspaces,
)
from django_moe_personalize.conf.readers import suggest
from django_moe_personalize.conf.settings import is_test_run, load_backend, load_object
from django_moe_personalize.delivery import exits
from django_moe_personalize.fetching import shared
from django_moe_personalize.runtime import get_runtime, use_workspace

TAG: Final = "moe_personalize"
MIDDLEWARE: Final = "django_moe_personalize.middleware.PersonalizeMiddleware"
NEEDED_MIDDLEWARE: Final = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
)
CREDENTIALS: Final = {
    "WORKSPACE_ID": ("E003", "The MoEngage dashboard shows it under Settings > Account > APIs."),
    "API_KEY": ("E004", "Use the Personalize key from Settings > Account > APIs in the MoEngage dashboard."),
    "DATA_CENTER": ("E005", "It is the number in the address of your dashboard, such as dashboard-03.moengage.com."),
}
RENDERING_MIDDLEWARE: Final = frozenset(
    {
        "django.contrib.flatpages.middleware.FlatpageFallbackMiddleware",
        "maintenance_mode.middleware.MaintenanceModeMiddleware",
        "maintenancemode.middleware.MaintenanceModeMiddleware",
        "mezzanine.pages.middleware.PageMiddleware",
        "axes.middleware.AxesMiddleware",
    }
)
"""Classes that render pages themselves, before or after the view."""

DUMMY_CACHE: Final = "django.core.cache.backends.dummy.DummyCache"
LOCAL_CACHE: Final = "django.core.cache.backends.locmem.LocMemCache"

TENANT_APPS: Final = ("django_tenants", "tenant_schemas", "django_pgschemas")
"""Apps that give each tenant its own table of users, so that several users have the same primary key."""

LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "testserver"})

WAGTAIL_CACHE: Final = "wagtailcache.cache.FetchFromCacheMiddleware"
WAGTAIL_CACHE_IGNORED: Final = (r"^utm_.*$",)
"""One of the default patterns of wagtail-cache. The other patterns match parameters of advertising networks."""

Message = tuple[str, str, str]
"""The number of a check, the mistake that the check found, and the hint that says how to fix the mistake."""


def check_site(workspace: str | None = None) -> list[CheckMessage]:
    """Run all system checks of this package, for one workspace or for all.

    If a setting has a wrong value, check only the values of the settings. A message that doesn't concern all workspaces
    begins with their names.
    """
    found = list(check_values())
    if any(number != "W002" for number, _, _ in found):
        return [_build_message(*message) for message in found]
    names = list_workspaces() if workspace is None else (workspace,)
    told: dict[Message, list[str]] = {message: [*names] for message in found}
    for check in CHECKS:
        for name in names if check not in COMMON_CHECKS else names[:1]:
            with use_workspace(name):
                for message in check(get_runtime().settings):
                    told.setdefault(message, [] if check not in COMMON_CHECKS else [*names]).append(name)
    return [
        _build_message(number, text if set(of) == {*names} else f"Workspace {', '.join(of)}: {text}", hint)
        for (number, text, hint), of in told.items()
    ]


def check_deployment() -> list[CheckMessage]:
    """Run the checks for ``check --deploy``: they need a site that is ready to serve pages."""
    is_readable = all(number == "W002" for number, _, _ in check_values())
    return [_build_message(*message) for message in check_static_files(get_settings())] if is_readable else []


def _build_message(number: str, message: str, hint: str) -> CheckMessage:
    return {"E": Error, "W": Warning}[number[0]](message, hint=hint, id=f"{TAG}.{number}")


def check_values() -> Iterator[Message]:
    """Yield E001 for an unknown setting, E002 or E005 for a wrong value, W002 for an unknown environment variable."""
    for problem in find_problems():
        number = "E005" if problem.name == "DATA_CENTER" else "E002"
        number = {"environment": "W002", "unknown": "E001"}.get(problem.kind, number)
        yield number, problem.message, problem.hint or "Correct the value, or remove it to use the default."


def check_credentials(settings: Settings) -> Iterator[Message]:
    """Yield E003, E004 or E005 for a missing credential."""
    if not settings.enabled:
        return
    pair = {"WORKSPACE_ID": settings.workspace_id, "API_KEY": settings.api_key}
    present = "".join(f"{name}, but " for name, value in pair.items() if value)
    for name in client.find_missing_credentials(settings):
        number, where = CREDENTIALS[name]
        message = f"{SETTING} has {present if name in pair else ''}no {name}."
        hint = f'Set {SETTING}["{name}"], or {SETTING}_{name} in the environment. {where}'
        yield number, message, f'{hint} To work without MoEngage, set {SETTING}["SANDBOX"] = True.'


def check_paths(settings: Settings) -> Iterator[Message]:
    """Yield E009 for a callable that can't be used, E010 for a DELIVERY that can't be used."""
    paths = [(name, getattr(settings, name.lower())) for name in ("LEARN_ROUTES", "IDENTIFY", "CONSENT", "WORKSPACE")]
    for name, path in [*paths, *(("ATTRIBUTES", path) for path in settings.attributes)]:
        if path and isinstance(path, str):
            yield from _try("E009", load_object, name, path)
    yield from _try("E010", load_backend, "DELIVERY", settings.delivery)


def _try(number: str, function: Callable[..., object], *args: object) -> Iterator[Message]:
    try:
        function(*args)
    except ConfigurationError as error:
        yield number, error.message, error.hint


def check_transport(settings: Settings) -> Iterator[Message]:
    """Yield E006 for an unsafe BASE_URL, E011 for a TRANSPORT that can't be built."""
    if settings.base_url:
        unsafe = list(_try("E006", client.read_base_url, settings))
        yield from unsafe or _try("E011", client.build_transport, settings)
    else:
        yield from _try("E011", load_backend, "TRANSPORT", settings.transport, "https://sdk-01.moengage.com/v1")


def check_middleware(settings: Settings) -> Iterator[Message]:
    """Yield W001 if MIDDLEWARE lacks the middleware, E007 if it's there twice, E008 or W019 for a wrong place."""
    places = _find_middleware(MIDDLEWARE)
    if not places and settings.enabled:
        message = "MIDDLEWARE doesn't list PersonalizeMiddleware, so requests have no request.personalization."
        yield "W001", message, f'Add "{MIDDLEWARE}" to MIDDLEWARE, directly below AuthenticationMiddleware.'
    if len(places) > 1:
        yield "E007", "MIDDLEWARE lists PersonalizeMiddleware twice.", "Keep only the last one."
    for needed in NEEDED_MIDDLEWARE:
        if places and any(place > places[0] for place in _find_middleware(needed)):
            message = f"PersonalizeMiddleware comes before {needed.rpartition('.')[2]} in MIDDLEWARE."
            yield "E008", message, f'Move "{MIDDLEWARE}" below it. Above it, the visitor isn\'t known yet.'
    for path in django_settings.MIDDLEWARE[: places[0] if places else 0]:
        if not RENDERING_MIDDLEWARE.isdisjoint(_list_bases(path)):
            message = f"{path.rpartition('.')[2]} comes before PersonalizeMiddleware in MIDDLEWARE, so its pages"
            hint = f'Move "{MIDDLEWARE}" above it, directly below AuthenticationMiddleware.'
            yield "W019", f"{message} always show the fallbacks.", hint


def _import(path: str) -> Any:
    """Return the object at ``path``, or ``None``. Django itself reports a wrong path when it needs the object."""
    with suppress(Exception):
        return import_string(path)
    return None


def _list_bases(path: str) -> list[str]:
    """Return the dotted paths of the class at ``path`` and of its base classes. For a function, return its path."""
    bases = getattr(_import(path), "__mro__", ())
    return [f"{base.__module__}.{base.__qualname__}" for base in bases] or [path]


def _find_middleware(wanted: str) -> list[int]:
    return [place for place, path in enumerate(django_settings.MIDDLEWARE) if wanted in _list_bases(path)]


def check_cache(settings: Settings) -> Iterator[Message]:
    """Yield E012 for an unknown alias, W004 or W005 for an unsuitable cache, W009 for pages that proxies may share."""
    aliases = django_settings.CACHES
    if settings.cache not in aliases:
        message = f'{SETTING}["CACHE"] is {settings.cache!r}, but CACHES has no such alias.'
        yield "E012", message, suggest(settings.cache, aliases, f"Use one of {', '.join(map(repr, aliases))}.")
    elif settings.enabled:
        yield from _check_cache_backend(settings, aliases[settings.cache].get("BACKEND", ""))
    if not any(word in settings.cache_control.lower() for word in ("private", "no-store")):
        message = f'{SETTING}["CACHE_CONTROL"] lets a shared cache show one visitor\'s page to other visitors.'
        yield "W009", message, 'Write "private, no-store", or at least "private".'


def _check_cache_backend(settings: Settings, path: str) -> Iterator[Message]:
    hint = "Use a cache that all processes share, such as Redis or Memcached."
    if DUMMY_CACHE in (bases := _list_bases(path)):
        yield "W005", f"The cache {settings.cache!r} stores nothing, so every page calls MoEngage.", hint
    elif django_settings.DEBUG or client.is_embedded(settings):
        return
    elif LOCAL_CACHE in bases:
        message = f"The cache {settings.cache!r} belongs to one process, so each process calls MoEngage separately."
        yield "W004", message, f"{hint} If the site runs in a single process, silence this warning."
    elif shared.culls(_import(path)) and not shared.is_own_alias(settings.cache):
        message = (
            f"The cache {settings.cache!r} deletes the site's entries beyond MAX_ENTRIES, so the package stores no "
            "visitor's answers in it, and each process calls MoEngage separately."
        )
        own = f'Or set {SETTING}["CACHE"] to an alias that nothing else uses'
        yield "W004", message, f"{hint} {own}, with its own LOCATION and a large MAX_ENTRIES."


def check_sandbox(settings: Settings) -> Iterator[Message]:
    """Yield W006 without DEBUG, E013 for a broken workspace file, W008 for a key that the workspace file lacks."""
    if not settings.enabled or not settings.sandbox:
        return
    if not django_settings.DEBUG and not is_test_run():
        message = "DEBUG is off, but visitors get experiences from the sandbox instead of MoEngage."
        yield "W006", message, f'Set the credentials, and {SETTING}["SANDBOX"] = False.'
    if settings.base_url and settings.workspace_id:
        return
    try:
        workspace = client.open_workspace_file(settings).workspace
    except ConfigurationError as error:
        yield "E013", error.message, error.hint
        return
    known = list(workspace.definitions)
    others = f"Use one of {', '.join(known)}." if known else "Add an experience to the workspace file."
    for key in dict.fromkeys(key for keys in settings.experiences.values() for key in keys):
        if client.is_embedded(settings) and key not in known:
            message = f'{SETTING}["EXPERIENCES"] has the key {key!r}, but the sandbox has no such experience.'
            yield "W008", message, suggest(key, known, others)


def check_urls(settings: Settings) -> Iterator[Message]:
    """Yield W003 if the site doesn't include the package's URLs, W007 for a route that doesn't exist."""
    try:
        resolver = get_resolver()
        names = rendering.find_endpoint_names(resolver, "click")
        has_urls = (TAG in resolver.app_dict and not names) or rendering.find_endpoint("click", "token") is not None
        routes = {name for name, _ in iterate_urls(resolver)}
    except Exception:
        # Django's own checks report a ROOT_URLCONF that doesn't load.
        return
    if settings.enabled and not has_urls and _find_middleware(MIDDLEWARE):
        lost = "clicks and impressions" if settings.impressions == "visible" else "clicks"
        message = f"The site doesn't include the package's URLs, so {lost} aren't counted."
        if names:
            message = f"The URL {names[0]!r} takes arguments that the package doesn't know, so {lost} aren't counted."
        yield "W003", message, 'Add path("moe/", include("django_moe_personalize.urls")) to the root urlpatterns.'
    for route in settings.experiences:
        if route != "*" and route not in routes:
            message = f'{SETTING}["EXPERIENCES"] has the route {route!r}, but no URL has this name.'
            yield "W007", message, suggest(route, routes, 'Use a view name, "namespace:*" or "*".')


def check_proxies(settings: Settings) -> Iterator[Message]:
    """Yield W010 if every address is a trusted proxy: a visitor could then claim any address."""
    for proxy in settings.trusted_proxies:
        if proxy != "unix" and not proxy.prefixlen:
            message = f'{SETTING}["TRUSTED_PROXIES"] trusts every address ({proxy}).'
            yield "W010", message, "List only the networks of your own proxies."


def check_identity(settings: Settings) -> Iterator[Message]:
    """Yield W014 if the primary keys of users are ids that MoEngage forbids, W015 if tenants have the same ids."""
    if not settings.enabled or settings.identify or not _find_middleware(MIDDLEWARE):
        return
    if not client.is_embedded(settings) and _has_integer_keys():
        message = (
            'IDENTIFY isn\'t set, so users 1 to 9 have ids of one character, such as "1". MoEngage forbids such ids.'
        )
        hint = f'Name a function in {SETTING}["IDENTIFY"] that returns other ids, such as "user-1".'
        yield "W014", message, f"{hint} If you have no such users, silence this warning: a new id is a new profile."
    tenants = next((name for name in TENANT_APPS if apps.is_installed(name)), "")
    if not tenants and apps.is_installed("django.contrib.sites") and _serves_several_hosts():
        tenants = "django.contrib.sites"
    # Each tenant may have a workspace of its own, where no other tenant has customers.
    if tenants and not settings.workspace:
        message = f"IDENTIFY isn't set, and {tenants} serves several tenants: user 1 of each is the same customer."
        hint = f'Name a function in {SETTING}["IDENTIFY"] that puts the tenant\'s name into the id.'
        yield "W015", message, f"{hint} If all tenants share their users and their content, silence this warning."


def _has_integer_keys() -> bool:
    try:
        key = get_user_model()._meta.pk
    except ImproperlyConfigured:
        # The site has no users.
        return False
    # The key of a child model is a link to its parent.
    while isinstance(key, ForeignKey):
        key = key.target_field
    return isinstance(key, IntegerField)


def _serves_several_hosts() -> bool:
    """Return whether the sites framework chooses the site by the host of the request."""
    if getattr(django_settings, "SITE_ID", None):
        return False
    hosts = {host.removeprefix("www.") for host in django_settings.ALLOWED_HOSTS} - LOCAL_HOSTS
    return len(hosts) > 1 or any(host.startswith(("*", ".")) for host in hosts)


def check_template_leaks(settings: Settings) -> Iterator[Message]:
    """Yield E014 for a tag that shows one visitor's content to all visitors, W012 for a tag that may show it."""
    gaps: dict[tuple[str, str], list[str]] = {}
    for leak in [leak for engine in get_engines() for leak in (*find_leaks(engine), *find_leaks_of_components(engine))]:
        hint = f"The {leak.cache} starts in {leak.cache_place}. Keep the visitor's content out of it."
        if leak.certain:
            message = f"{leak.cache} shows one visitor's content to all visitors: {leak.found} in {leak.place}."
            yield "E014", message, hint
        else:
            gaps.setdefault((leak.cache, hint), []).append(f"{leak.found} in {leak.place}")
    for (cache, hint), places in gaps.items():
        message = f"{cache} may show one visitor's content to all visitors. The check can't look into {places[0]}"
        more = f", and {len(places) - 1} more" if len(places) > 1 else ""
        yield "W012", f"{message}{more}.", f"{hint} If it contains no such content, silence this warning."


def check_wagtail_cache(settings: Settings) -> Iterator[Message]:
    """Yield W018 if wagtail-cache removes the cookie or the query parameters of this package from every request."""
    if not settings.enabled or WAGTAIL_CACHE not in django_settings.MIDDLEWARE:
        return
    if settings.anonymous_id and getattr(django_settings, "WAGTAIL_CACHE_IGNORE_COOKIES", True):
        message = "wagtail-cache removes the cookie moe_id from requests, so each page of a visitor gets a new id."
        yield "W018", message, "Set WAGTAIL_CACHE_IGNORE_COOKIES = False."
    patterns = getattr(django_settings, "WAGTAIL_CACHE_IGNORE_QS", WAGTAIL_CACHE_IGNORED) or ()
    if lost := [name for name in settings.query_parameters if any(re.match(pattern, name) for pattern in patterns)]:
        message = f"wagtail-cache removes query parameters from requests, so MoEngage doesn't get {', '.join(lost)}."
        yield "W018", message, "Set WAGTAIL_CACHE_IGNORE_QS to a list of patterns that match none of QUERY_PARAMETERS."


def check_workspaces(settings: Settings) -> Iterator[Message]:
    """Yield W020 if nothing chooses a workspace, W021 if two workspaces are one at MoEngage."""
    names = list_workspaces()
    if len(names) > 1 and not settings.workspace and _find_middleware(MIDDLEWARE):
        message = f"{SETTING} has {len(names)} WORKSPACES and no WORKSPACE, so all pages belong to the default one."
        hint = f'Name a function in {SETTING}["WORKSPACE"] that returns the name of the request\'s workspace.'
        yield "W020", message, f"{hint} If only your own code uses the others, silence this warning."
    owners: dict[str, str] = {}
    for name in names:
        found = get_runtime(name).settings
        owner = owners.setdefault(found.workspace_id or name, name)
        if owner != name and not client.is_embedded(found):
            message = f"The workspaces {owner!r} and {name!r} have the same WORKSPACE_ID, so MoEngage mixes them."
            yield "W021", message, f'Set WORKSPACE_ID and API_KEY in {SETTING}["WORKSPACES"]["{name}"].'


def check_threads(settings: Settings) -> Iterator[Message]:
    """Yield W011 if uWSGI runs without threads: then ThreadDelivery can't send in the background."""
    if settings.enabled and settings.delivery.backend == DELIVERY and exits.runs_without_threads():
        yield "W011", f"{exits.NO_THREADS}.", exits.THREADS_HINT


def check_static_files(settings: Settings) -> Iterator[Message]:
    """Yield W017 if Django has no URL for the script of ``{% personalize_scripts %}``."""
    url, problem = rendering.find_script()
    # A site without static files that counts on the server doesn't need the script.
    if settings.enabled and problem and (url or settings.impressions in ("visible", "web_sdk")):
        message = f"The static file {rendering.SCRIPT} has no URL ({problem}), so pages may not count clicks and views."
        yield "W017", message, rendering.SCRIPT_HINT


CHECKS: Final = (
    check_credentials,
    check_pasted_text,
    check_paths,
    check_transport,
    check_middleware,
    check_cache,
    check_sandbox,
    check_urls,
    check_keys,
    check_schemas,
    check_proxies,
    check_identity,
    check_template_leaks,
    check_wagtail_cache,
    check_threads,
    check_workspaces,
)
"""All checks, in the order of their reports."""

COMMON_CHECKS: Final = (check_middleware, check_schemas, check_proxies, check_template_leaks, check_workspaces)
"""Checks that find the same for all workspaces."""

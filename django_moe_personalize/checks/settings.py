"""System checks of the settings, the middleware, the URLs and the templates.

A check never raises, and it uses neither the network nor the database. Each message has a hint that says how to fix it.
If the settings can't be read, ``check_values`` alone reports something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from django.apps import AppConfig
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning
from django.template import engines
from django.template.backends.django import DjangoTemplates
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils.module_loading import import_string

from django_moe_personalize import client
from django_moe_personalize.checks.template_leaks import find_leaks
from django_moe_personalize.conf import (
    DELIVERY,
    SETTING,
    ConfigurationError,
    Problem,
    Settings,
    find_problems,
    get_settings,
)
from django_moe_personalize.conf.backends import load_backend, load_object
from django_moe_personalize.conf.readers import suggest
from django_moe_personalize.delivery import thread

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
DUMMY_CACHE: Final = "django.core.cache.backends.dummy.DummyCache"
LOCAL_CACHE: Final = "django.core.cache.backends.locmem.LocMemCache"

Check = Callable[..., list[CheckMessage]]


def check_values(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Return E001 for an unknown setting, E002 or E005 for a wrong value, W002 for an unknown variable."""
    return [_build_message(problem) for problem in find_problems()]


def _build_message(problem: Problem) -> CheckMessage:
    if problem.kind == "environment":
        return Warning(problem.message, hint=problem.hint, id=f"{TAG}.W002")
    if problem.kind == "unknown":
        return Error(problem.message, hint=problem.hint, id=f"{TAG}.E001")
    number = "E005" if problem.name == "DATA_CENTER" else "E002"
    hint = problem.hint or "Correct the value, or remove it to use the default."
    return Error(problem.message, hint=hint, id=f"{TAG}.{number}")


def _with_settings(build: Callable[[Settings], Iterable[CheckMessage]]) -> Check:
    """Make a check from a generator that takes the settings. Without valid settings the check returns nothing."""

    def check(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
        try:
            settings = get_settings()
        except ConfigurationError:
            return []
        return list(build(settings))

    # Not functools.wraps(): Django would read the signature of the wrapped function.
    check.__name__, check.__doc__ = build.__name__, build.__doc__
    return check


def _build_error(error: ConfigurationError, number: str) -> Error:
    return Error(error.message, hint=error.hint, id=f"{TAG}.{number}")


@_with_settings
def check_credentials(settings: Settings) -> Iterator[CheckMessage]:
    """Return E003, E004 or E005 for a missing credential."""
    if not settings.enabled:
        return
    pair = {"WORKSPACE_ID": settings.workspace_id, "API_KEY": settings.api_key}
    present = "".join(f"{name}, but " for name, value in pair.items() if value)
    for name in client.find_missing_credentials(settings):
        number, where = CREDENTIALS[name]
        message = f"{SETTING} has {present if name in pair else ''}no {name}."
        hint = f'Set {SETTING}["{name}"], or {SETTING}_{name} in the environment. {where}'
        yield Error(message, hint=hint, id=f"{TAG}.{number}")


@_with_settings
def check_paths(settings: Settings) -> Iterator[CheckMessage]:
    """Return E009 for a callable that can't be used, E010 for such a DELIVERY."""
    paths = [("IDENTIFY", settings.identify), ("CONSENT", settings.consent)]
    for name, path in [*paths, *(("ATTRIBUTES", path) for path in settings.attributes)]:
        if path:
            try:
                load_object(name, path)
            except ConfigurationError as error:
                yield _build_error(error, "E009")
    try:
        load_backend("DELIVERY", settings.delivery)
    except ConfigurationError as error:
        yield _build_error(error, "E010")


@_with_settings
def check_transport(settings: Settings) -> Iterator[CheckMessage]:
    """Return E006 for an unsafe BASE_URL, E011 for a TRANSPORT that can't be built."""
    try:
        if settings.base_url:
            client.read_base_url(settings)
    except ConfigurationError as error:
        yield _build_error(error, "E006")
        return
    try:
        if settings.base_url:
            client.build_transport(settings)
        else:
            load_backend("TRANSPORT", settings.transport, "https://sdk-01.moengage.com/v1")
    except ConfigurationError as error:
        yield _build_error(error, "E011")


@_with_settings
def check_middleware(settings: Settings) -> Iterator[CheckMessage]:
    """Return W001 if the middleware is missing, E007 if it is there twice, E008 if it comes too early."""
    places = _find_middleware(MIDDLEWARE)
    if not places and settings.enabled:
        message = "MIDDLEWARE doesn't list PersonalizeMiddleware, so requests have no request.personalization."
        hint = f'Add "{MIDDLEWARE}" to MIDDLEWARE, after sessions and authentication.'
        yield Warning(message, hint=hint, id=f"{TAG}.W001")
    if len(places) > 1:
        yield Error("MIDDLEWARE lists PersonalizeMiddleware twice.", hint="Keep only the last one.", id=f"{TAG}.E007")
    for needed in NEEDED_MIDDLEWARE:
        if places and any(place > places[0] for place in _find_middleware(needed)):
            message = f"PersonalizeMiddleware comes before {needed.rpartition('.')[2]} in MIDDLEWARE."
            hint = f'Move "{MIDDLEWARE}" below it. Above it, the visitor isn\'t known yet.'
            yield Error(message, hint=hint, id=f"{TAG}.E008")


def _find_middleware(wanted: str) -> list[int]:
    return [place for place, path in enumerate(django_settings.MIDDLEWARE) if _is_class_at(path, wanted)]


def _is_class_at(path: str, wanted: str) -> bool:
    """Return whether ``path`` names the class ``wanted`` or a subclass of it."""
    try:
        return issubclass(import_string(path), import_string(wanted))
    except Exception:
        # The path leads to a function, or nowhere. Django reports that when it needs the class.
        return False


@_with_settings
def check_cache(settings: Settings) -> Iterator[CheckMessage]:
    """Return E012 for an unknown alias, W004 or W005 for an unsuitable cache, W009 for a shared page."""
    aliases = django_settings.CACHES
    if settings.cache not in aliases:
        message = f'{SETTING}["CACHE"] is {settings.cache!r}, but CACHES has no such alias.'
        hint = suggest(settings.cache, aliases, f"Use one of {', '.join(map(repr, aliases))}.")
        yield Error(message, hint=hint, id=f"{TAG}.E012")
    elif settings.enabled:
        yield from _check_cache_backend(settings, aliases[settings.cache].get("BACKEND", ""))
    if not any(word in settings.cache_control.lower() for word in ("private", "no-store")):
        message = f'{SETTING}["CACHE_CONTROL"] lets a shared cache show one visitor\'s page to other visitors.'
        yield Warning(message, hint='Write "private, no-store", or at least "private".', id=f"{TAG}.W009")


def _check_cache_backend(settings: Settings, path: str) -> Iterator[CheckMessage]:
    hint = "Use a cache that all processes share, such as Redis or Memcached."
    if _is_class_at(path, DUMMY_CACHE):
        message = f"The cache {settings.cache!r} stores nothing, so every page calls MoEngage."
        yield Warning(message, hint=hint, id=f"{TAG}.W005")
    elif _is_class_at(path, LOCAL_CACHE) and not django_settings.DEBUG and not client.is_embedded(settings):
        message = f"The cache {settings.cache!r} belongs to one process, so each process calls MoEngage separately."
        hint = f"{hint} If the site runs in a single process, silence this warning."
        yield Warning(message, hint=hint, id=f"{TAG}.W004")


@_with_settings
def check_sandbox(settings: Settings) -> Iterator[CheckMessage]:
    """Return W006 outside DEBUG, E013 for a broken workspace file, W008 for a key that the file doesn't have."""
    if not settings.enabled or not settings.sandbox:
        return
    if not django_settings.DEBUG:
        message = "DEBUG is off, but visitors get experiences from the sandbox instead of MoEngage."
        hint = f'Set the credentials, and {SETTING}["SANDBOX"] = False.'
        yield Warning(message, hint=hint, id=f"{TAG}.W006")
    if settings.base_url and settings.workspace_id:
        return
    try:
        workspace = client.load_sandbox_workspace(settings)
    except ConfigurationError as error:
        yield _build_error(error, "E013")
        return
    if client.is_embedded(settings):
        yield from _check_sandbox_keys(settings, list(workspace.definitions))


def _check_sandbox_keys(settings: Settings, known: Sequence[str]) -> Iterator[CheckMessage]:
    for key in dict.fromkeys(key for keys in settings.experiences.values() for key in keys):
        if key not in known:
            message = f'{SETTING}["EXPERIENCES"] has the key {key!r}, but the sandbox has no such experience.'
            others = f"Use one of {', '.join(known)}." if known else "Add an experience to the workspace file."
            yield Warning(message, hint=suggest(key, known, others), id=f"{TAG}.W008")


@_with_settings
def check_urls(settings: Settings) -> Iterator[CheckMessage]:
    """Return W003 if the site doesn't include the package's URLs, W007 for a route that doesn't exist."""
    try:
        resolver = get_resolver()
        has_urls = TAG in resolver.app_dict or TAG in resolver.namespace_dict
        routes = set(_find_routes(resolver, ""))
    except Exception:
        # Django's own checks report a ROOT_URLCONF that doesn't load.
        return
    if settings.enabled and not has_urls and _find_middleware(MIDDLEWARE):
        lost = "clicks and impressions" if settings.impressions == "visible" else "clicks"
        message = f"The site doesn't include the package's URLs, so {lost} aren't counted."
        hint = 'Add path("moe/", include("django_moe_personalize.urls")) to the root urlpatterns.'
        yield Warning(message, hint=hint, id=f"{TAG}.W003")
    for route in settings.experiences:
        if route != "*" and route not in routes:
            message = f'{SETTING}["EXPERIENCES"] has the route {route!r}, but no URL has this name.'
            hint = suggest(route, routes, 'Use a view name, "namespace:*" or "*".')
            yield Warning(message, hint=hint, id=f"{TAG}.W007")


def _find_routes(resolver: URLResolver, prefix: str) -> Iterator[str]:
    """Yield the view names below a resolver, and each namespace as ``shop:*``."""
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLPattern):
            yield f"{prefix}{pattern.name or pattern.lookup_str}"
        elif pattern.namespace:
            yield f"{prefix}{pattern.namespace}:*"
            yield from _find_routes(pattern, f"{prefix}{pattern.namespace}:")
        else:
            yield from _find_routes(pattern, prefix)


@_with_settings
def check_proxies(settings: Settings) -> Iterator[CheckMessage]:
    """Return W010 if every address is a trusted proxy: a visitor could then claim any address."""
    for network in settings.trusted_proxies:
        if not network.prefixlen:
            message = f'{SETTING}["TRUSTED_PROXIES"] trusts every address ({network}).'
            yield Warning(message, hint="List only the networks of your own proxies.", id=f"{TAG}.W010")


@_with_settings
def check_template_leaks(settings: Settings) -> Iterator[CheckMessage]:
    """Return E014 for a ``{% cache %}`` that would show one visitor's content to all visitors.

    The check runs always, not only with ``--deploy``: the author of the template should see the mistake.
    """
    try:
        backends = [backend for backend in engines.all() if isinstance(backend, DjangoTemplates)]
    except Exception:
        # Django's own checks report TEMPLATES that don't load.
        return
    for leak in [leak for backend in backends for leak in find_leaks(backend.engine)]:
        message = f"{{% cache %}} shows one visitor's content to all visitors: {leak.found} in {leak.found_at}."
        hint = f"The {{% cache %}} starts in {leak.place}. Keep the visitor's content out of it."
        yield Error(message, hint=hint, id=f"{TAG}.E014")


@_with_settings
def check_threads(settings: Settings) -> Iterator[CheckMessage]:
    """Return W011 in a uWSGI without threads, where ThreadDelivery can't send in the background."""
    if settings.enabled and settings.delivery.backend == DELIVERY and thread.runs_without_threads():
        yield Warning(f"{thread.NO_THREADS}.", hint=thread.THREADS_HINT, id=f"{TAG}.W011")


CHECKS: Final[tuple[Check, ...]] = (
    check_values,
    check_credentials,
    check_paths,
    check_transport,
    check_middleware,
    check_cache,
    check_sandbox,
    check_urls,
    check_proxies,
    check_template_leaks,
    check_threads,
)
"""All checks, in the order of their reports."""

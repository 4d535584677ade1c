"""System checks: what a site should know of its settings before the first visitor does.

A check neither raises nor talks to anybody: no network, no query. Each message has a hint that
names the mend. While the settings themselves cannot be read, ``check_values`` alone speaks.
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
from django_moe_personalize.conf import DELIVERY, SETTING, ConfigurationError, Settings, find_problems, get_settings
from django_moe_personalize.conf.readers import nearest
from django_moe_personalize.delivery import thread

TAG: Final = "moe_personalize"
MIDDLEWARE: Final = "django_moe_personalize.middleware.PersonalizeMiddleware"
NEEDED_MIDDLEWARE: Final = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
)
CREDENTIALS: Final = {
    "WORKSPACE_ID": ("E003", "the MoEngage dashboard shows it under Settings > Account > APIs"),
    "API_KEY": ("E004", "the Personalize key of the same page, for a key of another feature is refused"),
    "DATA_CENTER": ("E005", "the number in the address of your dashboard, such as dashboard-03.moengage.com"),
}
DUMMY_CACHE: Final = "django.core.cache.backends.dummy.DummyCache"
LOCAL_CACHE: Final = "django.core.cache.backends.locmem.LocMemCache"

Check = Callable[..., list[CheckMessage]]


def check_values(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Return E001 for an unknown setting, E002 and E005 for a value, W002 for an unknown variable."""
    return [_describe_problem(problem.kind, problem.name, problem.message, problem.hint) for problem in find_problems()]


def _describe_problem(kind: str, name: str, message: str, hint: str) -> CheckMessage:
    if kind == "environment":
        return Warning(message, hint=hint, id=f"{TAG}.W002")
    if kind == "unknown":
        return Error(message, hint=hint, id=f"{TAG}.E001")
    number = "E005" if name == "DATA_CENTER" else "E002"
    return Error(message, hint=hint or "Correct it, or leave it out for the default.", id=f"{TAG}.{number}")


def _of_settings(build: Callable[[Settings], Iterable[CheckMessage]]) -> Check:
    """Make a check of a generator that takes the settings; silent while there are none."""

    def check(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
        try:
            settings = get_settings()
        except ConfigurationError:
            return []
        return list(build(settings))

    # Not functools.wraps(): Django would read the signature of the wrapped function.
    check.__name__, check.__doc__ = build.__name__, build.__doc__
    return check


def _report(error: ConfigurationError, number: str) -> Error:
    return Error(error.message, hint=error.hint, id=f"{TAG}.{number}")


@_of_settings
def check_credentials(settings: Settings) -> Iterator[CheckMessage]:
    """Return E003, E004 or E005 for a credential that is missing."""
    if not settings.enabled:
        return
    halves = {"WORKSPACE_ID": settings.workspace_id, "API_KEY": settings.api_key}
    present = " and ".join(name for name, value in halves.items() if value)
    for name in client.find_missing(settings):
        number, where = CREDENTIALS[name]
        half = f", though {present} is there" if present and name in halves else ""
        hint = f'Set {SETTING}["{name}"] or the variable {SETTING}_{name}: {where}.'
        yield Error(f"{SETTING} has no {name}{half}.", hint=hint, id=f"{TAG}.{number}")


@_of_settings
def check_paths(settings: Settings) -> Iterator[CheckMessage]:
    """Return E009 for a callable that cannot be used, E010 for DELIVERY."""
    named = [("IDENTIFY", settings.identify), ("CONSENT", settings.consent)]
    for name, path in [*named, *(("ATTRIBUTES", path) for path in settings.attributes)]:
        if path:
            try:
                client.load_object(name, path)
            except ConfigurationError as error:
                yield _report(error, "E009")
    try:
        client.load_backend("DELIVERY", settings.delivery)
    except ConfigurationError as error:
        yield _report(error, "E010")


@_of_settings
def check_transport(settings: Settings) -> Iterator[CheckMessage]:
    """Return E006 for a BASE_URL that is not safe, E011 for a TRANSPORT that cannot be made."""
    try:
        if settings.base_url:
            client.read_base_url(settings)
    except ConfigurationError as error:
        yield _report(error, "E006")
        return
    try:
        if settings.base_url:
            client.build_transport(settings)
        else:
            client.load_backend("TRANSPORT", settings.transport, "https://sdk-01.moengage.com/v1")
    except ConfigurationError as error:
        yield _report(error, "E011")


@_of_settings
def check_middleware(settings: Settings) -> Iterator[CheckMessage]:
    """Return W001 without the middleware, E007 when it is listed twice, E008 when it comes too early."""
    places = _middleware_places(MIDDLEWARE)
    if not places and settings.enabled:
        hint = f'Add "{MIDDLEWARE}" to MIDDLEWARE, after sessions and authentication.'
        yield Warning("No request has a personalization: its middleware is not installed.", hint=hint, id=f"{TAG}.W001")
    if len(places) > 1:
        yield Error("PersonalizeMiddleware is listed twice in MIDDLEWARE.", hint="Keep the last.", id=f"{TAG}.E007")
    for needed in NEEDED_MIDDLEWARE:
        if places and any(place > places[0] for place in _middleware_places(needed)):
            message = f"PersonalizeMiddleware comes before {needed.rpartition('.')[2]} in MIDDLEWARE."
            hint = f'Move "{MIDDLEWARE}" after it: the visitor is known only from there on.'
            yield Error(message, hint=hint, id=f"{TAG}.E008")


def _middleware_places(wanted: str) -> list[int]:
    return [place for place, path in enumerate(django_settings.MIDDLEWARE) if _names_class(path, wanted)]


def _names_class(path: str, wanted: str) -> bool:
    """Whether ``path`` names the class ``wanted`` or one made from it."""
    try:
        return issubclass(import_string(path), import_string(wanted))
    except Exception:
        # No class, or nothing that can be imported: Django says so itself when it needs it.
        return False


@_of_settings
def check_cache(settings: Settings) -> Iterator[CheckMessage]:
    """Return E012 for an unknown alias, W004 and W005 for a cache that keeps too little, W009 for a shared page."""
    aliases = django_settings.CACHES
    if settings.cache not in aliases:
        found = nearest(settings.cache, aliases)
        hint = f'Did you mean "{found}"?' if found else f"CACHES has {', '.join(map(repr, aliases))}."
        yield Error(
            f'{SETTING}["CACHE"] is {settings.cache!r}, which CACHES does not have.', hint=hint, id=f"{TAG}.E012"
        )
    elif settings.enabled:
        yield from _check_backend(settings, aliases[settings.cache].get("BACKEND", ""))
    if not any(word in settings.cache_control.lower() for word in ("private", "no-store")):
        message = f'{SETTING}["CACHE_CONTROL"] lets a shared cache keep the page of one visitor for others.'
        yield Warning(message, hint='Write "private, no-store", or at least "private".', id=f"{TAG}.W009")


def _check_backend(settings: Settings, path: str) -> Iterator[CheckMessage]:
    hint = "Give it a cache that all processes share, Redis or Memcached."
    if _names_class(path, DUMMY_CACHE):
        message = f"The cache {settings.cache!r} keeps nothing: every page asks MoEngage anew."
        yield Warning(message, hint=hint, id=f"{TAG}.W005")
    elif _names_class(path, LOCAL_CACHE) and not django_settings.DEBUG and not client.is_embedded(settings):
        message = f"The cache {settings.cache!r} is one process's own: every process asks MoEngage for itself."
        yield Warning(message, hint=f"{hint} With a single process, silence this.", id=f"{TAG}.W004")


@_of_settings
def check_sandbox(settings: Settings) -> Iterator[CheckMessage]:
    """Return W006 outside DEBUG, E013 for a broken workspace file, W008 for a key that it does not have."""
    if not settings.enabled or not settings.sandbox:
        return
    if not django_settings.DEBUG:
        hint = f'Set the credentials and {SETTING}["SANDBOX"] = False.'
        yield Warning("Visitors get the experiences of the sandbox, not MoEngage's.", hint=hint, id=f"{TAG}.W006")
    if settings.base_url and settings.workspace_id:
        return
    try:
        workspace = client.load_workspace(settings)
    except ConfigurationError as error:
        yield _report(error, "E013")
        return
    if client.is_embedded(settings):
        yield from _check_keys(settings, list(workspace.definitions))


def _check_keys(settings: Settings, known: Sequence[str]) -> Iterator[CheckMessage]:
    for key in dict.fromkeys(key for keys in settings.experiences.values() for key in keys):
        if key not in known:
            found = nearest(key, known)
            hint = f'Did you mean "{found}"?' if found else f"It has {', '.join(known) or 'none'}."
            message = f'{SETTING}["EXPERIENCES"] asks for {key!r}, which the sandbox does not have.'
            yield Warning(message, hint=hint, id=f"{TAG}.W008")


@_of_settings
def check_urls(settings: Settings) -> Iterator[CheckMessage]:
    """Return W003 when the package's URLs are not included, W007 for a route that does not exist."""
    try:
        resolver = get_resolver()
        has_urls = TAG in resolver.app_dict or TAG in resolver.namespace_dict
        routes = set(_find_routes(resolver, ""))
    except Exception:
        # Django's own checks report a ROOT_URLCONF that does not load.
        return
    if settings.enabled and not has_urls and _middleware_places(MIDDLEWARE):
        needed = "clicks and impressions" if settings.impressions == "visible" else "clicks"
        hint = 'Add path("moe/", include("django_moe_personalize.urls")) to the root urlpatterns.'
        yield Warning(f"The URLs that take {needed} are not included.", hint=hint, id=f"{TAG}.W003")
    for route in settings.experiences:
        if route != "*" and route not in routes:
            found = nearest(route, routes)
            hint = f'Did you mean "{found}"?' if found else 'A route is a view name, "namespace:*" or "*".'
            message = f'{SETTING}["EXPERIENCES"] has the route {route!r}, which no URL has.'
            yield Warning(message, hint=hint, id=f"{TAG}.W007")


def _find_routes(resolver: URLResolver, prefix: str) -> Iterator[str]:
    """Yield the view names and, as ``shop:*``, the namespaces below a resolver."""
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLPattern):
            yield f"{prefix}{pattern.name or pattern.lookup_str}"
        elif pattern.namespace:
            yield f"{prefix}{pattern.namespace}:*"
            yield from _find_routes(pattern, f"{prefix}{pattern.namespace}:")
        else:
            yield from _find_routes(pattern, prefix)


@_of_settings
def check_proxies(settings: Settings) -> Iterator[CheckMessage]:
    """Return W010 when every address is a trusted proxy, so that a visitor may claim any other."""
    for network in settings.trusted_proxies:
        if not network.prefixlen:
            hint = "List the networks of your own proxies."
            yield Warning(f'{SETTING}["TRUSTED_PROXIES"] trusts everybody: {network}.', hint=hint, id=f"{TAG}.W010")


@_of_settings
def check_fragments(settings: Settings) -> Iterator[CheckMessage]:
    """Return E014 for a ``{% cache %}`` that would show one visitor's content to everybody.

    On every run, not for a deployment alone: it is a mistake of the template, to be seen by who writes it.
    """
    try:
        backends = [backend for backend in engines.all() if isinstance(backend, DjangoTemplates)]
    except Exception:
        # Django's own checks report TEMPLATES that cannot be made.
        return
    for leak in [leak for backend in backends for leak in find_leaks(backend.engine)]:
        message = f"{{% cache %}} keeps one visitor's content for everybody: {leak.found} in {leak.found_at}."
        hint = f"It begins in {leak.place}. Put it around what is the same for all, inside or beside."
        yield Error(message, hint=hint, id=f"{TAG}.E014")


@_of_settings
def check_threads(settings: Settings) -> Iterator[CheckMessage]:
    """Return W011 inside a uWSGI without threads, where ThreadDelivery cannot send beside pages."""
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
    check_fragments,
    check_threads,
)
"""Every check, in the order of their reports."""

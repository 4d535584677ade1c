"""The doctor: whether personalization works on this site and, if not, what to mend. ``manage.py moe_doctor`` prints it.

Whatever can be known by doing it is done, each part with a deadline; a part that fails in a way
nobody thought of is a finding, and the next is examined all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from django.core.checks import ERROR
from django.template import engines
from django.template.backends.django import DjangoTemplates
from django.urls import URLPattern, URLResolver, get_resolver
from django.views import View

from django_moe_personalize.checks.settings import CHECKS
from django_moe_personalize.checks.template_leaks import read_sources
from django_moe_personalize.conf import SETTING, ConfigurationError, Settings, get_settings
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.doctor.site import (
    Finding,
    State,
    examine_cache,
    examine_delivery,
    examine_environment,
    examine_processes,
)
from django_moe_personalize.doctor.vendor import examine_vendor
from django_moe_personalize.planning import KEYS_ATTRIBUTE, find_template_keys
from django_moe_personalize.resilience import WorkerPool

SECONDS: Final = 5.0
"""How long one call or one part may take."""

_KEYED = re.compile(r"\{%\s*experience(?:_value)?\s")
_HTML = re.compile(r"\|\s*experience_html\b")
_SCRIPTS = re.compile(r"\{%\s*personalize_scripts\b")


def diagnose(*, seconds: float = SECONDS) -> Iterator[Finding]:
    """Yield the findings, those of settings and vendor first; never raises. ``seconds`` is the most of each step."""
    try:
        yield from _examine("The checks", examine_checks)
        settings = get_settings()
    except ConfigurationError:
        # The checks have told what is wrong with them.
        return
    if not settings.enabled:
        yield Finding("warning", "Personalization is off: nobody sees an experience.", f'Set {SETTING}["ENABLED"].')
        return
    templates = read_templates()
    yield from _examine("The vendor", examine_vendor, settings, find_keys(settings, templates), seconds)
    pool = WorkerPool(2, name="moe-personalize-doctor")
    yield from _examine("The cache", _within, pool, seconds, examine_cache, settings)
    yield from _examine("What processes say", _within, pool, seconds, examine_processes)
    # In this thread, as every command's: its connection is the one that the site's settings mean.
    yield from _examine("The delivery", lambda: examine_delivery(get_delivery()))
    yield from _examine("What is installed", lambda: examine_environment(shows_html=templates.show_html))
    yield from examine_templates(settings, templates)


def _examine(part: str, function: Callable[..., Iterable[Finding]], *args: Any) -> Iterator[Finding]:
    """Yield what ``function`` finds, or that it could not."""
    try:
        yield from function(*args)
    except TimeoutError:
        yield Finding("problem", f"{part}: no answer in time.", "Find out what hangs: the pages meet it too.")
    except ConfigurationError as error:
        yield Finding("problem", f"{part}: {error.message}", error.hint)
    except Exception as error:
        # Its text may quote a setting or a visitor.
        yield Finding("problem", f"{part}: {type(error).__name__}.", "The log of its server may say more.")


def _within(pool: WorkerPool, seconds: float, function: Callable[..., Iterable[Finding]], *args: Any) -> list[Finding]:
    return pool.submit(lambda: list(function(*args))).result(seconds)


def examine_checks() -> Iterator[Finding]:
    """Yield the system checks of this app that fire and are not silenced."""
    for message in [message for check in CHECKS for message in check()]:
        if not message.is_silenced():
            state: State = "problem" if message.level >= ERROR else "warning"
            yield Finding(state, f"{message.id}: {message.msg}", message.hint or "")


@dataclass(slots=True)
class Templates:
    """What the site's templates use of ours: keys with the template that names them first, and so on."""

    keys: dict[str, str] = field(default_factory=dict)
    show_html: bool = False
    have_scripts: bool = False


def read_templates() -> Templates:
    """Return what the templates of Django's engines use, by their source; what does not compile has no keys."""
    found = Templates()
    with suppress(Exception):
        for engine in [backend.engine for backend in engines.all() if isinstance(backend, DjangoTemplates)]:
            for name, source in read_sources(engine):
                found.show_html |= bool(_HTML.search(source))
                found.have_scripts |= bool(_SCRIPTS.search(source))
                if _KEYED.search(source):
                    # Whatever a tag's compilation raises, the page that needs it says so itself.
                    with suppress(Exception):
                        for key in find_template_keys(engine.get_template(name)):
                            found.keys.setdefault(key, f"the template {name}")
    return found


def examine_templates(settings: Settings, templates: Templates) -> Iterator[Finding]:
    """Say when the browser is to count and no template has the script for it."""
    if settings.impressions in ("visible", "web_sdk") and not templates.have_scripts:
        told = f'IMPRESSIONS is "{settings.impressions}", and no template has {{% personalize_scripts %}}'
        yield Finding("warning", f"{told}: nothing is counted.", "Put it at the end of the pages.")


def find_keys(settings: Settings, templates: Templates) -> dict[str, str]:
    """Return the keys that the site names, with the place that names them first."""
    found = {key: f'EXPERIENCES["{route}"]' for route, keys in settings.experiences.items() for key in keys}
    # Django's own checks report a ROOT_URLCONF that does not load.
    with suppress(Exception):
        for view in _iterate_views(get_resolver()):
            for key in getattr(view, KEYS_ATTRIBUTE, ()):
                found.setdefault(key, f"the view {_name_view(view)}")
    return {**templates.keys, **found}


def _name_view(view: Any) -> str:
    named = getattr(view, "view_class", view)
    return f"{named.__module__}.{getattr(named, '__qualname__', type(named).__name__)}"


def _iterate_views(resolver: URLResolver) -> Iterator[Callable[..., Any]]:
    for pattern in resolver.url_patterns:
        if not isinstance(pattern, URLPattern):
            yield from _iterate_views(pattern)
            continue
        yield pattern.callback
        view_class = getattr(pattern.callback, "view_class", None)
        yield from [getattr(view_class, name) for name in View.http_method_names if hasattr(view_class, name)]

"""Find the experience keys in the settings, the views and the sandbox's workspace file, and check their length."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from django.urls import URLPattern, URLResolver, get_resolver
from django.views import View

from django_moe_personalize import client
from django_moe_personalize.conf import ConfigurationError, Settings
from django_moe_personalize.planning import KEYS_ATTRIBUTE
from django_moe_personalize.schemas import get_schemas

LENGTHS: Final = range(5, 51)
"""How many characters a key has in MoEngage's dashboard (contract §2)."""


def iterate_urls(resolver: URLResolver, prefix: str = "") -> Iterator[tuple[str, URLPattern | URLResolver]]:
    """Yield each URL pattern below ``resolver`` with its view name, and each namespace under a name like ``shop:*``."""
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLPattern):
            yield f"{prefix}{pattern.name or pattern.lookup_str}", pattern
            continue
        inner = f"{prefix}{pattern.namespace}:" if pattern.namespace else prefix
        if pattern.namespace:
            yield f"{inner}*", pattern
        yield from iterate_urls(pattern, inner)


def find_keys(settings: Settings) -> dict[str, str]:
    """Return the keys in the settings, the views and the schemas, each with the first place that names it."""
    found = {key: f'EXPERIENCES["{route}"]' for route, keys in settings.experiences.items() for key in keys}
    # If ROOT_URLCONF has a mistake, Django's own checks report it.
    with suppress(Exception):
        for _, pattern in iterate_urls(get_resolver()):
            view = getattr(pattern, "callback", None)
            methods = [getattr(getattr(view, "view_class", None), name, None) for name in View.http_method_names]
            for declared in [view, *methods]:
                for key in getattr(declared, KEYS_ATTRIBUTE, ()):
                    found.setdefault(key, f"the view {_name_view(declared)}")
    for schema in get_schemas():
        found.setdefault(schema.key, f"the schema {schema.__name__}")
    return found


def _name_view(view: Any) -> str:
    named = getattr(view, "view_class", view)
    return f"{named.__module__}.{getattr(named, '__qualname__', type(named).__name__)}"


def check_keys(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield W016 for a key that is shorter or longer than the keys in MoEngage's dashboard."""
    found = find_keys(settings)
    if client.is_embedded(settings):
        # E013 reports a broken file.
        with suppress(ConfigurationError):
            for key in client.open_workspace_file(settings).workspace.definitions:
                found.setdefault(key, "the sandbox's workspace file")
    for key, place in found.items():
        if len(key) not in LENGTHS:
            message = f"The experience key {key!r} in {place} has {len(key)} characters, but MoEngage takes 5 to 50."
            hint = "Compare the key with the dashboard. If the dashboard has this key, silence this warning."
            yield "W016", message, hint

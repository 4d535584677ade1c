"""Which experience keys a page needs: settings by route, ``@personalize``, the template, and earlier pages.

A page that declares nothing makes one call too. Its first tag collects the keys of the compiled template. The route
remembers them, so that its next page starts the call before the view.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from django.http import HttpRequest
from django.template import Node, Template, TemplateDoesNotExist, TemplateSyntaxError
from django.template.base import FilterExpression
from django.template.loader_tags import ExtendsNode, IncludeNode

from django_moe_personalize.conf import get_settings
from django_moe_personalize.runtime import Runtime, part

KEYS_ATTRIBUTE: Final = "moe_experience_keys"
"""The attribute of a view in which ``@personalize`` stores its keys. ``functools.wraps`` copies it to a wrapper."""

MAX_ROUTES: Final = 1000
MAX_KEYS_A_ROUTE: Final = 100

MAX_READ_KEYS: Final = 25
"""Keys that a route may learn from Python code, which may build endless keys (``f"product-{pk}"``)."""

MAX_TEMPLATES: Final = 100
"""How many parents and includes of a template are searched. Templates may include each other endlessly."""


def declare_keys(view: Callable[..., Any], experience_keys: Sequence[str]) -> None:
    """Store on ``view`` that it needs ``experience_keys`` too.

    Raises ValueError unless they are a list or tuple of non-empty strings.
    """
    if isinstance(experience_keys, str) or not all(isinstance(key, str) and key for key in experience_keys):
        raise ValueError(
            f"experience keys are {experience_keys!r}, but must be non-empty strings: "
            'write ("hero-banner", "promo-strip")'
        )
    declared = (*getattr(view, KEYS_ATTRIBUTE, ()), *experience_keys)
    setattr(view, KEYS_ATTRIBUTE, tuple(dict.fromkeys(declared)))


class RouteMemory:
    """The keys that the pages of each route needed so far. Thread-safe and bounded."""

    def __init__(self) -> None:
        self._routes: dict[str, tuple[str, ...]] = {}
        self._lock = threading.Lock()

    def get(self, route: str) -> tuple[str, ...]:
        """Return the keys of ``route``."""
        return self._routes.get(route, ())

    def learn(self, route: str, *experience_keys: str, limit: int = MAX_KEYS_A_ROUTE) -> None:
        """Remember that ``route`` needs ``experience_keys``, unless it has ``limit`` keys already.

        Over MAX_ROUTES, the route that was learned first is forgotten.
        """
        known = self.get(route)
        if len(known) >= limit or set(known).issuperset(experience_keys):
            return
        with self._lock:
            keys = dict.fromkeys([*self.get(route), *experience_keys])
            self._routes[route] = tuple(keys)[:MAX_KEYS_A_ROUTE]
            if len(self._routes) > MAX_ROUTES:
                del self._routes[next(iter(self._routes))]


@part
def get_route_memory(runtime: Runtime) -> RouteMemory:
    """Return the keys that the routes of this process needed so far."""
    return RouteMemory()


_template_keys: Final = weakref.WeakKeyDictionary[Template, tuple[str, ...]]()
"""The keys of the templates that were searched so far."""


def find_template_keys(template: Template) -> tuple[str, ...]:
    """Return the literal keys in a compiled template, its parents and its includes, in all branches.

    The result is remembered as long as the template lives, which is as long as the process under the cached loader.
    """
    known = _template_keys.get(template)
    if known is None:
        known = _template_keys[template] = tuple(dict.fromkeys(_iterate_template_keys(template)))
    return known


def _iterate_template_keys(template: Template) -> Iterator[str]:
    queue, seen = [template], {template.name}
    for current in queue:
        for node in current.nodelist.get_nodes_by_type(Node):
            if isinstance(key := getattr(node, "experience_key", None), str):
                yield key
            name = get_literal(getattr(node, _REFERENCES.get(type(node), ""), None))
            if name is not None and name not in seen and len(seen) < MAX_TEMPLATES:
                seen.add(name)
                # If the template is missing or broken, the page raises the same exception when it renders it.
                with suppress(TemplateDoesNotExist, TemplateSyntaxError):
                    queue.append(current.engine.get_template(name))


_REFERENCES: Final[Mapping[type[Node], str]] = {ExtendsNode: "parent_name", IncludeNode: "template"}


def get_literal(expression: FilterExpression | None) -> str | None:
    """Return the text of a quoted literal in a template, or ``None`` for a variable or a filter."""
    if expression is None or expression.filters or not isinstance(expression.var, str):
        return None
    return expression.var


def get_route(request: HttpRequest) -> str | None:
    """Return the name of the request's route with its namespaces, or the dotted path of a view without a name."""
    return None if request.resolver_match is None else request.resolver_match.view_name


def get_planned_keys(
    request: HttpRequest, view: Callable[..., Any] | None = None, runtime: Runtime | None = None
) -> tuple[str, ...]:
    """Return the keys that ``request`` is known to need: those of the view, of EXPERIENCES, and of earlier pages."""
    match = request.resolver_match
    route = None if match is None else match.view_name
    declared: tuple[str, ...] = getattr(view, KEYS_ATTRIBUTE, ())
    seen = () if route is None else get_route_memory(runtime).get(route)
    experiences = get_settings().experiences
    if not experiences and not (declared and seen):
        # Pages without experiences get here too, and may take 120 bytecodes in all. Merging takes 55 more.
        return declared or seen
    configured = [key for name in _iterate_route_names(route) for key in experiences.get(name, ())]
    return tuple(dict.fromkeys([*declared, *configured, *seen]))


def get_early_keys(request: HttpRequest, view: Callable[..., Any], runtime: Runtime | None = None) -> tuple[str, ...]:
    """Return the keys to ask for before ``view`` runs.

    A POST gets the keys of the view alone, because it often just redirects. The package's own endpoints get none.
    """
    keys = get_planned_keys(request, view, runtime)
    if keys and (match := request.resolver_match) is not None and "moe_personalize" in match.app_names:
        return ()
    if keys and request.method not in ("GET", "HEAD"):
        return tuple(getattr(view, KEYS_ATTRIBUTE, ()))
    return keys


def _iterate_route_names(route: str | None) -> Iterator[str]:
    """Yield the names that a route has in ``EXPERIENCES``: for ``a:b:c`` also ``a:b:*``, ``a:*`` and ``*``."""
    if route is not None:
        yield route
        while ":" in route:
            route = route.rpartition(":")[0]
            yield f"{route}:*"
    yield "*"

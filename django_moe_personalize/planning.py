"""Which experience keys this page needs: settings by route, ``@personalize``, the template itself, and memory.

A page that declares nothing asks in one call all the same: its first tag looks through the compiled
template for the others, and the route remembers them, so that its next request starts before the view.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from django.http import HttpRequest
from django.template import Node, Template, TemplateDoesNotExist, TemplateSyntaxError
from django.template.base import FilterExpression
from django.template.loader_tags import ExtendsNode, IncludeNode

from django_moe_personalize.conf import get_settings
from django_moe_personalize.runtime import Runtime, part

KEYS_ATTRIBUTE = "moe_experience_keys"
"""Where ``@personalize`` writes its keys on the view; ``functools.wraps`` carries it outwards."""

MAX_ROUTES = 1000
MAX_KEYS_A_ROUTE = 100

MAX_READ_KEYS = 25
"""Keys a route may learn from what its code reads: as many as travel in one call.

Code may make keys of what a visitor sends (``f"product-{pk}"``), a template's literals are few.
"""


def declare_keys(view: Callable[..., Any], experience_keys: Sequence[str]) -> None:
    """Write on ``view`` that it needs ``experience_keys``, besides what it declares already.

    Raises ValueError when they are not a list of non-empty strings.
    """
    if isinstance(experience_keys, str) or not all(isinstance(key, str) and key for key in experience_keys):
        raise ValueError(
            f'experience keys are non-empty strings, as in ("hero-banner", "promo-strip"); not {experience_keys!r}'
        )
    declared = (*getattr(view, KEYS_ATTRIBUTE, ()), *experience_keys)
    setattr(view, KEYS_ATTRIBUTE, tuple(dict.fromkeys(declared)))


class RouteMemory:
    """The keys each route was seen to read, bounded in routes and in keys a route. Thread-safe."""

    def __init__(self, max_routes: int = MAX_ROUTES, max_keys: int = MAX_KEYS_A_ROUTE) -> None:
        self._max_routes = max_routes
        self._max_keys = max_keys
        self._routes: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, route: str) -> tuple[str, ...]:
        """Return the keys seen on ``route``."""
        return self._routes.get(route, ())

    def learn(self, route: str, *experience_keys: str, limit: int | None = None) -> None:
        """Remember that ``route`` reads ``experience_keys``, up to ``limit``; the oldest route makes room."""
        known = self.get(route)
        if set(known).issuperset(experience_keys) or (limit is not None and len(known) >= limit):
            return
        with self._lock:
            known = tuple(dict.fromkeys([*self._routes.get(route, ()), *experience_keys]))
            self._routes[route] = known[: self._max_keys]
            if len(self._routes) > self._max_routes:
                self._routes.popitem(last=False)

    def forget(self) -> None:
        """Forget every route."""
        with self._lock:
            self._routes.clear()


@part
def get_route_memory(runtime: Runtime) -> RouteMemory:
    """Return the keys that each route was seen to read."""
    return RouteMemory()


MAX_TEMPLATES = 100
"""How many parents and includes are followed from one template; a recursive include ends there too."""

_template_keys: weakref.WeakKeyDictionary[Template, tuple[str, ...]] = weakref.WeakKeyDictionary()


def find_template_keys(template: Template) -> tuple[str, ...]:
    """Return the literal keys of a compiled template's tags, its parents' and its includes'.

    Every branch counts, taken or not: a key too many travels in the same call. Looked up once a
    template, which the cached loader keeps for the process.
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
                queue += _load_template(current, name)


_REFERENCES: Mapping[type[Node], str] = {ExtendsNode: "parent_name", IncludeNode: "template"}


def get_literal(expression: FilterExpression | None) -> str | None:
    """Return what a template's author wrote in quotes; ``None`` for a variable."""
    if expression is None or expression.filters or not isinstance(expression.var, str):
        return None
    return expression.var


def _load_template(template: Template, name: str) -> list[Template]:
    try:
        return [template.engine.get_template(name)]
    except (TemplateDoesNotExist, TemplateSyntaxError):
        # If the page comes to render it, it says so itself.
        return []


def get_route(request: HttpRequest) -> str | None:
    """Return the name of the request's route: its view name, or its URL pattern when it has no name."""
    match = request.resolver_match
    if match is None:
        return None
    return match.view_name or match.route


def get_planned_keys(request: HttpRequest, view: Callable[..., Any] | None = None) -> tuple[str, ...]:
    """Return the keys that ``request`` is known to need, each once, in the order of their sources."""
    route = get_route(request)
    declared: tuple[str, ...] = getattr(view, KEYS_ATTRIBUTE, ())
    seen = () if route is None else get_route_memory().get(route)
    experiences = get_settings().experiences
    if not experiences and not (declared and seen):
        # Every page of the site comes here, and most have nothing to merge.
        return declared or seen
    configured = [key for name in _iterate_route_names(route) for key in experiences.get(name, ())]
    return tuple(dict.fromkeys([*declared, *configured, *seen]))


def get_early_keys(request: HttpRequest, view: Callable[..., Any]) -> tuple[str, ...]:
    """Return the keys worth asking for before ``view`` runs.

    Settings and memory speak of a route's pages: a POST that only redirects, and our own
    endpoints, need none of them. What the view itself declares it needs for every method.
    """
    match = request.resolver_match
    if match is not None and "moe_personalize" in match.app_names:
        return ()
    if request.method in ("GET", "HEAD"):
        return get_planned_keys(request, view)
    return tuple(getattr(view, KEYS_ATTRIBUTE, ()))


def _iterate_route_names(route: str | None) -> Iterator[str]:
    """Yield the names under which ``EXPERIENCES`` may mean a route: ``a:b:c``, ``a:b:*``, ``a:*``, ``*``."""
    if route is not None:
        yield route
        namespace = route
        while ":" in namespace:
            namespace = namespace.rpartition(":")[0]
            yield f"{namespace}:*"
    yield "*"

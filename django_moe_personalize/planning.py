"""Find the experience keys that a page needs: from EXPERIENCES, ``@personalize``, the template and earlier pages.

A page that declares no keys also makes only one call. Its first tag collects all keys of the compiled template. The
process remembers these keys for the route, so that the next page of the route starts the call before its view.
"""

from __future__ import annotations

import functools
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
from django_moe_personalize.runtime import Runtime, log_once, part, protect_transactions
from django_moe_personalize.visitor.identity import HookError, call

KEYS_ATTRIBUTE: Final = "moe_experience_keys"
"""The attribute of a view with the keys of ``@personalize``. ``functools.wraps`` copies the attribute to a wrapper."""

_ROUTE_KEY: Final = "_moe_route_key"
"""The attribute of a request with the answer of the site's function LEARN_ROUTES."""

MAX_ROUTES: Final = 1000
MAX_PART_LENGTH: Final = 1024
MAX_KEYS_A_ROUTE: Final = 100

MAX_READ_KEYS: Final = 25
"""Keys that a route may learn from Python code. Such code may build endless keys (``f"product-{pk}"``)."""

MAX_TEMPLATES: Final = 100
"""Parents and includes that are searched for one template. Templates may include each other endlessly."""


def declare_keys(view: Callable[..., Any], experience_keys: Sequence[Any]) -> tuple[str, ...]:
    """Add ``experience_keys`` to the keys that ``view`` declares, and return them as strings.

    A schema stands for its key. Raises ValueError unless the keys are a list or tuple of strings that are not empty.
    """
    if not isinstance(experience_keys, str):
        experience_keys = [getattr(key, "key", key) for key in experience_keys]
    if isinstance(experience_keys, str) or not all(isinstance(key, str) and key for key in experience_keys):
        raise ValueError(
            f"experience keys are {experience_keys!r}, but must be non-empty strings: "
            'write ("hero-banner", "promo-strip")'
        )
    declared = (*getattr(view, KEYS_ATTRIBUTE, ()), *experience_keys)
    setattr(view, KEYS_ATTRIBUTE, tuple(dict.fromkeys(declared)))
    return tuple(experience_keys)


class RouteMemory:
    """The keys that the pages of each route have needed so far. Thread-safe and bounded.

    A route is split after one of its pages needed none of the route's keys: in a CMS, one route serves many different
    pages. From then on, this memory keeps the keys by route and path. With ``get_key``, each route is split from the
    start, by ``get_key(request)`` instead of the path. A page for which this is "" learns nothing.
    """

    def __init__(self, get_key: Callable[[HttpRequest], str] | None = None) -> None:
        self._get_key = get_key
        self.routes: dict[str | None, tuple[str, ...] | None] = {} if get_key is None else _AllSplit()
        """The keys of each route. ``None`` stands for a split route."""
        self._parts: dict[tuple[str, str], tuple[str, ...]] = {}
        self.late_routes: set[str | None] = set()
        """Routes that read a token in the view. Before the view, the fetch would be for the wrong visitor."""
        self._lock = threading.Lock()

    def get(self, request: HttpRequest, route: str | None) -> tuple[str, ...]:
        """Return the keys that earlier pages like ``request`` have needed."""
        keys = self.routes.get(route, ())
        return self.get_part(request, route) if keys is None else keys

    def get_part(self, request: HttpRequest, route: str | None) -> tuple[str, ...]:
        """Return the keys of a page of a split route."""
        return () if route is None else self._parts.get((route, self._find_key(request)), ())

    def learn(self, request: HttpRequest, *experience_keys: str, limit: int = MAX_KEYS_A_ROUTE) -> None:
        """Remember that pages like ``request`` need ``experience_keys``, unless ``limit`` keys are known already.

        With more than MAX_ROUTES routes, the oldest route is forgotten. The same is true for the parts of routes.
        """
        route = get_route(request)
        known = self.get(request, route)
        if route is None or len(known) >= limit or set(known).issuperset(experience_keys):
            return
        with self._lock:
            keys = tuple(dict.fromkeys([*self.get(request, route), *experience_keys]))[:MAX_KEYS_A_ROUTE]
            if self.routes.get(route, ()) is not None:
                self.routes[route] = keys
                _drop_oldest(self.routes)
            elif key := self._find_key(request):
                self._parts[route, key] = keys
                _drop_oldest(self._parts)

    def unlearn(self, request: HttpRequest) -> None:
        """Forget the keys of pages like ``request``, because this page needed none of them. Maybe split the route."""
        route = get_route(request)
        if route is not None and self.get(request, route):
            with self._lock:
                if self.routes.get(route) is None:
                    self._parts.pop((route, self._find_key(request)), None)
                else:
                    self.routes[route] = None

    def _find_key(self, request: HttpRequest) -> str:
        if self._get_key is None:
            return request.path[:MAX_PART_LENGTH]
        if not hasattr(request, _ROUTE_KEY):
            # Call the site's function once, before the view. In the view, its database error would break a transaction.
            setattr(request, _ROUTE_KEY, self._get_key(request)[:MAX_PART_LENGTH])
        key: str = getattr(request, _ROUTE_KEY)
        return key


def _drop_oldest(memory: dict[Any, Any]) -> None:
    if len(memory) > MAX_ROUTES:
        del memory[next(iter(memory))]


class _AllSplit(dict[Any, Any]):
    """The routes of a memory in which each route is split."""

    def get(self, *args: object) -> None:
        """Return ``None`` for each route."""


@part
def get_route_memory(runtime: Runtime) -> RouteMemory:
    """Return the keys that the routes of this process have needed so far."""
    learn = runtime.settings.learn_routes
    return RouteMemory(None if learn is True else functools.partial(_call_site, learn))


def _call_site(learn: bool | str, request: HttpRequest) -> str:
    """Return the answer of the site's function LEARN_ROUTES, or "" if the function fails or LEARN_ROUTES is False."""
    if not isinstance(learn, str):
        return ""
    try:
        with protect_transactions():
            key: str = call(learn, request, str)
    except HookError as error:
        log_once(("learn", str(error)), "LEARN_ROUTES failed (%s), so pages remember no keys.", error)
        return ""
    return key


_template_keys: Final = weakref.WeakKeyDictionary[Template, tuple[str, ...]]()
"""The keys of the templates that have been searched."""


def find_template_keys(template: Template) -> tuple[str, ...]:
    """Return the literal keys in all branches of a compiled template, its parents and its includes.

    The result is remembered as long as the template exists. The cached loader keeps a template as long as the process.
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
                # If the template is missing or broken, rendering the page raises the same exception.
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
    """Return the keys that ``request`` needs according to the view, to EXPERIENCES and to earlier pages."""
    match = request.resolver_match
    route = None if match is None else match.view_name
    declared: tuple[str, ...] = getattr(view, KEYS_ATTRIBUTE, ())
    memory = get_route_memory(runtime)
    # A page of a route that isn't split has no more to do than this look-up.
    seen = memory.routes.get(route, ())
    if seen is None:
        seen = memory.get_part(request, route)
    experiences = get_settings().experiences
    if not experiences and not (declared and seen):
        # A page without experiences may take 120 bytecodes in all. Merging the keys would take 55 more.
        return declared or seen
    configured = [key for name in _iterate_route_names(route) for key in experiences.get(name, ())]
    return tuple(dict.fromkeys([*declared, *configured, *seen]))


def get_early_keys(request: HttpRequest, view: Callable[..., Any], runtime: Runtime | None = None) -> tuple[str, ...]:
    """Return the keys to ask for before ``view`` runs.

    A POST gets only the keys of the view, because it often just redirects. The package's own endpoints get no keys.
    """
    keys = get_planned_keys(request, view, runtime)
    if not keys:
        return keys
    if getattr(view, "__module__", "") == "django_moe_personalize.views":
        return ()
    if "HTTP_AUTHORIZATION" in request.META and get_route(request) in get_route_memory(runtime).late_routes:
        return ()
    if request.method not in ("GET", "HEAD"):
        return tuple(getattr(view, KEYS_ATTRIBUTE, ()))
    return keys


def _iterate_route_names(route: str | None) -> Iterator[str]:
    """Yield the names of a route in ``EXPERIENCES``. The route ``a:b:c`` also has ``a:b:*``, ``a:*`` and ``*``."""
    if route is not None:
        yield route
        while ":" in route:
            route = route.rpartition(":")[0]
            yield f"{route}:*"
    yield "*"

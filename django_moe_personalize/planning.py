"""Find the experience keys that a page needs: from EXPERIENCES, ``@personalize``, the template and earlier pages.

A page that declares no keys also makes only one call. Its first tag collects all keys of the compiled template. The
process remembers these keys for the route, so that the next page of the route starts the call before its view.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest
from django.template import Node, Template
from django.template.base import FilterExpression
from django.template.loader_tags import ExtendsNode, IncludeNode

from django_moe_personalize.conf import get_settings
from django_moe_personalize.runtime import ALWAYS, Runtime, log_once, part, protect_transactions
from django_moe_personalize.visitor.identity import HookError, call

KEYS_ATTRIBUTE: Final = "moe_experience_keys"
"""The attribute of a view with the keys of ``@personalize``. ``functools.wraps`` copies the attribute to a wrapper."""

_ROUTE_KEY: Final = "_moe_route_key"
"""The attribute of a request with the answer of the site's function LEARN_ROUTES."""

READER: Final = "read_experiences"
"""The method of a template of another engine. It yields pairs of a key and the name of another template, or None."""

_ENDPOINTS: Final = frozenset({"django_moe_personalize.views", "django_moe_personalize.doctor.health"})
"""The modules of the package's own views, which show no experiences. A health check must never start a fetch."""

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

    def __init__(
        self, get_key: Callable[[HttpRequest], str] | None = None, plans: dict[tuple[str, Any], Plan] | None = None
    ) -> None:
        self._get_key = get_key
        self._plans = {} if plans is None else plans
        self.changes = 0
        """How often the memory has changed. Each change makes the plans invalid."""
        # The keys of each route. ``None`` stands for a split route.
        self._routes: dict[str | None, tuple[str, ...] | None] = {}
        self._parts: dict[tuple[str, str], tuple[str, ...]] = {}
        self.late_routes: set[str | None] = set()
        """Routes that read a token in the view. Before the view, the fetch would be for the wrong visitor."""
        self._lock = threading.Lock()

    def keep_plan(self, name: tuple[str, Any], plan: Plan, changes: int) -> None:
        """Keep a plan for the next pages, unless the memory has changed since it had ``changes``."""
        with self._lock:
            if changes == self.changes:
                if len(self._plans) >= MAX_ROUTES:
                    self._plans.clear()
                self._plans[name] = plan

    def _note_change(self) -> None:
        self.changes += 1
        self._plans.clear()

    def get(self, request: HttpRequest, route: str | None) -> tuple[str, ...]:
        """Return the keys that earlier pages like ``request`` have needed."""
        if not self.is_split(route):
            return self._routes.get(route) or ()
        return () if route is None else self._parts.get((route, self._find_key(request)), ())

    def is_split(self, route: str | None) -> bool:
        """Return whether the pages of ``route`` need different keys."""
        return self._routes.get(route, () if self._get_key is None else None) is None

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
            if not self.is_split(route):
                self._routes[route] = keys
                _drop_oldest(self._routes)
            elif key := self._find_key(request):
                self._parts[route, key] = keys
                _drop_oldest(self._parts)
            self._note_change()

    def unlearn(self, request: HttpRequest) -> None:
        """Forget the keys of pages like ``request``, because this page needed none of them. Maybe split the route."""
        route = get_route(request)
        if route is not None and self.get(request, route):
            with self._lock:
                if self.is_split(route):
                    self._parts.pop((route, self._find_key(request)), None)
                else:
                    self._routes[route] = None
                self._note_change()

    def split(self, request: HttpRequest) -> None:
        """Keep the keys of the request's route by path from now on, because its pages have different keys."""
        route = get_route(request)
        if route is not None and self._routes.get(route, ()) is not None:
            with self._lock:
                self._routes[route] = None
                _drop_oldest(self._routes)
                self._note_change()

    def _find_key(self, request: HttpRequest) -> str:
        if self._get_key is None:
            return request.path[:MAX_PART_LENGTH]
        if not hasattr(request, _ROUTE_KEY):
            # Call the site's function once, before the view. In the view, its database error would break a transaction.
            setattr(request, _ROUTE_KEY, self._get_key(request)[:MAX_PART_LENGTH])
        return str(getattr(request, _ROUTE_KEY))


def _drop_oldest(memory: dict[Any, Any]) -> None:
    if len(memory) > MAX_ROUTES:
        del memory[next(iter(memory))]


@part
def get_route_memory(runtime: Runtime) -> RouteMemory:
    """Return the keys that the routes of this process have needed so far."""
    learn = runtime.settings.learn_routes
    return RouteMemory(None if learn is True else functools.partial(_call_site, learn), runtime.plans)


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


_template_keys: Final = weakref.WeakKeyDictionary[Any, tuple[str, ...]]()
"""The keys of the templates that have been searched."""


def find_template_keys(template: Any) -> tuple[str, ...]:
    """Return the literal keys in all branches of a compiled template, its parents and its includes.

    The result is remembered as long as the template exists. The cached loader keeps a template as long as the process.
    """
    known = _template_keys.get(template)
    if known is None:
        known = _template_keys[template] = tuple(dict.fromkeys(_iterate_template_keys(template)))
    return known


def _iterate_template_keys(template: Any) -> Iterator[str]:
    queue, seen = [template], {template.name}
    for current in queue:
        read = getattr(current, READER, None)
        for key, name in _read_nodes(current) if read is None else read():
            if key is not None:
                yield key
            if name is not None and name not in seen and len(seen) < MAX_TEMPLATES:
                seen.add(name)
                # If the template is missing or broken, rendering the page raises the same exception.
                with suppress(Exception):
                    queue.append(current.engine.get_template(name))


def _read_nodes(template: Template) -> Iterator[tuple[str | None, str | None]]:
    for node in template.nodelist.get_nodes_by_type(Node):
        key = getattr(node, "experience_key", None)
        name = get_literal(getattr(node, _REFERENCES.get(type(node), ""), None))
        yield key if isinstance(key, str) else None, name


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
    route, experiences = get_route(request), get_settings().experiences
    configured = [key for name in _iterate_route_names(route) for key in experiences.get(name, ())]
    seen = get_route_memory(runtime).get(request, route)
    return tuple(dict.fromkeys([*getattr(view, KEYS_ATTRIBUTE, ()), *configured, *seen]))


class Plan:
    """What is known about the pages of a route and its view before the view runs.

    ``keys`` are the keys to ask for. A look at one of ``samples`` tells whether the leak detector searches the page.
    """

    __slots__ = ("is_async", "keys", "samples", "view")

    def __init__(self, view: Callable[..., Any] | None, keys: tuple[str, ...], samples: Iterator[bool]) -> None:
        self.view = view
        self.keys = keys
        self.samples = samples
        self.is_async = view is not None and iscoroutinefunction(view)

    def get_early_keys(self, request: HttpRequest, runtime: Runtime | None = None) -> tuple[str, ...]:
        """Return the keys to ask for before the view runs. A POST gets the view's keys only: it often redirects."""
        if request.method not in ("GET", "HEAD"):
            return tuple(getattr(self.view, KEYS_ATTRIBUTE, ()))
        if "HTTP_AUTHORIZATION" in request.META and get_route(request) in get_route_memory(runtime).late_routes:
            return ()
        return self.keys


NO_PLAN: Final = Plan(None, (), ALWAYS)
"""The plan of a page without a view."""


def get_plan(request: HttpRequest, view: Callable[..., Any], runtime: Runtime) -> Plan:
    """Return the plan of a page. Django has found its route."""
    try:
        return runtime.plans[request.resolver_match.view_name, view]  # type: ignore[union-attr, no-any-return]
    except (KeyError, TypeError):
        # A view may be an object without a hash.
        return _build_plan(request, view, runtime)


def _build_plan(request: HttpRequest, view: Callable[..., Any], runtime: Runtime) -> Plan:
    """Return a new plan, and keep it for the next pages unless it depends on the address."""
    memory, route = get_route_memory(runtime), get_route(request) or ""
    changes = memory.changes
    is_own = getattr(view, "__module__", "") in _ENDPOINTS
    keys = () if is_own else get_planned_keys(request, view, runtime)
    plan = Plan(view, keys, runtime.samples.get(route, ALWAYS))
    if isinstance(view, Hashable) and not memory.is_split(route):
        memory.keep_plan((route, view), plan, changes)
    return plan


def _iterate_route_names(route: str | None) -> Iterator[str]:
    """Yield the names of a route in ``EXPERIENCES``. The route ``a:b:c`` also has ``a:b:*``, ``a:*`` and ``*``."""
    if route is not None:
        yield route
        while ":" in route:
            route = route.rpartition(":")[0]
            yield f"{route}:*"
    yield "*"

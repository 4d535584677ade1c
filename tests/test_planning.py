"""Which keys a page is known to need."""

import threading

import pytest
from asgiref.sync import async_to_sync
from django.test import RequestFactory
from django.urls import ResolverMatch

from django_moe_personalize.decorators import personalize
from django_moe_personalize.mixins import PersonalizeMixin
from django_moe_personalize.planning import (
    KEYS_ATTRIBUTE,
    RouteMemory,
    get_early_keys,
    get_planned_keys,
    get_route,
    route_memory,
)
from django_moe_personalize.testing import override_personalize


def view(request):
    """Answer nothing."""


def routed(name="home", namespaces=(), route="home/"):
    """Return a request that was resolved to a route."""
    request = RequestFactory().get("/")
    request.resolver_match = ResolverMatch(view, (), {}, name, [], list(namespaces), route)
    return request


@pytest.mark.parametrize(
    ("request_", "route"),
    [
        (routed(), "home"),
        (routed("home", ["shop"]), "shop:home"),
        (routed(None), f"{__name__}.view"),
        (RequestFactory().get("/"), None),
    ],
    ids=["name", "namespace", "nameless", "unresolved"],
)
def test_route(request_, route):
    """A route is called by its view name, a nameless one by its view."""
    assert get_route(request_) == route


@pytest.mark.parametrize(
    ("request_", "keys"),
    [
        (routed("home"), ("home", "everywhere")),
        (routed("cart", ["shop"]), ("cart", "shop", "everywhere")),
        (routed("pay", ["shop", "checkout"]), ("checkout", "shop", "everywhere")),
        (routed("other"), ("everywhere",)),
        (RequestFactory().get("/"), ("everywhere",)),
    ],
    ids=["name", "namespace", "nested", "other", "unresolved"],
)
def test_settings_by_route(request_, keys):
    """EXPERIENCES means a view name, a namespace at any depth, and everything."""
    experiences = {
        "home": ["home"],
        "shop:cart": ["cart"],
        "shop:*": ["shop"],
        "shop:checkout:*": ["checkout"],
        "*": ["everywhere"],
    }
    with override_personalize(EXPERIENCES=experiences):
        assert get_planned_keys(request_) == keys


@pytest.mark.parametrize(
    ("method", "keys"),
    [("GET", ("declared", "configured")), ("HEAD", ("declared", "configured")), ("POST", ("declared",))],
)
def test_what_is_asked_early(method, keys):
    """Before a POST's view only what the view itself declares is asked: it may just redirect."""
    request = routed()
    request.method = method
    with override_personalize(EXPERIENCES={"*": ["configured"]}):
        assert get_early_keys(request, personalize("declared")(view)) == keys


def test_own_endpoints_ask_nothing():
    """The beacon and the click are no pages, whatever EXPERIENCES says of everything."""
    request = routed("beacon", ["moe_personalize"])
    request.resolver_match.app_names = ["moe_personalize"]
    with override_personalize(EXPERIENCES={"*": ["configured"]}):
        assert get_early_keys(request, view) == ()


def test_sources_add_up_without_repetition():
    """Decorator, settings and what was learned are one list, each key once."""
    route_memory.learn("home", "c")
    route_memory.learn("home", "a")
    with override_personalize(EXPERIENCES={"home": ["b", "a"]}):
        assert get_planned_keys(routed(), personalize("a", "a")(view)) == ("a", "b", "c")


def test_decorators_add_up_and_leave_the_view_alone():
    """Two decorators declare the keys of both; the view itself, used elsewhere, declares none."""
    decorated = personalize("a")(personalize("b")(view))
    assert getattr(decorated, KEYS_ATTRIBUTE) == ("b", "a")
    assert not hasattr(view, KEYS_ATTRIBUTE)
    assert decorated.__name__ == "view"


def test_decorated_view_runs_without_the_middleware():
    """A view tested on its own, without the middleware, is just the view."""
    assert personalize("a")(lambda request: "answer")(RequestFactory().get("/")) == "answer"


def test_decorated_async_view_runs_without_the_middleware():
    """See test_decorated_view_runs_without_the_middleware()."""

    @personalize("a")
    async def aview(request):
        return "answer"

    assert async_to_sync(aview)(RequestFactory().get("/")) == "answer"


@pytest.mark.parametrize("keys", [("",), (None,), (view,)], ids=["empty", "none", "no parentheses"])
def test_decorator_refuses_what_is_no_key(keys):
    """A mistake in the declaration is found when the module is imported."""
    with pytest.raises(ValueError, match="experience keys are"):
        personalize(*keys)(view)


def test_mixin_refuses_a_bare_string():
    """One key is a list of one."""
    from django.views import View

    class Home(PersonalizeMixin, View):
        experiences = "hero-banner"

    with pytest.raises(ValueError, match="experience keys are"):
        Home.as_view()


def test_mixin_takes_keys_where_the_route_is_made():
    """as_view(experiences=…) wins over the class."""
    from django.views import View

    class Home(PersonalizeMixin, View):
        experiences = ("a",)

    assert getattr(Home.as_view(experiences=["b"]), KEYS_ATTRIBUTE) == ("b",)
    assert getattr(Home.as_view(), KEYS_ATTRIBUTE) == ("a",)


def test_memory_is_bounded():
    """However many routes and keys a site has, the memory of them stays small."""
    memory = RouteMemory(max_routes=2, max_keys=2)
    for route in ("a", "b", "c"):
        for key in ("1", "2", "3"):
            memory.learn(route, key)
    assert [memory.get(route) for route in ("a", "b", "c")] == [(), ("1", "2"), ("1", "2")]
    memory.forget()
    assert memory.get("c") == ()


def test_memory_is_shared_by_threads():
    """No key is lost when threads learn at once."""
    memory = RouteMemory()
    threads = [threading.Thread(target=memory.learn, args=("home", str(n))) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(memory.get("home")) == sorted(str(n) for n in range(50))

"""Which experience keys a page is known to need."""

from types import SimpleNamespace

import django
import pytest
from asgiref.sync import async_to_sync
from django.template import Engine
from django.test import RequestFactory
from django.urls import ResolverMatch
from django.views import View

from django_moe_personalize import planning
from django_moe_personalize.decorators import personalize
from django_moe_personalize.mixins import PersonalizeMixin
from django_moe_personalize.planning import (
    KEYS_ATTRIBUTE,
    MAX_READ_KEYS,
    MAX_TEMPLATES,
    RouteMemory,
    find_template_keys,
    get_plan,
    get_planned_keys,
    get_route_memory,
)
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.views import beacon
from tests.conftest import build_request
from tests.processes import together
from tests.site import RestRequest


def view(request):
    """Return nothing."""


def routed(name="home", namespaces=(), route="home/", path="/"):
    """Return a request with a route."""
    request = RequestFactory().get(path)
    request.resolver_match = ResolverMatch(view, (), {}, name, [], list(namespaces), route)
    return request


@pytest.mark.parametrize(
    ("request_", "keys"),
    [
        (routed("home"), ("home", "everywhere")),
        (routed("cart", ["shop"]), ("cart", "shop", "everywhere")),
        (routed("pay", ["shop", "checkout"]), ("checkout", "shop", "everywhere")),
        (routed("other"), ("everywhere",)),
        (routed(None), ("nameless", "everywhere")),
        (RequestFactory().get("/"), ("everywhere",)),
    ],
    ids=["name", "namespace", "nested", "other", "nameless", "unresolved"],
)
def test_settings_by_route(request_, keys):
    """EXPERIENCES names a view, or the path of a view without a name, a namespace at any depth, or every page."""
    experiences = {"home": ["home"], "shop:cart": ["cart"], "shop:*": ["shop"], "shop:checkout:*": ["checkout"]}
    experiences |= {"*": ["everywhere"], f"{__name__}.view": ["nameless"]}
    with override_personalize(EXPERIENCES=experiences):
        assert get_planned_keys(request_) == keys


@pytest.mark.parametrize(
    ("method", "keys"),
    [("GET", ("declared", "configured")), ("HEAD", ("declared", "configured")), ("POST", ("declared",))],
)
def test_keys_before_the_view(method, keys):
    """A POST asks only for the keys of its view, because it often just redirects. The beacon isn't a page."""
    request = routed()
    request.method = method
    with override_personalize(EXPERIENCES={"*": ["configured"]}):
        assert get_plan(request, personalize("declared")(view), get_runtime()).get_early_keys(request) == keys
        assert get_plan(routed("beacon", ["shop-moe"]), beacon, get_runtime()).keys == ()


def test_plans_are_kept_until_the_memory_changes(monkeypatch):
    """A plan that another thread made before the change is not kept. The memory is bounded."""
    monkeypatch.setattr(planning, "MAX_ROUTES", 2)
    runtime = get_runtime()
    memory, request = get_route_memory(runtime), routed()
    plan = get_plan(request, view, runtime)
    assert get_plan(request, view, runtime) is plan
    before = memory.changes
    memory.learn(request, "hero")
    memory.keep_plan(("home", view), plan, before)
    assert get_plan(request, view, runtime).keys == ("hero",)
    for name in "abc":
        get_plan(routed(name), view, runtime)
    assert len(runtime.plans) == 2


def test_sources_add_up_without_repetition():
    """The keys of the decorator, the settings and earlier pages are one list, each key once."""
    with override_personalize(EXPERIENCES={"home": ["b", "a"]}):
        get_route_memory().learn(routed(), "c")
        get_route_memory().learn(routed(), "a")
        assert get_planned_keys(routed(), personalize("a", "a")(view)) == ("a", "b", "c")


def test_decorators_add_up_and_leave_the_view_alone():
    """Two decorators declare the keys of both. The undecorated view declares none."""
    decorated = personalize("a")(personalize("b")(view))
    assert getattr(decorated, KEYS_ATTRIBUTE) == ("b", "a")
    assert not hasattr(view, KEYS_ATTRIBUTE)
    assert decorated.__name__ == "view"


def test_decorated_views_without_the_middleware():
    """Without the middleware, a decorated view just runs, for example in a unit test."""

    async def aview(request):
        return "answer"

    request = RequestFactory().get("/")
    assert personalize("a")(lambda request: "answer")(request) == "answer"
    assert async_to_sync(personalize("a")(aview))(request) == "answer"


@pytest.mark.parametrize(
    "call",
    [
        lambda view, request: view(request),
        lambda view, request: view(request=request),
        lambda view, request: view(object(), request),
        lambda view, request: view(RestRequest(request)),
        lambda view, request: view(object(), RestRequest(request), pk=1),
        lambda view, request: view(SimpleNamespace(request=RestRequest(request)), 1),
    ],
    ids=["function", "keyword", "method", "rest function", "rest method", "view"],
)
def test_decorator_finds_the_request(upstream, call):
    """The decorator starts one call, even if a framework wraps the request, or a method gets no request."""
    request, keys = build_request(), ["hero-banner", "promo-strip"]
    call(personalize(*keys)(lambda *args, **kwargs: [request.personalization.get(key) for key in keys]), request)
    assert [body["experience_key"] for body in upstream.fetches] == [keys]
    personalize(*keys)(lambda: None)()


@pytest.mark.parametrize("keys", [("",), (None,), (view,)], ids=["empty", "none", "no parentheses"])
def test_decorator_refuses_bad_keys(keys):
    """The decorator raises an error for bad keys when the module is imported."""
    with pytest.raises(ValueError, match="experience keys are"):
        personalize(*keys)(view)


def test_mixin():
    """``as_view(experiences=…)`` wins over the class. Keys must be a list, even for one key."""

    class Home(PersonalizeMixin, View):
        experiences = ("a",)

    assert getattr(Home.as_view(experiences=["b"]), KEYS_ATTRIBUTE) == ("b",)
    assert getattr(Home.as_view(), KEYS_ATTRIBUTE) == ("a",)
    with pytest.raises(ValueError, match="experience keys are"):
        Home.as_view(experiences="hero-banner")


def test_mixin_of_a_viewset():
    """The viewsets of Django REST framework take the actions as a positional argument."""

    class Base:
        @classmethod
        def as_view(cls, actions, **initkwargs):
            return lambda request: actions

    class Viewset(PersonalizeMixin, Base):
        experiences = ("a",)

    viewset = Viewset.as_view({"get": "list"})
    assert (getattr(viewset, KEYS_ATTRIBUTE), viewset(None)) == (("a",), {"get": "list"})


@pytest.mark.parametrize("is_split", [False, True])
def test_route_memory_is_bounded(monkeypatch, is_split):
    """The route that was learned first is forgotten, and a route with enough keys learns no more."""
    memory = RouteMemory((lambda request: "part" * planning.MAX_PART_LENGTH) if is_split else None)
    monkeypatch.setattr(planning, "MAX_ROUTES", 2)
    monkeypatch.setattr(planning, "MAX_KEYS_A_ROUTE", 4)
    for route in ("a", "b", "c"):
        for key in ("1", "2", "3"):
            memory.learn(routed(route), key, limit=2)
    memory.learn(routed("c"), "3", "4", "5", "6")
    found = [memory.get(routed(route), route) for route in ("a", "b", "c")]
    assert found == [(), ("1", "2"), ("1", "2", "3", "4")]
    assert all(len(key) == planning.MAX_PART_LENGTH for _, key in memory._parts)


def test_route_learns_few_keys_from_reads():
    """A view that reads a key for each product teaches its route no more keys than one call carries."""
    for number in range(40):
        get_route_memory().learn(routed(), f"product-{number}", limit=MAX_READ_KEYS)
    assert len(get_planned_keys(routed())) == MAX_READ_KEYS


def test_route_memory_is_shared_by_threads():
    """No key is lost when threads learn at the same time."""
    memory = RouteMemory()
    together(50, lambda number: memory.learn(routed(), str(number)))
    assert sorted(memory.get(routed(), "home")) == sorted(str(number) for number in range(50))


def test_route_is_split_after_a_page_without_its_keys():
    """A page that needs none of its route's keys splits the route: from then on, each path has its own keys."""
    memory, paths = RouteMemory(), ("/a/", "/b/")

    def read():
        return [get_planned_keys(routed(path=path)) for path in paths]

    with get_route_memory.override(memory):
        memory.unlearn(routed())
        memory.learn(routed(path="/a/"), "hero")
        assert read() == [("hero",), ("hero",)]
        memory.unlearn(routed(path="/b/"))
        assert read() == [(), ()]
        memory.learn(routed(path="/a/"), "hero")
        memory.unlearn(routed(path="/b/"))
        assert read() == [("hero",), ()]
        memory.unlearn(routed(path="/a/"))
        assert read() == [(), ()]


def test_route_is_split_on_demand():
    """After split(), each path of a route has its own keys, and the keys of the route are forgotten."""
    memory = RouteMemory()
    memory.learn(routed(), "route")
    for request in (routed(path="/a/"), routed(path="/b/"), RequestFactory().get("/")):
        memory.split(request)
    memory.learn(routed(path="/a/"), "a")
    assert [memory.get(routed(path=path), "home") for path in ("/a/", "/b/")] == [("a",), ()]
    assert memory._routes == {"home": None}
    assert memory.changes == 3


def test_page_without_a_route_learns_nothing():
    """A request that no route has handled has no keys, and teaches none."""
    memory, request = RouteMemory(lambda request: "part"), RequestFactory().get("/")
    memory.learn(request, "hero")
    memory.unlearn(request)
    assert memory.get(request, None) == ()


TEMPLATES = {
    "base.html": "{% load moe_personalize %}{% experience 'base' %}{% endexperience %}{% block a %}{% endblock %}",
    "page.html": "{% extends 'base.html' %}{% load moe_personalize %}{% block a %}"
    "{% if x %}{% experience 'branch' %}{% experience_value 'nested' 'T' %}{% fallback %}"
    "{% experience 'in-fallback' %}{% endexperience %}{% endexperience %}{% endif %}"
    "{% for y in z %}{% include 'piece.html' %}{% endfor %}{% include variable %}{% include 'no-such.html' %}"
    "{% include 'broken.html' %}{% experience variable %}{% endexperience %}"
    "{% experience 'a'|upper %}{% endexperience %}"
    "{% endblock %}",
    "piece.html": "{% load moe_personalize %}{% experience_value 'piece' 'T' %}{% include 'piece.html' %}",
    "broken.html": "{% nonsense %}",
    "plain.html": "plain",
}


def build_engine(**templates):
    """Return an engine with the templates of this module and ``templates``."""
    return Engine(
        libraries={"moe_personalize": "django_moe_personalize.templatetags.moe_personalize"},
        loaders=[("django.template.loaders.locmem.Loader", TEMPLATES | templates)],
    )


def test_keys_of_a_template(monkeypatch):
    """Literal keys are found in all branches, parents, includes and fallbacks. Broken templates are left out.

    The keys are remembered as long as the template exists.
    """
    engine = build_engine()
    template = engine.get_template("page.html")
    assert find_template_keys(engine.get_template("plain.html")) == ()
    keys = find_template_keys(template)
    assert set(keys) == {"base", "branch", "nested", "in-fallback", "piece"}
    monkeypatch.setattr(engine, "get_template", None)
    assert find_template_keys(template) == keys


def test_templates_that_include_each_other_endlessly():
    """The search ends after MAX_TEMPLATES."""
    source = "{%% load moe_personalize %%}{%% experience 'k%d' %%}{%% endexperience %%}{%% include 't%d.html' %%}"
    many = {f"t{n}.html": source % (n, n + 1) for n in range(300)}
    keys = find_template_keys(build_engine(**many).get_template("t0.html"))
    assert len(keys) == MAX_TEMPLATES


if django.VERSION >= (6, 0):

    def test_keys_of_partials():
        """A partial is searched as part of its template, and as a template of its own."""
        tag = "{% experience 'in-partial' %}{% endexperience %}"
        source = f"{{% load moe_personalize %}}{{% partialdef p %}}{tag}{{% endpartialdef %}}"
        engine = build_engine(**{"partials.html": source})
        assert find_template_keys(engine.get_template("partials.html")) == ("in-partial",)
        assert find_template_keys(engine.get_template("partials.html#p")) == ("in-partial",)

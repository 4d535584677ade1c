"""Which keys a page is known to need."""

import threading

import django
import pytest
from asgiref.sync import async_to_sync
from django.template import Engine
from django.test import RequestFactory
from django.urls import ResolverMatch

from django_moe_personalize.decorators import personalize
from django_moe_personalize.mixins import PersonalizeMixin
from django_moe_personalize.planning import (
    KEYS_ATTRIBUTE,
    MAX_TEMPLATES,
    RouteMemory,
    find_template_keys,
    get_early_keys,
    get_planned_keys,
    get_route,
    get_route_memory,
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
    with override_personalize(EXPERIENCES={"home": ["b", "a"]}):
        get_route_memory().learn("home", "c")
        get_route_memory().learn("home", "a")
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


def test_template_tells_its_keys():
    """Literal keys are found in every branch, in parents, includes and fallbacks; what cannot load is passed over."""
    template = build_engine().get_template("page.html")
    assert set(find_template_keys(template)) == {"base", "branch", "nested", "in-fallback", "piece"}
    assert find_template_keys(build_engine().get_template("plain.html")) == ()


def test_template_is_looked_through_once(monkeypatch):
    """What a template needs is remembered as long as the template lives."""
    engine = build_engine()
    template = engine.get_template("page.html")
    keys = find_template_keys(template)
    monkeypatch.setattr(engine, "get_template", None)
    assert find_template_keys(template) == keys


def test_templates_that_include_without_end():
    """However many templates refer to one another, only so many are followed."""
    source = "{%% load moe_personalize %%}{%% experience 'k%d' %%}{%% endexperience %%}{%% include 't%d.html' %%}"
    many = {f"t{n}.html": source % (n, n + 1) for n in range(300)}
    keys = find_template_keys(build_engine(**many).get_template("t0.html"))
    assert len(keys) == MAX_TEMPLATES


if django.VERSION >= (6, 0):

    def test_partials_tell_their_keys():
        """A partial is looked through where it is defined, and as a template of its own."""
        tag = "{% experience 'in-partial' %}{% endexperience %}"
        source = f"{{% load moe_personalize %}}{{% partialdef p %}}{tag}{{% endpartialdef %}}"
        engine = build_engine(**{"partials.html": source})
        assert find_template_keys(engine.get_template("partials.html")) == ("in-partial",)
        assert find_template_keys(engine.get_template("partials.html#p")) == ("in-partial",)

"""Whole pages over the embedded sandbox, each over WSGI and ASGI: what is asked, for whom, and what they show."""

import time

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.http import HttpResponse
from django.test import Client, RequestFactory

from django_moe_personalize.middleware import PersonalizeMiddleware
from django_moe_personalize.planning import MAX_READ_KEYS, get_route_memory
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import reset_runtimes
from django_moe_personalize.testing import override_personalize
from tests.conftest import Visit, settle
from tests.pages import title

pytestmark = pytest.mark.urls("tests.site")

PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148 Safari/604.1"


def test_unpersonalised_page_is_untouched(visit, upstream, settings):
    """A page that reads nothing asks nobody, needs no database, and is the same byte for byte without us."""
    with_us = visit("/plain/")
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "moe_personalize" not in name]
    without_us = type(visit)(visit.mode)("/plain/")
    assert (with_us.status_code, with_us.content) == (without_us.status_code, without_us.content)
    assert dict(with_us.headers) == dict(without_us.headers)
    assert not with_us.cookies
    assert upstream.requests == []


@pytest.mark.parametrize("path", ["/read/", "/aread/"])
def test_view_reads_what_nothing_declared(visit, upstream, path):
    """A site that only reads request.personalization in a view needs nothing else."""
    assert visit(path).content.decode() != "default"
    assert len(upstream.fetches) == 1


@pytest.mark.parametrize("path", ["/tags/", "/atags/", "/class/", "/method/"])
def test_declared_keys_travel_in_one_call(visit, upstream, path):
    """What a decorator or a mixin declares is asked for at once, wherever it stands."""
    response = visit(path)
    assert title(response) != "Welcome"
    assert [sorted(body["experience_key"]) for body in upstream.fetches] == [["hero-banner", "promo-strip"]]


@pytest.mark.parametrize(
    ("path", "experiences"),
    [
        ("/configured/", {"configured": ["hero-banner", "promo-strip"]}),
        ("/configured/", {"*": ["hero-banner", "promo-strip"]}),
        ("/shop/home/", {"shop:home": ["hero-banner"], "*": ["promo-strip"]}),
        ("/shop/home/", {"shop:*": ["hero-banner"], "shop:home": ["hero-banner", "promo-strip"]}),
    ],
    ids=["name", "everywhere", "both", "namespace"],
)
def test_configured_keys_travel_in_one_call(visit, upstream, path, experiences):
    """What EXPERIENCES says for a route is asked for at once."""
    with override_personalize(EXPERIENCES=experiences):
        assert title(visit(path)) != "Welcome"
    assert [sorted(body["experience_key"]) for body in upstream.fetches] == [["hero-banner", "promo-strip"]]


def test_page_that_declares_nothing_asks_once(visit, upstream):
    """The first tag finds the others in the template, so that even the first render is one call."""
    visit("/configured/")
    assert [sorted(body["experience_key"]) for body in upstream.fetches] == [["hero-banner", "promo-strip"]]


def test_route_is_learned(upstream):
    """Keys that only the view's code knows are asked one by one at first, and in one call from then on."""
    Client().get("/one-by-one/")
    assert len(upstream.fetches) == 2
    Client().get("/one-by-one/")
    assert sorted(upstream.fetches[2]["experience_key"]) == ["hero-banner", "promo-strip"]
    assert len(upstream.fetches) == 3


def test_template_response_of_an_async_view_is_complete(visit, upstream):
    """A TemplateResponse says what it will render, so even in the event loop nothing falls back, undeclared."""
    assert title(visit("/atemplate-response/")) != "Welcome"
    assert len(upstream.fetches) == 1


def test_event_loop_is_never_blocked(upstream, caplog):
    """A tag in the event loop whose key nobody declared shows its default, says so, and is learned."""
    visit = Visit("async")
    assert title(visit("/undeclared/")) == "Welcome"
    assert "'hero-banner' was read in async code before its response was there" in caplog.text
    assert upstream.fetches == []
    assert title(visit("/undeclared/")) != "Welcome"
    assert len(upstream.fetches) == 1


def test_second_view_comes_from_the_cache(visit, upstream):
    """The same visitor at the same hour costs one call, absent experiences included."""
    first, second = visit("/tags/"), visit("/tags/")
    assert title(first) == title(second)
    assert len(upstream.fetches) == 1


def test_page_differs_by_where_with_what_and_when_people_come(visit, upstream):
    """An e-mail, a phone and another visitor's browser get different heroes."""
    everyone = title(visit("/tags/"))
    visit.forget_cookies()
    phone = title(visit("/tags/", headers={"User-Agent": PHONE}))
    visit.forget_cookies()
    email = title(visit("/tags/?utm_medium=email"))
    assert len({everyone, phone, email}) == 3
    assert upstream.fetches[-1]["utm_medium"] == "email"
    assert upstream.fetches[-2]["USER_AGENT"] == PHONE


@pytest.mark.django_db
def test_signed_in_customer_is_known(visit, upstream):
    """A signed-in user is asked for by primary key, has no anonymous cookie, and gets their own hero."""
    visit.log_in(User.objects.create(pk=1, username="ada"))
    response = visit("/tags/")
    assert "Ada" in title(response)
    assert upstream.fetches[0]["identifiers"]["customer_id"] == "1"
    assert "moe_id" not in response.cookies


def test_anonymous_visitor_stays_the_same(visit, upstream):
    """The first personalised page mints an id, and later pages send it."""
    response = visit("/tags/")
    cookie = response.cookies["moe_id"]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Lax"
    cache.clear()
    reset_runtimes()
    assert "moe_id" not in visit("/tags/").cookies
    first, second = (body["identifiers"]["customer_id"] for body in upstream.fetches)
    assert first == second


def test_mapping_in_a_view(upstream):
    """request.personalization is a mapping of what this visitor has."""
    seen = {}

    def view(request):
        personalization = request.personalization
        seen["hero"] = personalization["hero-banner"].experience_key
        seen["missing"] = "nope" in personalization
        seen["keys"] = list(personalization)
        seen["len"] = len(personalization)
        seen["repr"] = repr(personalization)
        with pytest.raises(KeyError):
            personalization["nope"]
        return HttpResponse("ok")

    request = RequestFactory().get("/")
    request.session = {}
    PersonalizeMiddleware(view)(request)
    assert seen == {
        "hero": "hero-banner",
        "missing": False,
        "keys": ["hero-banner"],
        "len": 1,
        "repr": "<Personalization of hero-banner, nope>",
    }


def test_async_view_under_a_sync_middleware(upstream, settings):
    """Where an async view runs in a thread of its own, what is configured for it is there before it starts."""
    slow = upstream._sandbox.send

    def answer(request):
        time.sleep(0.02)
        return slow(request, deadline=Deadline(10))

    upstream.answer = answer
    with override_personalize(EXPERIENCES={"undeclared": ["hero-banner", "promo-strip"]}):
        assert title(Client().get("/undeclared/")) != "Welcome"


def test_template_that_reads_an_attribute_of_the_mapping(visit, upstream):
    """A template finds ``identity``; until the metadata is known, MoEngage is asked for an experience of that name."""
    for _ in range(2):
        assert visit("/panel/").content.decode() == "True"
        settle()
    assert [body["experience_key"] for body in upstream.fetches] == [["hero-banner"], ["identity"]]


def test_keys_made_of_what_a_visitor_sends_stay_few(upstream):
    """A view that asks for a key per product teaches its route no more than one call carries."""
    for number in range(40):
        get_route_memory().learn("product", f"product-{number}", limit=MAX_READ_KEYS)
    assert len(get_route_memory().get("product")) == MAX_READ_KEYS

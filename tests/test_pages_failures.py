"""Pages whose vendor, cache, session, settings or visitor misbehave: the status is what it would be without us."""

import logging
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync
from django.http import HttpResponse
from django.template import TemplateDoesNotExist, TemplateSyntaxError

from django_moe_personalize import tracking
from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.fetching.upstream import get_pool
from django_moe_personalize.middleware import PersonalizeMiddleware
from django_moe_personalize.moengage.messages import Response
from django_moe_personalize.resilience import PoolBusy
from django_moe_personalize.testing import override_personalize
from tests.conftest import settle
from tests.pages import text, title

pytestmark = pytest.mark.urls("tests.site")


@pytest.mark.parametrize("name", ["no-such.html", "broken"], ids=["missing", "broken"])
def test_template_response_that_cannot_be_rendered(visit, upstream, settings, name):
    """A broken template fails as it does without us, on both ways in."""
    settings.TEMPLATES = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", {"broken": "{% nonsense %}"})]},
        }
    ]
    with pytest.raises(TemplateDoesNotExist if name == "no-such.html" else TemplateSyntaxError):
        visit(f"/atemplate-response/?name={name}")


def test_template_response_of_another_engine(visit, upstream, settings):
    """A template without nodes to look through is rendered as it is."""
    settings.TEMPLATES = [
        {"BACKEND": "django.template.backends.dummy.TemplateStrings", "DIRS": [Path(__file__).parent]}
    ]
    assert visit("/atemplate-response/?name=broken_cache.py").status_code == 200
    assert upstream.fetches == []


def broken(kind):
    """Return how an upstream of this kind is broken."""
    answers = {
        "400": (400, b'{"title": "Invalid Field Value", "description": "secret@example.com"}'),
        "401": (401, b'{"title": "Authentication required", "description": ""}'),
        "403": (403, b""),
        "429": (429, b""),
        "500": (500, b"oops"),
        "html": (200, b"<!doctype html><title>Gateway</title>"),
        "empty": (200, b""),
        "list": (200, b"[]"),
        "redirect": (307, b""),
    }
    return answers[kind]


@pytest.mark.parametrize("kind", ["refuse", "400", "401", "403", "429", "500", "html", "empty", "list", "redirect"])
@pytest.mark.parametrize("path", ["/tags/", "/atags/", "/read/"])
def test_broken_vendor_never_reaches_the_page(visit, upstream, caplog, kind, path):
    """Whatever the vendor answers, the page is a 200 with its default, and the log says why once."""
    if kind == "refuse":
        upstream.refuse()
    else:
        upstream.respond(*broken(kind))
    for _ in range(3):
        response = visit(path)
        assert response.status_code == 200
        assert "Welcome" in text(response) or "default" in text(response)
    # A thread writes the log after the page.
    settle()
    assert upstream.count("hero-banner") == (0, 0)
    messages = [record.getMessage() for record in caplog.records if "gave no experiences" in record.getMessage()]
    assert len(messages) == 1
    assert "secret@example.com" not in caplog.text


def test_hanging_vendor_costs_one_deadline(visit, upstream):
    """An upstream that never answers costs the page its deadline once, and the default is shown."""
    import threading

    released = threading.Event()

    def hang(request):
        released.wait(20)
        return Response(200, {}, b"{}")

    upstream.answer = hang
    with override_personalize(DEADLINE=0.05):
        assert title(visit("/tags/")) == "Welcome"
        assert "Free returns" in text(visit("/tags/"))
        released.set()
        settle()


def test_stale_answers_serve_when_the_vendor_fails(visit, upstream, monkeypatch):
    """After CACHE_TTL the vendor is asked again; when it fails, what is known serves until CACHE_STALE_TTL."""
    with override_personalize(CACHE_TTL=0, CACHE_STALE_TTL=600):
        fresh = title(visit("/tags/"))
        settle()
        upstream.refuse()
        assert title(visit("/tags/")) == fresh
        settle()
        assert len(upstream.fetches) == 2


def test_breaker_stops_asking(visit, upstream, caplog):
    """After five failures in a row nothing is asked until the breaker lets a probe through."""
    upstream.refuse()
    for _ in range(8):
        assert title(visit("/tags/")) == "Welcome"
    assert len(upstream.fetches) == 5
    assert "circuit breaker went from closed to open" in caplog.text


def test_rate_limit_closes_the_gate(visit, upstream):
    """After a 429 nothing is asked until its Retry-After."""
    upstream.respond(429, b"", **{"retry-after": "30"})
    visit("/tags/")
    visit("/tags/")
    assert len(upstream.fetches) == 1


def test_full_bulkhead_shows_defaults_at_once(visit, upstream, monkeypatch, caplog):
    """When every fetching thread is busy the page does not queue."""

    def busy(*args):
        raise PoolBusy("busy")

    monkeypatch.setattr(get_pool(), "submit", busy)
    assert title(visit("/tags/")) == "Welcome"
    assert "All threads that fetch experiences are busy" in caplog.text


def test_cache_that_is_down_is_a_miss(visit, upstream, settings, caplog):
    """Without its cache a site still gets experiences, and the log says so once, by the kind of error."""
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    assert title(visit("/tags/")) != "Welcome"
    assert title(visit("/tags/")) != "Welcome"
    assert len([r for r in caplog.records if "cache 'default' failed" in r.getMessage()]) == 1
    assert "secret-host" not in caplog.text


def test_database_that_is_down_shows_the_default(visit, upstream, caplog):
    """A session that cannot be read makes nobody anonymous: nothing is asked."""
    visit.client.cookies["sessionid"] = "x" * 32
    # pytest-django refuses the database here, as a database that is down would.
    assert title(visit("/tags/")) == "Welcome"
    assert upstream.fetches == []


@pytest.mark.parametrize(
    "path",
    ["/tags/?utm_medium=%FF%FE", "/tags/?utm_medium=" + "x" * 5000, "/tags/?identifiers=evil&experience_key=x"],
    ids=["invalid", "long", "system"],
)
def test_odd_queries_are_harmless(visit, upstream, path):
    """Whatever the query string holds, the page is a 200 and the body upstream is well-formed."""
    assert visit(path).status_code == 200
    [body] = upstream.fetches
    assert body["experience_key"] == ["hero-banner", "promo-strip"]
    assert isinstance(body["identifiers"], dict)
    assert all(len(value) <= 512 for value in body.values() if isinstance(value, str))


def test_request_without_user_agent(visit, upstream):
    """No user agent is no attribute."""
    assert visit("/tags/").status_code == 200
    assert "USER_AGENT" not in upstream.fetches[0]


def test_disabled(visit, upstream):
    """With ENABLED off every experience is absent, nothing leaves the site, and the page stays cacheable."""
    with override_personalize(ENABLED=False):
        for path in ("/tags/", "/atags/", "/aread/"):
            response = visit(path)
            assert "Cache-Control" not in response.headers
            assert "Welcome" in text(response) or "default" in text(response)
    assert upstream.requests == []


def deny_everything(request):
    """Give no consent."""
    from django_moe_personalize.visitor.consent import Consent

    return Consent(fetch=False, identify=False, track=False)


def test_denied_consent_sends_nothing(visit, upstream):
    """Without consent nothing is asked, stored or counted."""
    with override_personalize(CONSENT="tests.test_pages_failures.deny_everything"):
        response = visit("/tags/")
    assert title(response) == "Welcome"
    assert not response.cookies
    assert upstream.requests == []


def test_global_privacy_control(visit, upstream):
    """Sec-GPC: 1 gets experiences for everyone, without an id, a cookie, a tracked link or an event."""
    response = visit("/tags/", headers={"Sec-GPC": "1"})
    assert title(response) != "Welcome"
    assert "identifiers" not in upstream.fetches[0]
    assert not response.cookies
    assert 'href="/sale/"' in response.content.decode()
    assert [request.path for request in upstream.requests if "events" in request.path] == []


def test_unknown_and_paused_keys_are_explained_once(visit, upstream, caplog, site_page):
    """An experience nobody can get shows its default, and the log says why, once."""
    site_page(
        '{% experience "hero-bannr" %}x{% fallback %}A{% endexperience '
        '%}{% experience_value "spring-sale" "T" default="B" %}'
    )
    for _ in range(2):
        assert text(visit("/page/")) == "AB"
    settle()
    messages = [record.getMessage() for record in caplog.records]
    assert [m for m in messages if "hero-bannr" in m] == [
        "The workspace has no experience 'hero-bannr', so pages show the default. Did you mean 'hero-banner'?"
    ]
    assert len([m for m in messages if "'spring-sale' is paused or scheduled" in m]) == 1


@pytest.fixture
def site_page(settings):
    """Return a function that makes ``/page/`` render a template."""
    from types import ModuleType

    from django.urls import include, path

    from tests import site

    def install(source, keys=("hero-banner",)):
        module = ModuleType("site_page")

        def view(request):
            return site.show(request, "{% load moe_personalize %}" + source)

        module.urlpatterns = [path("page/", view, name="page"), path("moe/", include("django_moe_personalize.urls"))]
        settings.ROOT_URLCONF = module
        return view

    return install


def test_log_is_clean(visit, upstream, caplog):
    """A page on which everything is well writes nothing to the log."""
    with caplog.at_level(logging.INFO, logger="django_moe_personalize"):
        visit("/tags/")
    assert caplog.records == []


@pytest.mark.parametrize(
    "delivery",
    [
        {"BACKEND": "shop.delivery.Nope"},
        {"BACKEND": "django_moe_personalize.delivery.dummy.DummyDelivery", "OPTIONS": {"x": 1}},
    ],
    ids=["missing", "options"],
)
def test_delivery_that_cannot_be(caplog, delivery):
    """A wrong DELIVERY stops a server that starts with it; under a running site it costs events, not pages."""
    with override_personalize(DELIVERY=delivery):
        with pytest.raises(ConfigurationError, match="DELIVERY"):
            PersonalizeMiddleware(lambda request: HttpResponse())
        tracking.record([object()])
        async_to_sync(tracking.arecord)([object()])
    assert caplog.text.count("so events are lost") == 1


@pytest.mark.django_db
def test_session_that_is_gone_at_the_end_of_the_page(visit, upstream):
    """A log-out in another tab does not make a campaign's page fail."""
    visit("/prefetching/?utm_source=a")
    assert visit("/session-lost/?utm_source=b").status_code == 200


def test_failing_metadata_costs_no_page(visit, upstream):
    """Explaining an absent key has a thread of its own, and stops for a while when it fails."""
    calls = []

    def answer(request):
        if "metadata" in request.path:
            calls.append(request)
            return Response(500, {}, b"")
        return Response(200, {}, b'{"experiences": {}}')

    upstream.answer = answer
    for number in range(10):
        assert visit(f"/tags/?utm_source={number}").status_code == 200
        settle()
    assert len(calls) == 1

"""Pages keep their status if MoEngage, the cache, the session, the settings or the visitor misbehave."""

import logging
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync
from django.http import HttpResponse
from django.template import TemplateDoesNotExist, TemplateSyntaxError

from django_moe_personalize import tracking
from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.context import Personalization
from django_moe_personalize.fetching.shared import read_notices
from django_moe_personalize.fetching.upstream import BREAKER_TOPIC
from django_moe_personalize.middleware import PersonalizeMiddleware
from django_moe_personalize.resilience import CircuitBreaker
from django_moe_personalize.testing import override_personalize
from tests import site
from tests.conftest import settle
from tests.pages import text, title
from tests.processes import use_shared_cache  # noqa: F401 - a fixture
from tests.virtual_time import Clock

pytestmark = pytest.mark.urls("tests.site")


@pytest.mark.parametrize("name", ["no-such.html", "broken"], ids=["missing", "broken"])
def test_template_that_cannot_be_rendered(visit, upstream, settings, name):
    """A template that can't be rendered fails as without this package."""
    settings.TEMPLATES = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", {"broken": "{% nonsense %}"})]},
        }
    ]
    with pytest.raises(TemplateDoesNotExist if name == "no-such.html" else TemplateSyntaxError):
        visit(f"/atemplate-response/?name={name}")


def test_template_of_another_engine(visit, upstream, settings):
    """The middleware searches no template of another engine for tags."""
    settings.TEMPLATES = [
        {"BACKEND": "django.template.backends.dummy.TemplateStrings", "DIRS": [Path(__file__).parent]}
    ]
    assert visit("/atemplate-response/?name=broken_cache.py").status_code == 200
    assert upstream.fetches == []


# MoEngage


@pytest.mark.parametrize("path", ["/tags/", "/atags/", "/read/"])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((), "MoEngage fetches fail (TransportError: refused). Pages show cached content or their defaults. Run"),
        ((400, b'{"title": "Invalid Field Value", "description": "secret@example.com"}'), "gave no experiences"),
        (
            (401, b'{"title": "Authentication required", "description": ""}'),
            "fail (AuthenticationError: MoEngage answered 401: ",
        ),
        ((403,), "content or their defaults. Check WORKSPACE_ID, API_KEY and DATA_CENTER."),
        ((429,), "answered 429, rate limited for 5 s). Pages show cached content or their defaults. Raise CACHE_TTL"),
        ((500, b"oops"), "fetches fail (ServerError: MoEngage answered 500). Pages"),
        ((200, b"<!doctype html><title>Gateway</title>"), "fetches fail (InvalidResponseError: "),
        ((200,), "fetches fail (InvalidResponseError: "),
        ((200, b"[]"), "fetches fail (InvalidResponseError: "),
        ((307,), "fetches fail (ResponseError: MoEngage answered 307). Pages"),
    ],
    ids=["refused", "400", "401", "403", "429", "500", "html", "empty", "list", "redirect"],
)
def test_broken_vendor(visit, upstream, caplog, path, answer, said):
    """The page shows its defaults with status 200, and the log says why, once."""
    if answer:
        upstream.respond(*answer)
    else:
        upstream.refuse()
    for _ in range(3):
        response = visit(path)
        assert response.status_code == 200
        assert "Welcome" in text(response) or "default" in text(response)
    settle()
    assert upstream.count("hero-banner") == (0, 0)
    assert len(caplog.records) == 1
    assert said in caplog.text
    assert "secret@example.com" not in caplog.text


def test_hanging_vendor(visit, upstream):
    """At the deadline the page shows its defaults."""
    upstream.hold()
    with override_personalize(DEADLINE=0.05):
        assert title(visit("/tags/")) == "Welcome"
        assert "Free returns" in text(visit("/tags/"))


def test_breaker_stops_the_calls(visit, upstream, monkeypatch, caplog):
    """After five failures in a row pages ask nothing. The log tells the start and the end, once each."""
    # On a slow machine the breaker would probe in the meantime.
    clock = Clock()
    monkeypatch.setitem(CircuitBreaker.__init__.__kwdefaults__, "clock", clock)
    upstream.refuse()
    for _ in range(8):
        assert title(visit("/tags/")) == "Welcome"
    assert len(upstream.fetches) == 5
    assert len(caplog.records) == 1
    upstream.answer = None
    clock.now += 5
    visit("/tags/")
    settle()
    assert title(visit("/tags/")) != "Welcome"
    assert [record.getMessage() for record in caplog.records][1:] == [
        "MoEngage fetches work again after 0 s (5 failed, 4 not made)."
    ]


@pytest.mark.parametrize("headers", [{"retry-after": "30"}, {"x-ratelimit-reset": "30"}], ids=lambda h: next(iter(h)))
def test_rate_limit(visit, upstream, shared, monkeypatch, caplog, headers):
    """Until the rate limit ends, pages show cached content or defaults. One log line and one notice tell the reason."""
    clock = Clock()
    monkeypatch.setitem(CircuitBreaker.__init__.__kwdefaults__, "clock", clock)
    with override_personalize(CACHE_TTL=0, IMPRESSIONS="manual"):
        fresh = text(visit("/read/"))
        settle()
        upstream.respond(429, b"", **headers)
        for _ in range(3):
            assert text(visit("/read/")) == fresh
            settle()
            assert "Free returns" in text(visit("/tags/"))
            settle()
        assert len(upstream.fetches) == 2
        assert [record.getMessage() for record in caplog.records] == [
            "MoEngage fetches fail (RateLimitedError: MoEngage answered 429, rate limited for 30 s). Pages show cached "
            "content or their defaults. Raise CACHE_TTL, narrow VARY_CACHE_ON, or ask MoEngage for a higher limit."
        ]
        (notice,) = read_notices(BREAKER_TOPIC)
        assert (notice["state"], notice["reason"]) == ("open", "rate limited for 30 s")
        upstream.answer = None
        clock.now += 30
        assert "Free returns" not in text(visit("/tags/"))
        assert len(upstream.fetches) == 3


def test_full_pool(visit, upstream, fill_pool, caplog):
    """If all fetching threads are busy, the page shows its defaults at once."""
    fill_pool()
    assert title(visit("/tags/")) == "Welcome"
    assert "Fetches find no free thread (busy). Pages show cached content or their defaults. Find" in caplog.text


def test_keys_without_an_experience(visit, upstream, caplog, serve):
    """The page shows the defaults, and the log says once why."""
    tags = (
        '{% experience "hero-bannr" %}x{% fallback %}A{% endexperience %}{% experience_value "spring-sale" "T" "B" %}'
    )
    serve(lambda request: site.show(request, "{% load moe_personalize %}" + tags.replace('"B"', 'default="B"')))
    for _ in range(2):
        assert text(visit("/page/")) == "AB"
    settle()
    assert [record.getMessage() for record in caplog.records] == [
        "The workspace has no experience 'hero-bannr', so pages show the default. Did you mean 'hero-banner'?",
        "Experience 'spring-sale' is paused or scheduled, so pages show the default.",
    ]


def test_bug_in_a_transport(visit, upstream, caplog):
    """An unexpected error shows the default. The log has its type and not its text."""

    def answer(request):
        raise KeyError("ada@example.com")

    upstream.answer = answer
    with caplog.at_level(logging.DEBUG):
        assert title(visit("/tags/")) == "Welcome"
    assert "failed unexpectedly (KeyError)" in caplog.text
    assert "ada@example.com" not in caplog.text


# The site


def test_broken_cache(visit, upstream, settings, caplog):
    """Without its cache the site still gets experiences. The log says so once, without the cache's address."""
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    for _ in range(2):
        assert title(visit("/tags/")) != "Welcome"
    assert len([r for r in caplog.records if "cache 'default' fails" in r.getMessage()]) == 1
    assert "secret-host" not in caplog.text


def test_broken_database(visit, upstream, caplog):
    """If the session can't be read, the visitor isn't known, and the page asks nothing."""
    visit.client.cookies["sessionid"] = "x" * 32
    # pytest-django refuses the database here, as a broken database does.
    assert title(visit("/tags/")) == "Welcome"
    assert upstream.fetches == []


@pytest.mark.django_db
def test_session_that_ends_during_the_page(visit, upstream):
    """A logout in another tab doesn't fail a page with a campaign."""
    visit("/prefetching/?utm_source=a")
    assert visit("/session-lost/?utm_source=b").status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DELIVERY", {"BACKEND": "shop.delivery.Nope"}),
        ("DELIVERY", {"BACKEND": "django_moe_personalize.delivery.dummy.DummyDelivery", "OPTIONS": {"x": 1}}),
        ("DEADLINE", "soon"),
    ],
    ids=["missing", "options", "deadline"],
)
def test_wrong_settings(caplog, name, value):
    """Wrong settings stop a server at its start, even without system checks. A running site only loses events."""
    with override_personalize(**{name: value}):
        with pytest.raises(ConfigurationError, match=name):
            PersonalizeMiddleware(lambda request: HttpResponse())
        tracking.record([object()])
        async_to_sync(tracking.arecord)([object()])
    assert caplog.text.count("so events are lost") == 1


def test_site_without_credentials(rf, caplog):
    """The server starts, the pages show their defaults, and the log names the missing credentials."""
    with override_personalize(SANDBOX=False):
        PersonalizeMiddleware(lambda request: HttpResponse())
        request = rf.get("/")
        assert Personalization(request).get("hero-banner") is None
        settle()
    assert "MoEngage can't be asked, so pages show their defaults" in caplog.text
    assert "WORKSPACE_ID" in caplog.text


# The visitor


def test_disabled(visit, upstream):
    """With ENABLED off pages show their defaults, ask nothing and stay public."""
    with override_personalize(ENABLED=False):
        for path in ("/tags/", "/atags/", "/aread/"):
            response = visit(path)
            assert "Cache-Control" not in response.headers
            assert "Welcome" in text(response) or "default" in text(response)
    assert upstream.requests == []


def test_denied_consent(visit, upstream):
    """Without consent the page asks, stores and counts nothing."""
    with override_personalize(CONSENT="tests.site.deny_everything"):
        response = visit("/tags/")
    assert title(response) == "Welcome"
    assert not response.cookies
    assert upstream.requests == []


def test_global_privacy_control(visit, upstream):
    """Sec-GPC: 1 gets the experiences for all users, without an id, a cookie, a tracked link or an event."""
    response = visit("/tags/", headers={"Sec-GPC": "1"})
    assert title(response) != "Welcome"
    assert "identifiers" not in upstream.fetches[0]
    assert not response.cookies
    assert 'href="/sale/"' in response.content.decode()
    assert [request.path for request in upstream.requests if "events" in request.path] == []


def test_log_of_a_good_page(visit, upstream, caplog):
    """A page without errors logs nothing."""
    with caplog.at_level(logging.INFO, logger="django_moe_personalize"):
        visit("/tags/")
    assert caplog.records == []

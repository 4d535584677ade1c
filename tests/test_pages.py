"""Whole pages over the embedded sandbox, each over WSGI and ASGI."""

import html
import logging
import re
import time
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.cache import cache
from django.http import HttpResponse
from django.template import TemplateDoesNotExist, TemplateSyntaxError
from django.test import Client, RequestFactory

from django_moe_personalize import cache as experience_cache
from django_moe_personalize import fetch, track
from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.middleware import PersonalizeMiddleware
from django_moe_personalize.moengage.transport import Response
from django_moe_personalize.planning import MAX_READ_KEYS, route_memory
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.testing import override_personalize
from tests.conftest import Visit, settle

pytestmark = pytest.mark.urls("tests.site")

PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148 Safari/604.1"


def text(response):
    """Return a response's body as text, streamed ones too."""
    if not response.streaming:
        return html.unescape(response.content.decode())
    if response.is_async:
        from asgiref.sync import async_to_sync

        async def collect():
            return b"".join([part async for part in response])

        return html.unescape(async_to_sync(collect)().decode())
    return html.unescape(b"".join(response).decode())


def title(response):
    """Return what the hero's heading says."""
    return re.search(r"<h1>(.*?)</h1>", text(response))[1]


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


def test_template_response_of_an_async_view_is_complete(visit, upstream):
    """A TemplateResponse says what it will render, so even in the event loop nothing falls back, undeclared."""
    assert title(visit("/atemplate-response/")) != "Welcome"
    assert len(upstream.fetches) == 1


def test_event_loop_is_never_blocked(upstream, caplog):
    """A tag in the event loop whose key nobody declared shows its default, says so, and is learned."""
    visit = Visit("async")
    assert title(visit("/undeclared/")) == "Welcome"
    assert "'hero-banner' was read in async code before it was there" in caplog.text
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
    experience_cache.forget()
    assert "moe_id" not in visit("/tags/").cookies
    first, second = (body["identifiers"]["customer_id"] for body in upstream.fetches)
    assert first == second


@pytest.mark.parametrize("path", ["/tags/", "/atags/", "/template-response/", "/missing/", "/read/"])
def test_personalised_page_is_private(visit, upstream, path):
    """A page that read an experience says that no cache may keep it."""
    response = visit(path)
    assert response.headers["Cache-Control"] == "private, no-store"
    assert "Cookie" in response.headers["Vary"]


def test_impressions_count_once_a_view(visit, upstream):
    """Two views of a page are two impressions of what they showed."""
    visit("/tags/")
    visit("/tags/")
    assert upstream.count("hero-banner") == (2, 0)
    assert upstream.count("promo-strip") == (2, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "head"},
        {"headers": {"Sec-Purpose": "prefetch;prerender"}},
        {"headers": {"Purpose": "prefetch"}},
        {"headers": {"User-Agent": "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"}},
    ],
    ids=["head", "sec-purpose", "purpose", "robot"],
)
def test_only_people_are_counted(visit, upstream, options):
    """A HEAD, a prefetch and a robot get the page and count nothing."""
    assert visit("/tags/", **options).status_code == 200
    assert len(upstream.fetches) == 1
    assert upstream.count("hero-banner") == (0, 0)


@pytest.mark.parametrize("path", ["/missing/", "/failing/"])
def test_error_pages_count_nothing(visit, upstream, path):
    """What was rendered into a page that is no 200 was not shown."""
    visit.client.raise_request_exception = False
    assert visit(path).status_code in (404, 500)
    assert upstream.count("hero-banner") == (0, 0)


def test_click_is_counted_and_goes_on(visit, upstream):
    """A click on the tag's link redirects to its destination and counts once, however often it is replayed."""
    url = re.search(r'href="([^"]+)"', visit("/tags/").content.decode())[1]
    for _ in range(3):
        response = visit(html.unescape(url))
        assert (response.status_code, response.headers["Location"]) == (302, "/sale/")
    assert upstream.count("hero-banner") == (1, 1)
    [click] = [entry for entry in upstream.engine.ledger.entries() if entry.action.endswith("CLICKED")]
    assert click.element == "cta"


def test_click_of_another_visitor_is_not_counted(visit, upstream):
    """A link that was passed on still works, and counts for nobody."""
    url = re.search(r'href="([^"]+)"', visit("/tags/").content.decode())[1]
    visit.forget_cookies()
    assert visit(html.unescape(url)).status_code == 302
    assert upstream.count("hero-banner") == (1, 0)


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
        raise fetch.PoolBusy("busy")

    monkeypatch.setattr(fetch.get_pool(), "submit", busy)
    assert title(visit("/tags/")) == "Welcome"
    assert "threads are busy" in caplog.text


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
    from django_moe_personalize.consent import Consent

    return Consent(fetch=False, identify=False, track=False)


def test_denied_consent_sends_nothing(visit, upstream):
    """Without consent nothing is asked, stored or counted."""
    with override_personalize(CONSENT="tests.test_pages.deny_everything"):
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
        "Experience key 'hero-bannr' is not in the workspace; its default is shown. Did you mean 'hero-banner'?"
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


def test_streaming_page_that_declared_its_keys(visit, upstream):
    """A streaming page is private from the start when it declared keys, and counts when it has ended."""
    response = visit("/streaming-declared/")
    assert response.headers["Cache-Control"] == "private, no-store"
    assert upstream.count("hero-banner") == (0, 0)
    assert title(response) != "Welcome"
    assert upstream.count("hero-banner") == (1, 0)


def test_streaming_page_that_declared_nothing(visit, upstream):
    """What a stream reads after unsealed headers have left is the default: a cache may keep it."""
    response = visit("/streaming/")
    assert "Cache-Control" not in response.headers
    assert title(response) == "Welcome"
    assert upstream.fetches == []


def test_explicit_tracking(visit, upstream):
    """A view that stands for an app's screen reports impressions and clicks itself."""
    assert visit("/method/", method="post").status_code == 200
    assert upstream.count("hero-banner")[1] == 1


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

    from django_moe_personalize.middleware import PersonalizeMiddleware

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
        track.record([object()])
        async_to_sync(track.arecord)([object()])
    assert caplog.text.count("Events are lost") == 1


def test_async_view_under_a_sync_middleware(upstream, settings):
    """Where an async view runs in a thread of its own, what is configured for it is there before it starts."""
    slow = upstream._sandbox.send

    def answer(request):
        time.sleep(0.02)
        return slow(request, deadline=Deadline(10))

    upstream.answer = answer
    with override_personalize(EXPERIENCES={"undeclared": ["hero-banner", "promo-strip"]}):
        assert title(Client().get("/undeclared/")) != "Welcome"


@pytest.mark.django_db
def test_page_that_remembers_a_campaign_is_sealed(visit, upstream):
    """A page that read nothing, but whose query went into the session, sets a cookie: no cache may share it."""
    response = visit("/prefetching/?utm_source=x")
    assert "sessionid" in response.cookies
    assert response.headers["Cache-Control"] == "private, no-store"
    visit.forget_cookies()
    assert visit("/prefetching/").headers["Cache-Control"] == "public, max-age=300"


@pytest.mark.django_db
def test_session_that_is_gone_at_the_end_of_the_page(visit, upstream):
    """A log-out in another tab does not make a campaign's page fail."""
    visit("/prefetching/?utm_source=a")
    assert visit("/session-lost/?utm_source=b").status_code == 200


def test_sealed_page_tells_no_cdn_otherwise(visit, upstream):
    """Headers that only a CDN reads do not outlive the seal."""
    response = visit("/cdn/")
    assert response.headers["Cache-Control"] == "private, no-store"
    assert not {"CDN-Cache-Control", "Surrogate-Control", "Expires"} & set(response.headers)


def test_attributes_of_the_mapping_are_no_keys(visit, upstream):
    """A template that looks at what was sent asks nobody for an experience of that name."""
    page = visit("/panel/").content.decode()
    settle()
    assert page == "True|hero-banner,"
    assert [body["experience_key"] for body in upstream.fetches] == [["hero-banner"]]


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/moe/click/x/", "/moe/beacon/"])
def test_endpoints_need_no_login(visit, settings, path):
    """A site behind LoginRequiredMiddleware still counts what its public pages show."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
    method, status = ("get", 400) if "click" in path else ("post", 204)
    assert visit(path, method=method).status_code == status


def test_telephones_are_no_robots(visit, upstream):
    """A brand of telephones has a name like a robot's."""
    visit("/tags/", headers={"User-Agent": "Mozilla/5.0 (Linux; Android 9; CUBOT CHEETAH 2) AppleWebKit/537.36"})
    assert upstream.count("hero-banner") == (1, 0)


def test_keys_made_of_what_a_visitor_sends_stay_few(upstream):
    """A view that asks for a key per product teaches its route no more than one call carries."""
    for number in range(40):
        route_memory.learn("product", f"product-{number}", limit=MAX_READ_KEYS)
    assert len(route_memory.get("product")) == MAX_READ_KEYS


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


def test_server_timing_is_for_developers(visit, upstream, settings):
    """With DEBUG on a page says what it asked, what came and how long it waited; beside what others say."""
    assert "Server-Timing" not in visit("/tags/").headers
    settings.DEBUG = True
    assert re.fullmatch(
        r'moe;desc="2 asked, 2 came, 2 from the cache";dur=\d+\.\d', visit("/tags/").headers["Server-Timing"]
    )
    assert visit("/cdn/?timing=db").headers["Server-Timing"].startswith("db;dur=1, moe;desc=")
    assert "Server-Timing" not in visit("/plain/").headers


@pytest.mark.django_db
def test_server_timing_is_for_staff(visit, upstream):
    """A signed-in member of the staff sees it on the live site, a customer does not."""
    visit.log_in(User.objects.create(pk=1, username="ada"))
    assert "Server-Timing" not in visit("/tags/").headers
    visit.log_in(User.objects.create(pk=7, username="grace", is_staff=True))
    assert "2 asked" in visit("/tags/").headers["Server-Timing"]

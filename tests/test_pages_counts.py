"""The events that personalized pages report, and their headers."""

import html
import re
import threading

import pytest
from django.contrib.auth.models import User
from django.test import Client

from django_moe_personalize.testing import override_personalize
from django_moe_personalize.visitor import gather
from tests.pages import BROWSER, text, title

pytestmark = pytest.mark.urls("tests.site")


def find_link(response):
    return html.unescape(re.search(r'href="([^"]+)"', response.content.decode())[1])


@pytest.mark.parametrize("path", ["/tags/", "/atags/", "/template-response/", "/missing/", "/read/"])
def test_personalized_page_is_private(visit, upstream, path):
    """No cache may keep a page that read an experience."""
    response = visit(path)
    assert response.headers["Cache-Control"] == "private, no-store"
    assert "Cookie" in response.headers["Vary"]


@pytest.mark.parametrize("path", ["/tags/", "/read/", "/hidden/"])
def test_page_of_a_remembered_visitor(upstream, settings, path):
    """Without users, the process finds a visitor by raw headers. Each page is private, shows and counts the same."""
    settings.MIDDLEWARE = ["django_moe_personalize.middleware.PersonalizeMiddleware"]
    client = Client()
    for _ in range(4):
        response = client.get(path, headers={"User-Agent": BROWSER})
        assert response.headers["Cache-Control"] == "private, no-store"
        assert b"Welcome" not in response.content
    assert len(gather.get_remembered()) == 2
    assert len({str(body["identifiers"]) for body in upstream.fetches}) == 1


@pytest.mark.django_db
def test_page_that_stores_a_campaign_is_private(visit, upstream):
    """A page that stores query parameters is private, because it sets the cookie that stores them."""
    response = visit("/prefetching/?utm_source=x")
    assert "moe_query" in response.cookies
    assert response.headers["Cache-Control"] == "private, no-store"
    visit.forget_cookies()
    assert visit("/prefetching/").headers["Cache-Control"] == "public, max-age=300"


def test_impressions_count_once_a_page(visit, upstream):
    """Two pages are two impressions of each experience that they showed."""
    for _ in range(2):
        visit("/tags/")
    assert (upstream.count("hero-banner"), upstream.count("promo-strip")) == ((2, 0), (2, 0))


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("/tags/", {"method": "head"}, 200),
        ("/tags/", {"headers": {"Sec-Purpose": "prefetch;prerender"}}, 200),
        ("/tags/", {"headers": {"User-Agent": "Mozilla/5.0 (compatible; Googlebot/2.1)"}}, 200),
        ("/missing/", {}, 404),
        ("/failing/", {}, 500),
    ],
    ids=["head", "prefetch", "robot", "not-found", "error"],
)
def test_pages_without_an_impression(visit, upstream, path, options, status):
    """A HEAD, a prefetch, a robot and an error page show nothing to a person."""
    visit.client.raise_request_exception = False
    assert visit(path, **options).status_code == status
    assert len(upstream.fetches) == 1
    assert upstream.count("hero-banner") == (0, 0)


def test_click_counts_and_redirects(visit, upstream):
    """A tracked link counts one click, however often the browser follows it."""
    link = find_link(visit("/tags/"))
    for _ in range(3):
        response = visit(link)
        assert (response.status_code, response.headers["Location"]) == (302, "/sale/")
    assert upstream.count("hero-banner") == (1, 1)
    (click,) = [entry for entry in upstream.engine.ledger.entries() if entry.action.endswith("CLICKED")]
    assert click.element == "cta"


@pytest.mark.parametrize(("setting", "customers"), [("always", 15), ("returning", 0)])
@pytest.mark.parametrize("path", ["/tags/", "/atags/", "/streaming-declared/", "/method/"])
def test_visits_without_cookies(visit, upstream, setting, customers, path):
    """Each visit without cookies gets content and a new id. With "returning" none of these ids becomes a profile."""
    with override_personalize(ANONYMOUS_EVENTS=setting):
        for _ in range(15):
            visit.forget_cookies()
            assert title(visit(path)) != "Welcome"
    entries = upstream.engine.ledger.entries()
    assert len({entry.customer_id for entry in entries}) == customers


@pytest.mark.parametrize("mode", ["render", "visible"])
def test_anonymous_visitor_who_returns(visit, upstream, mode):
    """With "returning", the next page, a click or a beacon shows that the browser keeps the cookie, and counts."""
    with override_personalize(ANONYMOUS_EVENTS="returning", IMPRESSIONS=mode):
        first = visit("/tags/")
        visit("/method/", method="post")
        assert upstream.count("hero-banner") == (0, 1)
        visit(find_link(first))
        assert upstream.count("hero-banner") == (0, 2)
        marks = re.findall(r'data-moe-experience="([^"]+)"', first.content.decode())
        reports = {"events": [["impression", token] for token in marks]}
        visit("/moe/beacon/", method="post", data=reports, content_type="application/json")
        assert upstream.count("hero-banner") == (mode == "visible", 2)
        visit("/tags/")
        assert upstream.count("hero-banner") == (1, 2)
        visit.forget_cookies()
        visit("/method/", method="post")
        assert upstream.count("hero-banner") == (1, 2)


@pytest.mark.django_db
def test_customer_counts_from_the_first_page(visit, upstream):
    """With "returning", a signed-in user counts at once, because the id is not a new one."""
    visit.log_in(User.objects.create(pk=42, username="ada"))
    with override_personalize(ANONYMOUS_EVENTS="returning"):
        visit("/tags/")
    assert upstream.count("hero-banner") == (1, 0)


def test_click_of_another_visitor(visit, upstream):
    """A link that was passed on works, and counts nothing."""
    link = find_link(visit("/tags/"))
    visit.forget_cookies()
    assert visit(link).status_code == 302
    assert upstream.count("hero-banner") == (1, 0)


def test_streamed_page_that_declares_its_keys(visit, upstream):
    """The page is private from the start and waits for MoEngage. It counts after the stream, even from memory."""
    for before in range(2):
        answer = upstream.hold()
        response = visit("/streaming-declared/")
        # A stream that doesn't wait is rendered before that.
        threading.Timer(0.1, answer).start()
        assert response.headers["Cache-Control"] == "private, no-store"
        assert upstream.count("hero-banner") == (before, 0)
        assert title(response) != "Welcome"
        assert upstream.count("hero-banner") == (before + 1, 0)
    assert len(upstream.fetches) == 1


def test_marks_of_a_streamed_page(visit):
    """A streamed page has no comments: the package can't remove a comment that a browser would show as text."""
    with override_personalize(IMPRESSIONS="visible"):
        page = text(visit("/streaming-declared/"))
        assert "<h1 data-moe-experience=" in page
        assert "<!--" not in page
        assert "</a>\n<!--/moe-->" in text(visit("/tags/"))


def test_streamed_page_that_declares_nothing(visit, upstream):
    """A streamed page that declares no key has public headers, so it shows the defaults."""
    response = visit("/streaming/")
    assert "Cache-Control" not in response.headers
    assert title(response) == "Welcome"
    assert upstream.fetches == []


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/moe/click/x/", "/moe/beacon/"])
def test_endpoints_need_no_login(visit, settings, path):
    """A site with LoginRequiredMiddleware counts the events of its public pages."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
    method, status = ("get", 400) if "click" in path else ("post", 204)
    assert visit(path, method=method).status_code == status


def test_server_timing_for_developers(visit, upstream, settings):
    """With DEBUG on, Server-Timing has the numbers of keys and experiences, and the time that the page waited."""
    assert "Server-Timing" not in visit("/tags/").headers
    settings.DEBUG = True
    visit("/tags/")
    timing = visit("/tags/").headers["Server-Timing"]
    assert re.match(
        r'moe;desc="2 asked, 2 came, 2 from the cache";dur=\d+\.\d, moe-key1;desc="hero-banner: cache', timing
    )
    assert visit("/cdn/?timing=db").headers["Server-Timing"].startswith("db;dur=1, moe;desc=")
    assert "Server-Timing" not in visit("/plain/").headers


@pytest.mark.django_db
def test_server_timing_for_staff(visit, upstream):
    """On the live site, only staff get the Server-Timing header."""
    visit.log_in(User.objects.create(pk=1, username="ada"))
    assert "Server-Timing" not in visit("/tags/").headers
    visit.log_in(User.objects.create(pk=7, username="grace", is_staff=True))
    assert "2 asked" in visit("/tags/").headers["Server-Timing"]


@pytest.mark.django_db
def test_server_timing_if_the_users_model_fails(visit, upstream, monkeypatch):
    """A page doesn't fail if the site's user model has to query whether the user is staff."""
    visit.log_in(User.objects.create(pk=7, username="grace"))
    monkeypatch.setattr(User, "is_staff", property(lambda user: 1 / 0, lambda user, value: None))
    assert visit("/tags/").status_code == 200

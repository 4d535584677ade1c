"""What a personalised page counts, and what its headers say."""

import html
import re

import pytest
from django.contrib.auth.models import User

from tests.pages import title

pytestmark = pytest.mark.urls("tests.site")


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


@pytest.mark.django_db
def test_page_that_remembers_a_campaign_is_sealed(visit, upstream):
    """A page that read nothing, but whose query went into the session, sets a cookie: no cache may share it."""
    response = visit("/prefetching/?utm_source=x")
    assert "sessionid" in response.cookies
    assert response.headers["Cache-Control"] == "private, no-store"
    visit.forget_cookies()
    assert visit("/prefetching/").headers["Cache-Control"] == "public, max-age=300"


def test_sealed_page_tells_no_cdn_otherwise(visit, upstream):
    """Headers that only a CDN reads do not outlive the seal."""
    response = visit("/cdn/")
    assert response.headers["Cache-Control"] == "private, no-store"
    assert not {"CDN-Cache-Control", "Surrogate-Control", "Expires"} & set(response.headers)


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

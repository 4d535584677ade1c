"""Personalized pages and Django's own page caches: no visitor gets the page of another."""

from types import ModuleType

import pytest
from django.http import HttpResponse
from django.urls import include, path
from django.views.decorators.cache import cache_page

from django_moe_personalize.decorators import personalize
from django_moe_personalize.types import Experience
from tests.site import show

OURS = "django_moe_personalize.middleware.PersonalizeMiddleware"
UPDATE = "django.middleware.cache.UpdateCacheMiddleware"
FETCH = "django.middleware.cache.FetchFromCacheMiddleware"


def read(request):
    """Show the visitor's id, and whether there is an experience."""
    hero = request.personalization.get("hero-banner")
    return HttpResponse(f"{request.personalization.identity.customer_id} {hero is not None}")


def plain(request):
    """Show a page that a cache may keep, different on each call."""
    plain.calls += 1
    return HttpResponse(str(plain.calls))


plain.calls = 0


LINK = "{% load moe_personalize %}{% click_url hero '/sale/' %}"
VISITOR = {
    "identity": lambda request: request.personalization.identity.customer_id,
    "consent": lambda request: request.personalization.consent,
    "attributes": lambda request: sorted(request.personalization.attributes.items()),
    "names": lambda request: list(request.personalization),
    "number": lambda request: len(request.personalization),
    "token": lambda request: show(request, LINK, hero=HERO).content.decode(),
}
"""Functions that return something about one visitor, and read no experience by its key."""

HERO = Experience("hero", {}, {"cid": "1"})


@personalize("hero-banner")
def tell(request, name):
    return HttpResponse(str(VISITOR[name](request)))


@personalize("hero-banner")
async def atell(request, name):
    await request.personalization.aload()
    return tell(request, name)


def show_early(request):
    return HttpResponse(f"{request.early} True")


def read_early(view):
    """Read an experience before the view: a middleware, or a decorator around cache_page."""

    def wrapper(request):
        request.early = f"{request.personalization.identity.customer_id} {request.personalization.get('hero-banner')}"
        return view(request)

    return wrapper


@pytest.fixture
def routes(settings):
    module = ModuleType("routes")
    module.urlpatterns = [
        path("read/", read),
        path("plain/", plain),
        path("inner/", personalize("hero-banner")(cache_page(60)(read))),
        path("outer/", cache_page(60)(personalize("hero-banner")(read))),
        path("early/", read_early(cache_page(60)(show_early))),
        path("early-middleware/", cache_page(60)(show_early)),
        path("plain-cached/", cache_page(60)(plain)),
        path("tell/<name>/", cache_page(60)(tell)),
        path("atell/<name>/", cache_page(60)(atell)),
        path("moe/", include("django_moe_personalize.urls")),
    ]
    settings.ROOT_URLCONF = module


@pytest.mark.parametrize(
    ("middleware", "url"),
    [
        ([UPDATE, OURS, FETCH], "/read/"),
        ([OURS, UPDATE, FETCH], "/read/"),
        ([UPDATE, FETCH, OURS], "/read/"),
        ([OURS], "/inner/"),
        ([OURS], "/outer/"),
        ([OURS], "/early/"),
        ([OURS, f"{__name__}.read_early"], "/early-middleware/"),
    ],
)
def test_personalized_page_is_stored_by_no_page_cache(upstream, visit, routes, settings, middleware, url):
    """A second visitor never gets the page of the first, whatever the order of the middleware."""
    settings.MIDDLEWARE = middleware
    first = visit(url).content
    visit.forget_cookies()
    second = visit(url).content
    assert first.endswith(b"True")
    assert first != second


@pytest.mark.parametrize(("middleware", "url"), [([UPDATE, OURS, FETCH], "/plain/"), ([OURS], "/plain-cached/")])
def test_page_that_reads_nothing_is_stored(visit, routes, settings, middleware, url):
    """A page without experiences stays cacheable."""
    settings.MIDDLEWARE = middleware
    assert visit(url).content == visit(url).content


@pytest.mark.parametrize("view", ["tell", "atell"])
@pytest.mark.parametrize("name", VISITOR)
def test_what_tells_about_one_visitor_makes_the_page_private(upstream, visit, routes, view, name):
    """A page that shows anything about its visitor is private, is stored by no cache, and keeps the anonymous id."""
    url = f"/{view}/{name}/"
    first = visit(url, headers={"User-Agent": "first"})
    assert first.headers["Cache-Control"] == "private, no-store"
    known = first.cookies["moe_id"].value.partition(":")[0]
    if name == "identity":
        assert first.content.decode() == known
    visit.forget_cookies()
    second = visit(url, headers={"User-Agent": "second", "Sec-GPC": "1"})
    assert second.headers["Cache-Control"] == "private, no-store"
    assert (first.content == second.content) == (name in ("names", "number"))


def show_late(get_response):
    """Show the visitor on a page that replaces the sealed page."""

    def middleware(request):
        get_response(request)
        return HttpResponse(f"{VISITOR['identity'](request)}{VISITOR['token'](request)}")

    return middleware


@pytest.mark.parametrize("url", ["/plain/", "/tell/token/"])
def test_page_that_replaces_a_sealed_page_shows_no_visitor(upstream, client, routes, settings, url):
    """After the page is sealed, the visitor is unknown and links have no token."""
    settings.MIDDLEWARE = [f"{__name__}.show_late", OURS]
    assert client.get(url).content == b"None/sale/"

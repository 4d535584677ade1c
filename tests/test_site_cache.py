"""Personalized pages and Django's own page caches: no visitor gets the page of another."""

from types import ModuleType

import pytest
from django.http import HttpResponse
from django.urls import path
from django.views.decorators.cache import cache_page

from django_moe_personalize.decorators import personalize

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


@pytest.fixture
def routes(settings):
    """Install the pages of this module."""
    module = ModuleType("routes")
    module.urlpatterns = [
        path("read/", read),
        path("plain/", plain),
        path("inner/", personalize("hero-banner")(cache_page(60)(read))),
        path("outer/", cache_page(60)(personalize("hero-banner")(read))),
        path("plain-cached/", cache_page(60)(plain)),
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
    ],
    ids=["site cache outside", "site cache inside", "ours innermost", "cache_page inside", "cache_page outside"],
)
def test_personalized_page_is_stored_by_no_page_cache(upstream, visit, routes, settings, middleware, url):
    """A second visitor never gets the page of the first, whatever the order of the middleware."""
    settings.MIDDLEWARE = middleware
    first = visit(url).content
    visit.forget_cookies()
    second = visit(url).content
    assert first.endswith(b"True")
    assert first != second


@pytest.mark.parametrize(
    ("middleware", "url"),
    [([UPDATE, OURS, FETCH], "/plain/"), ([OURS], "/plain-cached/")],
)
def test_page_that_reads_nothing_is_stored(visit, routes, settings, middleware, url):
    """A page without experiences stays cacheable."""
    settings.MIDDLEWARE = middleware
    assert visit(url).content == visit(url).content

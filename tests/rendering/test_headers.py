"""The headers of personalized responses."""

from types import SimpleNamespace

import pytest
from django.http import HttpRequest, HttpResponse
from django.utils.functional import SimpleLazyObject

from django_moe_personalize.conf import get_settings
from django_moe_personalize.rendering import keep_out_of_caches, seal_response


@pytest.mark.parametrize(
    ("given", "vary"),
    [({}, "Cookie"), ({"Vary": "Accept-Language"}, "Accept-Language, Cookie"), ({"Vary": "cookie"}, "cookie")],
)
def test_vary_of_the_view_is_kept(given, vary):
    """Cookie is added to the Vary of the view."""
    response = HttpResponse(headers=given)
    seal_response(response, get_settings())
    assert response.headers["Vary"] == vary


def test_view_cannot_make_the_page_public():
    """The headers for shared caches are replaced or removed."""
    names = ["Expires", "X-Accel-Expires", "Surrogate-Control", "Edge-Control", "CDN-Cache-Control", "cache-control"]
    brands = ["Cloudflare-CDN", "Vercel-CDN", "Netlify-CDN", "Akamai", "x-litespeed"]
    caching = dict.fromkeys([*names, *(f"{brand}-Cache-Control" for brand in brands)], "max-age=600")
    kept = {"Access-Control-Max-Age": "600", "Surrogate-Key": "home"}
    response = HttpResponse(headers={**caching, **kept})
    seal_response(response, get_settings())
    del response.headers["Content-Type"]
    assert dict(response.headers) == {"Cache-Control": "private, no-store", "Vary": "Cookie", **kept}


def test_other_page_caches_learn_that_the_page_is_private():
    """wagtail-cache and django CMS don't store a page that read an experience, nor the placeholders around the read."""
    outer, inner, request, renderer = SimpleNamespace(), SimpleNamespace(), HttpRequest(), SimpleNamespace()

    def render_placeholder(placeholder, *others):
        if others:
            render_placeholder(*others)
        elif placeholder:
            render_placeholder(None)
        else:
            keep_out_of_caches(request)

    keep_out_of_caches(request)
    assert request._wagtailcache_skip is True
    request.toolbar = SimpleLazyObject(lambda: SimpleNamespace(content_renderer=renderer))
    render_placeholder(outer, inner)
    assert request.toolbar._cache_disabled is True
    assert renderer.placeholder_cache_is_enabled() is outer.cache_placeholder is inner.cache_placeholder is False

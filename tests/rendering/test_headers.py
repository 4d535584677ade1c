"""The headers of personalized responses."""

import pytest
from django.http import HttpResponse

from django_moe_personalize.conf import get_settings
from django_moe_personalize.rendering import seal_response


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
    caching = {"Cache-Control": "public, max-age=60", "Expires": "soon", "CDN-Cache-Control": "max-age=600"}
    response = HttpResponse(headers={**caching, "Surrogate-Control": "max-age=600"})
    seal_response(response, get_settings())
    del response.headers["Content-Type"]
    assert dict(response.headers) == {"Cache-Control": "private, no-store", "Vary": "Cookie"}

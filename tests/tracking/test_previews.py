"""An editor's preview counts nothing and sets no cookie."""

from types import SimpleNamespace

import pytest
from django.urls import include, path
from django.utils.functional import SimpleLazyObject

from tests.site import TAGS, show


def _toolbar(mode):
    return SimpleLazyObject(lambda: SimpleNamespace(**{f"{mode}_mode_active": True}))


@pytest.mark.parametrize(
    ("marks", "counted"),
    [
        ({"is_preview": True}, False),
        ({"toolbar": _toolbar("edit")}, False),
        ({"toolbar": _toolbar("preview")}, False),
        ({"toolbar": _toolbar("structure")}, False),
        ({"is_preview": False, "toolbar": _toolbar("content")}, True),
        ({"toolbar": None}, True),
        ({}, True),
    ],
)
def test_preview_counts_nothing(visit, serve, upstream, settings, marks, counted):
    """The page shows the content, with plain links, without an impression and without the anonymous cookie."""

    def view(request):
        request.__dict__ |= marks
        return show(request, TAGS)

    serve(view)
    settings.ROOT_URLCONF.urlpatterns.append(path("moe/", include("django_moe_personalize.urls")))
    response = visit("/page/")
    assert (b"/moe/c" in response.content, "moe_id" in response.cookies) == (counted, counted)
    assert b"<h1>Welcome" not in response.content
    assert upstream.count("hero-banner")[0] == counted

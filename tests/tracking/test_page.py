"""Which requests and pages count, and the way of events to the delivery."""

from types import SimpleNamespace
from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from django.test import RequestFactory
from django.urls import include, path
from django.utils.functional import SimpleLazyObject

from django_moe_personalize import tracking
from django_moe_personalize.tracking import is_counted
from django_moe_personalize.tracking.page import is_robot
from tests.site import TAGS, show

CHROME = "Mozilla/5.0 (Linux; Android 13) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Mobile Safari/537.36"


@pytest.mark.parametrize(
    ("headers", "counts"),
    [
        ({"User-Agent": CHROME}, True),
        ({"User-Agent": f"{CHROME} CUBOT P40"}, True),
        ({}, True),
        ({"User-Agent": f"{CHROME} (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"}, False),
        ({"User-Agent": "Baiduspider+"}, False),
        ({"User-Agent": "facebookexternalhit/1.1"}, False),
        ({"User-Agent": CHROME, "Sec-Purpose": "prefetch;prerender"}, False),
        ({"User-Agent": CHROME, "Purpose": "Prefetch"}, False),
        ({"User-Agent": CHROME, "X-Moz": "prefetch"}, False),
    ],
    ids=range(9),
)
def test_requests_of_persons_count(headers, counts):
    """A request of a robot, a prefetch and a HEAD request count nothing."""
    assert is_counted(RequestFactory().get("/", headers=headers)) is counts
    assert not is_counted(RequestFactory().head("/", headers=headers))


def test_memory_is_bounded():
    """1,024 user agents are remembered, cut to 512 characters."""
    is_robot.cache_clear()
    for number in range(1200):
        assert is_counted(RequestFactory().get("/", headers={"User-Agent": "x" * 512 + str(number)}))
    assert is_robot.cache_info().currsize == 1
    for number in range(1200):
        assert is_counted(RequestFactory().get("/", headers={"User-Agent": f"Browser/{number}"}))
    assert is_robot.cache_info().currsize == 1024


def test_no_events_are_not_handed_over():
    """A page without events doesn't touch the delivery."""
    with mock.patch.object(tracking.page, "get_delivery") as get_delivery:
        tracking.record([])
        async_to_sync(tracking.arecord)([])
    assert not get_delivery.called


def build_toolbar(mode):
    return SimpleLazyObject(lambda: SimpleNamespace(**{f"{mode}_mode_active": True}))


@pytest.mark.parametrize(
    ("marks", "counted"),
    [
        ({"is_preview": True}, False),
        ({"toolbar": build_toolbar("edit")}, False),
        ({"toolbar": build_toolbar("preview")}, False),
        ({"toolbar": build_toolbar("structure")}, False),
        ({"is_preview": False, "toolbar": build_toolbar("content")}, True),
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

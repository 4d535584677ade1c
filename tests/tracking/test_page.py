"""Which requests count, and the way of events to the delivery."""

from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from django.test import RequestFactory

from django_moe_personalize import tracking
from django_moe_personalize.tracking import is_counted
from django_moe_personalize.tracking.page import is_robot

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

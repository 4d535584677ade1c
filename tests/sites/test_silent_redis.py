"""A site whose django-redis hides its errors."""

import time

import pytest

from django_moe_personalize.resilience import Deadline
from django_moe_personalize.visitor import Identity, Visitor
from tests.fetching.asking import ask
from tests.services.serving import find_free_port
from tests.wire import LONG


@pytest.mark.parametrize("is_up", [True, False], ids=["up", "down"])
def test_redis_that_is_down_delays_no_page(settings, upstream, redis_url, monkeypatch, is_up):
    """With IGNORE_EXCEPTIONS, add() returns False for each claim. A page waits only for a claim that Redis shows."""
    location = redis_url if is_up else f"redis://127.0.0.1:{find_free_port()}"
    options = {"IGNORE_EXCEPTIONS": True}
    backend = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": f"{location}/9", "OPTIONS": options}
    settings.CACHES = {"default": backend}
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited for another process"))
    for number in range(3):
        visitor = Visitor(Identity(f"visitor-{number}"), {})
        assert ask(visitor, ["hero-banner"], deadline=Deadline(LONG)).experiences.keys() == {"hero-banner"}
    assert len(upstream.fetches) == 3

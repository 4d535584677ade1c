"""Which experiences there are: asked rarely, in the background, and never at a page's expense."""

import threading

import pytest

from django_moe_personalize.client import override_client
from django_moe_personalize.fetching import cache, metadata
from django_moe_personalize.fetching.metadata import explain, find_unavailable, get_metadata, get_pool
from django_moe_personalize.moengage.client import PersonalizeClient
from django_moe_personalize.moengage.messages import Response
from django_moe_personalize.resilience import Deadline
from tests.conftest import settle

KEYS = ("hero-banner", "spring-sale", "winter-gala", "nope")


def test_nothing_is_known_at_first(upstream):
    """As long as nobody asked, every key may be there."""
    assert find_unavailable(KEYS) == frozenset()
    assert upstream.requests == []


def test_known_keys_that_nobody_can_get(upstream, monkeypatch):
    """Paused, scheduled and unknown keys are known until METADATA_TTL is over."""
    get_metadata(deadline=Deadline(10))
    assert find_unavailable(KEYS) == {"spring-sale", "winter-gala", "nope"}
    now = metadata.time.monotonic()
    monkeypatch.setattr(metadata.time, "monotonic", lambda: now + 301)
    assert find_unavailable(KEYS) == frozenset()


def test_another_workspace_knows_nothing_of_it(upstream):
    """What one client was told is not held against another's keys."""
    get_metadata(deadline=Deadline(10))
    with override_client(PersonalizeClient(workspace_id="OTHER", api_key="k", transport=upstream)):
        assert find_unavailable(KEYS) == frozenset()
    assert find_unavailable(KEYS)


def test_explaining_is_one_at_a_time(upstream, caplog):
    """While one question is under way others are dropped, not queued."""
    released = threading.Event()
    sandbox = upstream._sandbox

    def answer(request):
        released.wait(10)
        return sandbox.send(request, deadline=Deadline(10))

    upstream.answer = answer
    for key in KEYS:
        explain([key])
    assert get_pool().in_flight == 1
    released.set()
    settle()
    assert len(upstream.requests) == 1
    assert caplog.text == ""
    explain(KEYS)
    settle()
    assert len(upstream.requests) == 1
    assert len(caplog.records) == 3


def test_metadata_that_cannot_be_had(upstream, caplog, monkeypatch):
    """After a failure nothing is explained for a while, and then it is tried again."""
    upstream.answer = lambda request: Response(500, {}, b"")
    for _ in range(3):
        explain(KEYS)
        settle()
    assert len(upstream.requests) == 1
    now = metadata.time.monotonic()
    monkeypatch.setattr(metadata.time, "monotonic", lambda: now + 61)
    upstream.answer = None
    explain(["nope"])
    monkeypatch.undo()
    settle()
    assert "'nope' is not in the workspace" in caplog.text


@pytest.mark.parametrize("garbage", ["text", 7, [1], [("a", "b")], {"a": 1}], ids=repr)
def test_garbage_in_the_cache_is_a_miss(upstream, garbage):
    """What is not ours under our name is asked for again."""
    cache.set_many({cache.build_key("metadata"): garbage}, timeout=60)
    assert len(get_metadata(deadline=Deadline(10)).experiences) > 3
    assert len(upstream.requests) == 1

"""The metadata: read rarely, in the background, and never at a page's expense."""

import threading

import pytest

from django_moe_personalize.client import get_client
from django_moe_personalize.fetching import metadata
from django_moe_personalize.fetching.metadata import get_metadata_store
from django_moe_personalize.fetching.shared import build_key, set_many
from django_moe_personalize.fetching.upstream import get_background
from django_moe_personalize.moengage.client import PersonalizeClient
from django_moe_personalize.moengage.messages import Response
from django_moe_personalize.resilience import Deadline
from tests.conftest import settle

KEYS = ("hero-banner", "spring-sale", "winter-gala", "nope")


def test_nothing_is_known_at_first(upstream):
    """Before the metadata is read every key may exist."""
    assert get_metadata_store().find_unavailable(KEYS) == frozenset()
    assert upstream.requests == []


def test_keys_that_no_visitor_can_get(upstream, monkeypatch):
    """Paused, scheduled and unknown keys are known until METADATA_TTL is over."""
    store = get_metadata_store()
    store.get(deadline=Deadline(10))
    assert store.find_unavailable(KEYS) == {"spring-sale", "winter-gala", "nope"}
    now = metadata.time.monotonic()
    monkeypatch.setattr(metadata.time, "monotonic", lambda: now + 301)
    assert store.find_unavailable(KEYS) == frozenset()


def test_another_client_starts_without_metadata(upstream):
    """The metadata of one client's workspace says nothing about another's."""
    get_metadata_store().get(deadline=Deadline(10))
    with get_client.override(PersonalizeClient(workspace_id="OTHER", api_key="k", transport=upstream)):
        assert get_metadata_store().find_unavailable(KEYS) == frozenset()


def test_explaining_is_one_at_a_time(upstream, caplog):
    """While the background thread is busy, further questions are dropped, not queued."""
    released = threading.Event()
    sandbox = upstream._sandbox

    def answer(request):
        released.wait(10)
        return sandbox.send(request, deadline=Deadline(10))

    upstream.answer = answer
    for key in KEYS:
        get_metadata_store().explain([key])
    assert get_background().in_flight == 1
    released.set()
    settle()
    assert len(upstream.requests) == 1
    assert caplog.text == ""
    get_metadata_store().explain(KEYS)
    settle()
    assert len(upstream.requests) == 1
    assert len(caplog.records) == 3


def test_metadata_that_cannot_be_read(upstream, caplog, monkeypatch):
    """After a failure nothing is explained for a while; then the metadata is read again."""
    upstream.answer = lambda request: Response(500, {}, b"")
    store = get_metadata_store()
    for _ in range(3):
        store.explain(KEYS)
        settle()
    assert len(upstream.requests) == 1
    now = metadata.time.monotonic()
    monkeypatch.setattr(metadata.time, "monotonic", lambda: now + 61)
    upstream.answer = None
    store.explain(["nope"])
    monkeypatch.undo()
    settle()
    assert "The workspace has no experience 'nope'" in caplog.text


@pytest.mark.parametrize("garbage", ["text", 7, [1], [("a", "b")], {"a": 1}], ids=repr)
def test_garbage_in_the_cache_is_a_miss(upstream, garbage):
    """A cache entry that isn't ours is ignored, and MoEngage is asked."""
    set_many({build_key("metadata"): garbage}, timeout=60)
    assert len(get_metadata_store().get(deadline=Deadline(10)).experiences) > 3
    assert len(upstream.requests) == 1

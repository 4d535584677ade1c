"""The metadata, which the background thread reads rarely."""

from types import SimpleNamespace

import pytest

from django_moe_personalize.client import get_client
from django_moe_personalize.exceptions import APIError
from django_moe_personalize.fetching import metadata
from django_moe_personalize.fetching.metadata import get_metadata_store
from django_moe_personalize.fetching.shared import build_key, get_many, set_many
from django_moe_personalize.fetching.upstream import get_background
from django_moe_personalize.moengage.client import PersonalizeClient
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.testing import override_personalize
from tests.conftest import settle
from tests.virtual_time import Clock

KEYS = ("hero-banner", "spring-sale", "winter-gala", "nope")


@pytest.fixture
def clock(monkeypatch):
    """Give the clock of the metadata."""
    clock = Clock()
    monkeypatch.setattr(metadata, "time", SimpleNamespace(monotonic=clock))
    return clock


def test_keys_that_no_visitor_can_get(upstream, clock):
    """Paused, scheduled and unknown keys are known from the first read until METADATA_TTL is over."""
    store = get_metadata_store()
    assert store.find_unavailable(KEYS) == frozenset()
    assert upstream.requests == []
    store.get(deadline=Deadline(10))
    clock.now += 299
    assert store.find_unavailable(KEYS) == {"spring-sale", "winter-gala", "nope"}
    clock.now += 2
    assert store.find_unavailable(KEYS) == frozenset()


def test_another_client_has_other_metadata(upstream):
    """The metadata of one workspace doesn't apply to another workspace."""
    get_metadata_store().get(deadline=Deadline(10))
    with get_client.override(PersonalizeClient(workspace_id="OTHER", api_key="k", transport=upstream)):
        assert get_metadata_store().find_unavailable(KEYS) == frozenset()


def test_thread_that_outlives_its_settings(upstream):
    """After a change of settings, an old background thread writes nothing into the new workspace."""
    store = get_metadata_store()
    store.find_unavailable(KEYS)
    with override_personalize(WORKSPACE_ID="OTHER"):
        store.get(deadline=Deadline(10))
        assert get_many([build_key("metadata")]) == {}


def test_explanations_come_one_at_a_time(upstream, caplog):
    """While the background thread is busy, further questions are dropped."""
    release = upstream.hold()
    for key in KEYS:
        get_metadata_store().explain([key])
    assert get_background().in_flight == 1
    release()
    settle()
    assert caplog.text == ""
    get_metadata_store().explain(KEYS)
    settle()
    assert len(upstream.requests) == 1
    assert len(caplog.records) == 3


def test_metadata_that_cannot_be_read(upstream, caplog, clock):
    """After a failed attempt, the metadata isn't read for a while."""
    upstream.respond(500)
    store = get_metadata_store()
    with pytest.raises(APIError):
        store.get(deadline=Deadline(10))
    for _ in range(3):
        store.explain(KEYS)
        settle()
    assert len(upstream.requests) == 2
    clock.now += 61
    upstream.answer = None
    store.explain(["nope"])
    settle()
    assert "The workspace has no experience 'nope'" in caplog.text


@pytest.mark.parametrize("garbage", ["text", 7, [1], [("a", "b")], {"a": 1}], ids=repr)
def test_garbage_in_the_cache(upstream, garbage):
    """A cache entry of another shape is a miss."""
    set_many({build_key("metadata"): garbage}, timeout=60)
    assert len(get_metadata_store().get(deadline=Deadline(10)).experiences) > 3
    assert len(upstream.requests) == 1

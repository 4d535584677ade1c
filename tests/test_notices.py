"""Notices: what one process puts up for the others to read, and who is told of a breaker that changes."""

import os
import tempfile
import threading

import pytest
from django.core.cache import cache
from django.core.cache.backends.filebased import FileBasedCache

from django_moe_personalize.fetching import metadata, shared, upstream
from django_moe_personalize.resilience import PoolBusy
from django_moe_personalize.signals import breaker_changed
from tests.conftest import settle
from tests.processes import filled, use_shared_cache  # noqa: F401 - a fixture among them
from tests.wire import wait_until

# The breaker


@pytest.fixture
def changes():
    """Collect what the signal ``breaker_changed`` says."""
    told = []

    def hear(sender, old, new, reason, **kwargs):
        told.append((old, new, reason))

    breaker_changed.connect(hear)
    yield told
    breaker_changed.disconnect(hear)


@pytest.fixture
def tellers():
    """Collect the names of the threads that tell of changes."""
    told = []

    def hear(**kwargs):
        told.append(threading.current_thread().name)

    breaker_changed.connect(hear)
    yield told
    breaker_changed.disconnect(hear)


def trip():
    """Fail until the breaker opens."""
    for _ in range(5):
        upstream.get_breaker().failure()


def test_breaker_is_told_of(shared, changes, caplog):
    """The log, the signal and the notice say what changed and why."""
    trip()
    settle()
    assert changes == [("closed", "open", "5 failures in a row")]
    (notice,) = shared.read_notices(upstream.BREAKER_TOPIC)
    assert (notice["state"], notice["reason"]) == ("open", "5 failures in a row")
    assert notice["process"].endswith(f":{os.getpid()}")
    assert "closed to open (5 failures in a row)" in caplog.text


def test_breaker_without_a_shared_cache(changes):
    """There is nobody to tell but the receivers."""
    trip()
    settle()
    assert len(changes) == 1
    assert shared.read_notices(upstream.BREAKER_TOPIC) == []


def test_busy_threads_keep_nobody_from_hearing(tellers):
    """The metadata's thread, then the pages', then the caller's own tell the receivers."""
    trip()
    settle()
    upstream.forget()
    with filled(metadata.get_pool()):
        trip()
        wait_until(lambda: not upstream.get_pool().in_flight)
        upstream.forget()
        with filled(upstream.get_pool()):
            trip()
            with pytest.raises(PoolBusy):
                upstream.get_pool().submit(int)
    assert tellers == ["moe-personalize-metadata", "moe-personalize-fetch", threading.current_thread().name]


def test_receiver_that_fails_harms_nothing(shared, changes):
    """A receiver's mistake is its own."""

    def fail(**kwargs):
        raise ValueError("the receiver's")

    breaker_changed.connect(fail)
    try:
        trip()
        settle()
    finally:
        breaker_changed.disconnect(fail)
    assert len(changes) == 1
    assert len(shared.read_notices(upstream.BREAKER_TOPIC)) == 1


# Notices


def test_last_notice_of_each_process_counts(shared, monkeypatch):
    """A process that speaks again takes back what it said; the latest comes last, and only so many are read."""
    for pid, state in ((1, "open"), (2, "open"), (1, "closed")):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        shared.put_up_notice("breaker", state=state)
    notices = shared.read_notices("breaker")
    assert [(notice["process"].rpartition(":")[2], notice["state"]) for notice in notices] == [
        ("2", "open"),
        ("1", "closed"),
    ]
    monkeypatch.setattr(shared, "MAX_NOTICES", 1)
    assert [notice["state"] for notice in shared.read_notices("breaker")] == ["closed"]
    assert shared.read_notices("another") == []


def test_notice_that_the_cache_does_not_take(settings, caplog):
    """Nothing is raised into whoever has something to say, whichever step fails."""
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    shared.put_up_notice("breaker", state="open")
    settings.CACHES = {"default": {"BACKEND": "tests.test_notices.Forgetful"}}
    shared.put_up_notice("breaker", state="open")
    assert len(caplog.records) == 2


def test_foreign_values_in_our_place_are_no_notices(shared):
    """What another program left in the cache is passed over."""
    shared.put_up_notice("breaker", state="open")
    cache.set(shared.build_key("notice", "breaker", "1"), "not ours")
    assert shared.read_notices("breaker") == []


class Forgetful(FileBasedCache):
    """A cache that counts, and takes nothing else."""

    def __init__(self, location, params):
        super().__init__(tempfile.mkdtemp(), params)

    def set(self, key, value, *args, **kwargs):
        """Fail for all but numbers."""
        if not isinstance(value, int):
            raise OSError("full")
        super().set(key, value, *args, **kwargs)

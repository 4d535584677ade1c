"""A change of the breaker's state reaches the log, the signal's receivers and the site's other processes."""

import logging
import os
import threading

import pytest

from django_moe_personalize.exceptions import TransportError
from django_moe_personalize.fetching.shared import read_notices
from django_moe_personalize.fetching.upstream import (
    BREAKER_TOPIC,
    get_background,
    get_breaker,
    get_pool,
    log_late_page,
    tell_breaker,
)
from django_moe_personalize.resilience import PoolBusy
from django_moe_personalize.runtime import get_runtime, reset_runtimes
from django_moe_personalize.signals import breaker_changed
from tests.conftest import settle
from tests.processes import filled, use_shared_cache  # noqa: F401 - a fixture among them
from tests.wire import wait_until


@pytest.fixture
def changes():
    """Collect the arguments of the signal ``breaker_changed`` and the name of the sending thread."""
    heard = []

    def hear(sender, old, new, reason, **kwargs):
        heard.append((old, new, reason, threading.current_thread().name))

    breaker_changed.connect(hear)
    yield heard
    breaker_changed.disconnect(hear)


def trip():
    """Fail until the breaker opens."""
    for _ in range(5):
        get_breaker().failure()


def test_change_is_announced(shared, changes, caplog):
    """The log, the signal and a notice tell the change and the reason, even if another receiver fails."""

    def fail(**kwargs):
        raise ValueError("the receiver's")

    caplog.set_level(logging.DEBUG)

    breaker_changed.connect(fail)
    try:
        trip()
        settle()
    finally:
        breaker_changed.disconnect(fail)
    assert [change[:3] for change in changes] == [("closed", "open", "5 failures in a row")]
    (notice,) = read_notices(BREAKER_TOPIC)
    assert (notice["state"], notice["reason"]) == ("open", "5 failures in a row")
    assert notice["process"].endswith(f":{os.getpid()}")
    # At the level WARNING each probe of an outage would fill the log.
    levels = [r.levelname for r in caplog.records if "closed to open (5 failures in a row)" in r.getMessage()]
    assert levels == ["DEBUG"]


def test_change_without_a_shared_cache(changes):
    """Without a shared cache, only the receivers get the change."""
    trip()
    settle()
    assert len(changes) == 1
    assert read_notices(BREAKER_TOPIC) == []


def test_busy_threads_delay_no_announcement(changes):
    """The background thread calls the receivers. If it's busy, a thread of the pool or the caller does."""
    trip()
    settle()
    reset_runtimes()
    with filled(get_background()):
        trip()
        wait_until(lambda: not get_pool().in_flight)
    reset_runtimes()
    with filled(get_background()), filled(get_pool()):
        trip()
        with pytest.raises(PoolBusy):
            get_pool().submit(int)
    threads = ["moe-personalize-background", "moe-personalize-fetch", threading.current_thread().name]
    assert [change[3] for change in changes] == threads


def test_background_thread_closes_its_connections(monkeypatch):
    """After each job, the thread closes the connections that are too old or broken, as Django does after a request."""
    closed = threading.Event()
    monkeypatch.setattr("django_moe_personalize.fetching.upstream.close_old_connections", closed.set)
    get_background().submit(len, ()).result(10.0)
    assert closed.wait(10.0)


def test_only_a_probe_ends_an_outage(caplog):
    """While the breaker is open, a call that began before the outage may succeed, and late pages add no line."""
    runtime = get_runtime()
    for _ in range(5):
        tell_breaker(runtime, TransportError("refused"))
    log_late_page(runtime)
    tell_breaker(runtime, None)
    assert get_breaker().state == "open"
    assert [message.partition(" (")[0] for message in caplog.messages] == ["MoEngage fetches fail"]


def test_late_page_starts_an_outage(caplog):
    """The page logs its deadline, because its call may hang for long. The answer ends the outage."""
    runtime = get_runtime()
    log_late_page(runtime)
    tell_breaker(runtime, None)
    assert "(DeadlineExceeded: the page's deadline passed)" in caplog.messages[0]
    assert caplog.messages[1:] == ["MoEngage fetches work again after 0 s (1 failed)."]

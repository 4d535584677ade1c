"""The background thread, with a MoEngage on loopback: batches, retries, limits, flush, erase and close."""

import asyncio
import threading
import time
from unittest.mock import Mock

import pytest

from django_moe_personalize import runtime
from django_moe_personalize.client import get_client
from django_moe_personalize.delivery import exits, thread
from django_moe_personalize.delivery.base import DeliveryCounts
from django_moe_personalize.delivery.thread import ThreadDelivery
from django_moe_personalize.moengage.types import Action, Event
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.faults import Faults
from django_moe_personalize.sandbox.server import SandboxServer
from django_moe_personalize.sandbox.workspace import load_workspace
from django_moe_personalize.signals import events_delivered
from tests.delivery.conftest import connected
from tests.delivery.events import make_event, make_events, messages, uuids
from tests.delivery.vendor import SOON
from tests.processes import no_threads, recorded_contexts, together


def senders():
    return [thread for thread in threading.enumerate() if thread.name == "moe-personalize-delivery"]


def test_no_thread_before_the_first_event(build):
    """The first event starts one daemon thread, outside the context of its page. A flush without events starts none."""
    before = len(senders())
    delivery = build()
    assert delivery.flush() == DeliveryCounts()
    assert len(senders()) == before
    with recorded_contexts() as values:
        delivery.record(make_events(1))
        delivery.record(make_events(1))
    assert values == [None]
    assert len(senders()) == before + 1
    assert all(thread.daemon for thread in senders())


@pytest.mark.parametrize("clock", [time.monotonic, lambda: 0.0], ids=["running", "stopped"])
def test_events_leave_after_the_interval(build, vendor, monkeypatch, clock):
    """Without a flush, recorded events are sent together a moment later, also if a test stops Python's clock."""
    monkeypatch.setattr(time, "monotonic", clock)
    delivery = build(interval=0.05)
    events = make_events(3)
    delivery.record(events[:2])
    asyncio.run(delivery.arecord(events[2:]))
    assert vendor.wait_for(lambda vendor: vendor.taken.total() == 3)
    assert delivery.flush(SOON) == DeliveryCounts(accepted=3, delivered=3)
    assert vendor.taken == dict.fromkeys(uuids(events), 1)


@pytest.mark.parametrize("is_late", [False, True], ids=["later", "at this moment"])
def test_thread_rests_after_an_interval_without_events(build, vendor, monkeypatch, is_late):
    """Then the next page wakes the thread, also if it records its events just when the thread goes to rest."""
    delivery = build(interval=0.01)
    compute, late = delivery._seconds_until_due, make_events(1)

    def record_late():
        wait = compute()
        if is_late and wait <= 0 and not delivery._queue and late not in recorded:
            recorded.append(late)
            delivery._recorded.append(late)
        return wait

    recorded = []
    monkeypatch.setattr(delivery, "_seconds_until_due", record_late)
    delivery.record(make_events(1))
    assert vendor.wait_for(lambda vendor: vendor.taken.total() == 1 + is_late)
    until = time.monotonic() + SOON
    while not delivery._is_resting and time.monotonic() < until:
        time.sleep(0.001)
    assert delivery._is_resting
    delivery.record(make_events(1))
    assert vendor.wait_for(lambda vendor: vendor.taken.total() == 2 + is_late)


def test_a_full_batch_leaves_at_once(build, vendor):
    """A full batch doesn't wait for the interval. Further events do."""
    delivery = build(batch_size=10)
    for event in make_events(13):
        delivery.record([event])
    assert vendor.wait_for(lambda vendor: vendor.taken.total() == 10)
    assert delivery.flush(0.0).accepted == 13
    assert delivery.flush(SOON) == DeliveryCounts(accepted=13, delivered=13)
    assert [len(sent) for _, sent in vendor.calls] == [10, 3]


def test_failures_are_retried_with_the_same_uuid(build, vendor, heard):
    """After 500s and a rate limit the same events arrive with the same UUIDs, and count once."""
    delivery = build()
    vendor.failures = [500, 503, 429]
    events = make_events(5)
    delivery.record(events)
    assert delivery.flush(SOON) == DeliveryCounts(accepted=5, delivered=5)
    assert [status for status, _ in vendor.calls] == [500, 503, 429, 200]
    assert {tuple(sent) for _, sent in vendor.calls} == {tuple(uuids(events))}
    assert heard == [("delivered", 5)]


def test_a_retry_waits_for_the_backoff_alone(build, vendor):
    """The rest of a batch isn't full any more, but it is sent again without another interval."""
    delivery = build(batch_size=3)
    vendor.failures = [400, 200, 500]
    delivery.record(make_events(3))
    assert vendor.wait_for(lambda vendor: vendor.taken.total() == 3)
    assert [(status, len(sent)) for status, sent in vendor.calls] == [(400, 3), (200, 1), (500, 2), (200, 2)]


def test_events_are_dropped_after_the_last_attempt(build, vendor, heard):
    """An event that always fails is dropped at last, and its memory is free."""
    delivery = build(max_attempts=3)
    vendor.status = 500
    delivery.record(make_events(2))
    assert delivery.flush(SOON) == DeliveryCounts(accepted=2, dropped={"attempts": 2})
    assert len(vendor.calls) == 3
    assert heard == [("attempts", 2)]
    assert (delivery._bytes, delivery._attempts) == (0, {})


def test_wrong_credentials_pause_with_one_loud_line(build, vendor, caplog):
    """After a 401 the thread makes no call, a flush doesn't wait, new events queue up, and the log has one error."""
    delivery = build(max_events=5)
    vendor.status = 401
    delivery.record(make_events(3))
    assert delivery.flush(SOON).pending == 3
    delivery.record(make_events(4))
    assert delivery.flush(SOON) == DeliveryCounts(accepted=7, dropped={"overflow": 2}, pending=5)
    assert len(vendor.calls) == 1
    assert [level for level, text in messages(caplog) if "Check WORKSPACE_ID" in text] == ["ERROR"]


def test_a_pause_ends(build, vendor, caplog):
    """When the key works again, the pause ends by itself and the events arrive."""
    delivery = build(pause=0.01, batch_size=3)
    vendor.failures = [500, 500, 401, 401, 500]
    delivery.record(make_events(3))
    assert vendor.wait_for(lambda vendor: vendor.taken.total() == 3)
    assert delivery.flush(SOON).delivered == 3
    assert [level for level, _ in messages(caplog)] == ["WARNING", "ERROR", "ERROR"]


def test_retry_after_is_respected_until_the_exit(build, vendor):
    """Until Retry-After is over, the thread makes no call, except a last call at the end of the process."""
    delivery = build()
    vendor.failures, vendor.headers = [429], {"Retry-After": "600"}
    delivery.record(make_events(3))
    delivery.flush(0.3)
    assert delivery.flush(0.05).pending == 3
    assert len(vendor.calls) == 1
    delivery.close()
    assert delivery.counts() == DeliveryCounts(accepted=3, delivered=3)


def test_a_flush_waits_for_the_next_batch_while_one_is_settled(build, vendor):
    """A flush that starts while signal receivers run for a batch also waits for the next batch."""
    delivery = build(batch_size=2)
    entered, release = threading.Event(), threading.Event()

    def linger(**kwargs):
        entered.set()
        release.wait(SOON)

    vendor.failures, vendor.headers = [200, 429], {"Retry-After": "0.2"}
    with connected(linger, events_delivered):
        delivery.record(make_events(2))
        assert entered.wait(SOON)
        delivery.record(make_events(1))
        releaser = threading.Timer(0.05, release.set)
        releaser.start()
        assert delivery.flush(SOON).delivered == 3
        releaser.join(SOON)


def test_every_event_counts_once_in_a_failing_workspace(settings):
    """Errors, resets and broken responses lose no event and count none twice, by MoEngage's own counts."""
    engine = Engine(load_workspace())
    with SandboxServer(engine, faults=Faults()) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        serving.start()
        credentials = {"WORKSPACE_ID": engine.workspace.workspace_id, "API_KEY": engine.workspace.api_key}
        settings.MOE_PERSONALIZE = {"BASE_URL": server.url, **credentials}
        hero = get_client().fetch_experiences(["hero-banner"], customer_id="1", deadline=Deadline(SOON)).experiences
        # From now on, half of the calls fail, before or after the sandbox counts the events.
        server.injector.faults = Faults(error_rate=0.25, reset=0.2, malformed=0.15, seed=7)
        context, now = hero["hero-banner"].experience_context, int(time.time()) - 10
        events = [Event(Action.SHOWN, str(number), context, now) for number in range(400)]
        delivery = ThreadDelivery(batch_size=10, backoff=0.005, max_attempts=1000)
        for event in events:
            delivery.record([event])
        assert delivery.flush(3 * SOON) == DeliveryCounts(accepted=400, delivered=400)
        delivery.close()
        get_client().close()
        server.shutdown()
        serving.join(SOON)
    assert engine.ledger.counts()["hero-banner"].impressions == 400
    assert {entry.event_uuid for entry in engine.ledger.entries()} == set(uuids(events))


def test_events_beyond_the_limit_are_dropped_and_counted(build, vendor, caplog, heard):
    """Waiting events and events in flight count. Each flood has two log lines. New events fill free room again."""
    delivery = build(max_events=4, batch_size=2)
    vendor.hang.clear()
    delivery.record(make_events(2))
    assert vendor.wait_for(lambda vendor: vendor.arrived)
    delivery.record(make_events(4))
    counts = delivery.counts()
    assert (counts.pending, counts.dropped) == (4, {"overflow": 2})
    delivery.record(make_events(3))
    assert delivery.counts().dropped == {"overflow": 5}
    vendor.hang.set()
    assert delivery.flush(SOON) == DeliveryCounts(accepted=9, delivered=4, dropped={"overflow": 5})
    delivery.record(make_events(5))
    assert delivery.flush(SOON).delivered == 8
    assert [text.partition(" (")[0] for _, text in messages(caplog)] == [
        "Events don't fit into the memory",
        "Events fit into the memory again after 0 s",
    ] * 2
    assert sum(count for reason, count in heard if reason == "overflow") == 6


def test_the_sum_of_the_counters_is_right_at_every_moment(build, vendor):
    """While threads record and MoEngage fails, accepted = delivered + dropped + pending whenever a thread looks."""
    delivery = build(max_events=300, max_attempts=2, batch_size=20, interval=0.0)
    seen = []

    def record(index):
        for number in range(100):
            delivery.record(make_events(5))
            seen.append(delivery.counts())
            if number % 10 == 0:
                with vendor.changed:
                    vendor.failures.append(500)

    together(3, record)
    counts = delivery.flush(SOON)
    assert all(each.accepted == each.delivered + sum(each.dropped.values()) + each.pending for each in seen)
    assert min(each.pending for each in seen) >= 0
    assert (counts.accepted, counts.pending) == (1500, 0)
    assert counts.delivered == vendor.taken.total() == len(vendor.taken)


def test_a_thread_that_cannot_start_costs_no_event(build):
    """If the system can't start a thread, the events wait until a thread starts."""
    delivery = build()
    with no_threads():
        delivery.record(make_events(1))
        assert delivery.flush().pending == 1
    delivery.record(make_events(1))
    assert delivery.flush(SOON).delivered == 2


def test_erased_events_are_not_sent(build, vendor, heard):
    """One customer's events are dropped and free their memory, the others are delivered, and a flush ends."""
    delivery = build()
    ann, bob = make_event("ann"), make_event("bob")
    delivery.record([ann, bob, make_event("ann")])
    assert delivery.erase("ann") == 2
    assert delivery.erase("nobody") == 0
    assert delivery._bytes == bob.size
    assert delivery.flush(SOON) == DeliveryCounts(accepted=3, delivered=1, dropped={"erased": 2})
    assert vendor.taken == {bob.event_uuid: 1}
    assert sorted(heard) == [("delivered", 1), ("erased", 2)]


def test_erased_events_in_flight_are_not_sent_again(build, vendor):
    """An event in flight isn't sent again if it fails. A later event of the same customer is sent."""
    delivery = build(batch_size=2)
    vendor.failures = [500]
    vendor.hang.clear()
    ann, bob = make_event("ann"), make_event("bob")
    delivery.record([ann, bob])
    assert vendor.wait_for(lambda vendor: vendor.arrived == 1)
    assert delivery.erase("ann") == 0
    vendor.hang.set()
    assert delivery.flush(SOON) == DeliveryCounts(accepted=2, delivered=1, dropped={"erased": 1})
    delivery.record([make_event("ann")])
    assert delivery.flush(SOON) == DeliveryCounts(accepted=3, delivered=2, dropped={"erased": 1})
    assert ann.event_uuid not in vendor.taken


def test_close_delivers_the_pending_events(build, vendor):
    """close() sends each event once and ends the thread. The caller sends later events, until the time is over."""
    delivery = build(exit_timeout=SOON)
    delivery.record(make_events(250))
    worker = delivery._thread
    delivery.close()
    assert delivery.counts() == DeliveryCounts(accepted=250, delivered=250)
    worker.join(SOON)
    assert not worker.is_alive()
    delivery.record(make_events(2))
    delivery._exit = Deadline(0.0)
    delivery.record(make_events(3))
    delivery.close()
    assert delivery.counts() == DeliveryCounts(accepted=255, delivered=252, dropped={"exit": 3})
    assert vendor.taken.total() == 252


@pytest.mark.parametrize("status", [200, 500, 401])
def test_without_a_thread_close_sends_the_events_itself(build, vendor, status, monkeypatch):
    """Python ends and starts no thread: the caller of close() sends, and the counters have each event."""
    delivery = build(exit_timeout=0.3, batch_size=2)
    vendor.status = status
    monkeypatch.setattr(thread, "start_thread", Mock(side_effect=RuntimeError))
    delivery.record(make_events(3))
    delivery.close()
    gone = {"delivered": 3} if status == 200 else {"dropped": {"exit": 3}}
    assert delivery.counts() == DeliveryCounts(accepted=3, **gone)


@pytest.mark.parametrize("end", [exits._end, runtime._end], ids=["delivery", "runtime"])
def test_a_delivery_that_is_built_while_python_ends_sends_at_once(end, build, vendor, monkeypatch):
    """A function that the site registered with ``atexit`` may run last. Its events are sent by its thread."""
    monkeypatch.setattr(runtime._process, "is_ending", False)
    end()
    delivery = build()
    delivery.record(make_events(2))
    assert vendor.taken.total() == 2
    assert delivery.counts() == DeliveryCounts(accepted=2, delivered=2)


def test_an_interrupted_close_counts_the_rest(build, monkeypatch):
    """After another Ctrl-C the process ends without the events, and the counters have them."""
    delivery = build()
    delivery.record(make_events(2))
    with monkeypatch.context() as patched:
        patched.setattr(delivery, "_wait", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            delivery.close()
    assert delivery.counts() == DeliveryCounts(accepted=2, dropped={"exit": 2})


def test_flush_and_close_give_up_in_time(build, vendor, caplog, heard):
    """MoEngage hangs. A flush returns the pending events, and close() drops them once, despite the late response."""
    delivery = build(exit_timeout=0.1, batch_size=10)
    vendor.hang.clear()
    delivery.record(make_events(25))
    assert delivery.flush(0.05) == DeliveryCounts(accepted=25, pending=25)
    assert vendor.wait_for(lambda vendor: vendor.arrived)
    begun = time.monotonic()
    delivery.close()
    assert time.monotonic() - begun < SOON / 2
    assert delivery.counts() == DeliveryCounts(accepted=25, dropped={"exit": 25})
    # The warning about the late response may come before or after.
    errors = [message for level, message in messages(caplog) if level == "ERROR"]
    assert errors == ["Dropped 25 events: MoEngage didn't accept them before the process ended"]
    assert heard == [("exit", 25)]
    worker = delivery._thread
    vendor.hang.set()
    worker.join(SOON)
    assert not worker.is_alive()
    assert delivery.counts() == DeliveryCounts(accepted=25, dropped={"exit": 25})


def test_close_does_not_wait_for_a_pause(build, vendor):
    """If the credentials are known to be wrong, the process ends at once."""
    delivery = build(exit_timeout=SOON)
    vendor.status = 401
    delivery.record(make_events(3))
    delivery.flush(SOON)
    begun = time.monotonic()
    delivery.close()
    assert time.monotonic() - begun < SOON / 2
    assert delivery.counts().dropped == {"exit": 3}
    assert len(vendor.calls) == 1

"""The background thread: batches, retries, bounds, forks and the end, against a vendor on loopback."""

import asyncio
import logging
import threading
import time

import pytest

from django_moe_personalize.client import get_client, reset
from django_moe_personalize.delivery.base import DeliveryCounts
from django_moe_personalize.delivery.sending import estimate_size
from django_moe_personalize.delivery.thread import ThreadDelivery
from django_moe_personalize.moengage.types import Action, Event
from django_moe_personalize.resilience import Deadline, pool
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.faults import Faults
from django_moe_personalize.sandbox.server import build_server
from django_moe_personalize.sandbox.workspace import load_workspace
from django_moe_personalize.signals import events_delivered
from tests.delivery_vendor import SOON
from tests.test_delivery import heard, make_event, make_events, messages, vendor  # noqa: F401 - fixtures among them
from tests.processes import in_child, no_threads

NEVER = 600.0
"""Seconds after which something would happen that no test waits for."""


@pytest.fixture
def build(vendor):  # noqa: F811
    """Build deliveries that are quick to retry and send only when full or flushed; close them after the test."""
    built = []

    def build(**options):
        delivery = ThreadDelivery(**{"interval": NEVER, "backoff": 0.01, "pause": NEVER, **options})
        built.append(delivery)
        return delivery

    yield build
    vendor.status, vendor.failures, vendor.poison = 200, [], set()
    vendor.hang.set()
    for delivery in built:
        delivery.close()


def uuids(events):
    return [event.event_uuid for event in events]


def senders():
    return [thread for thread in threading.enumerate() if thread.name == "moe-personalize-delivery"]


# -- batches


def test_no_thread_before_the_first_event(build):
    """A delivery that is only built costs nothing; the first event starts one daemon."""
    before = len(senders())
    delivery = build()
    assert len(senders()) == before
    delivery.record(make_events(1))
    delivery.record(make_events(1))
    assert len(senders()) == before + 1
    assert all(thread.daemon for thread in senders())


def test_events_leave_after_the_interval(build, vendor):  # noqa: F811
    """Nobody has to flush: what was recorded is sent a moment later, together."""
    delivery = build(interval=0.05)
    events = make_events(3)
    delivery.record(events[:2])
    asyncio.run(delivery.arecord(events[2:]))
    assert vendor.wait_for(lambda vendor: vendor.taken.total() == 3)
    assert delivery.flush(SOON) == DeliveryCounts(accepted=3, delivered=3)
    assert vendor.taken == dict.fromkeys(uuids(events), 1)


def test_a_full_batch_leaves_at_once(build, vendor):  # noqa: F811
    """A full batch does not wait for the interval; what is beyond it does."""
    delivery = build(batch_size=10)
    events = make_events(13)
    delivery.record(events[:9])
    delivery.record(events[9:])
    assert vendor.wait_for(lambda vendor: vendor.taken.total() == 10)
    assert delivery.flush(0.0).accepted == 13
    assert delivery.flush(SOON) == DeliveryCounts(accepted=13, delivered=13)
    assert [len(sent) for _, sent in vendor.calls] == [10, 3]


def test_batches_are_of_customers(build, vendor):  # noqa: F811
    """A customer's events travel together, and a call holds no more customers than a batch may."""
    delivery = build()
    delivery.record([make_event(str(number % 150)) for number in range(300)])
    assert delivery.flush(SOON).delivered == 300
    assert all(len(body["elements"]) <= 100 for body in vendor.bodies)
    assert len(vendor.calls) <= 4


def test_async_pages_record_without_a_thread_to_wait_for(build, vendor):  # noqa: F811
    """Under ASGI events are taken over in the event loop itself, and leave as all others do."""
    delivery = build()
    asyncio.run(delivery.arecord(make_events(3)))
    assert delivery.flush(SOON).delivered == 3


def test_flushing_nothing_returns_at_once(build):
    """A flush without events starts no thread and waits for nothing."""
    before = len(senders())
    assert build().flush() == DeliveryCounts()
    assert len(senders()) == before


# -- failures


def test_failures_are_retried_with_the_same_uuid(build, vendor, heard):  # noqa: F811
    """After 500s and a rate limit the same events arrive, under the same UUIDs, and count once."""
    delivery = build()
    vendor.failures = [500, 503, 429]
    events = make_events(5)
    delivery.record(events)
    assert delivery.flush(SOON) == DeliveryCounts(accepted=5, delivered=5)
    assert [status for status, _ in vendor.calls] == [500, 503, 429, 200]
    assert {tuple(sent) for _, sent in vendor.calls} == {tuple(uuids(events))}
    assert heard == [("delivered", 5)]


def test_a_retry_waits_for_the_backoff_alone(build, vendor):  # noqa: F811
    """What is left of a batch is no full one, yet it is sent again without another interval."""
    delivery = build(batch_size=3)
    vendor.failures = [400, 200, 500]
    delivery.record(make_events(3))
    assert vendor.wait_for(lambda vendor: vendor.taken.total() == 3)
    assert [(status, len(sent)) for status, sent in vendor.calls] == [(400, 3), (200, 1), (500, 2), (200, 2)]


def test_one_poison_event_costs_no_other(build, vendor, heard):  # noqa: F811
    """Of 100 events with a bad one among them 99 are delivered and one is dropped as refused."""
    delivery = build()
    events = make_events(100)
    vendor.poison = {events[99].event_uuid}
    delivery.record(events)
    assert delivery.flush(SOON) == DeliveryCounts(accepted=100, delivered=99, dropped={"refused": 1})
    assert sorted(heard) == [("delivered", 99), ("refused", 1)]


def test_events_are_given_up_after_the_last_attempt(build, vendor, heard):  # noqa: F811
    """An event that fails every time is dropped in the end, with its reason, and its memory is free."""
    delivery = build(max_attempts=3)
    vendor.status = 500
    delivery.record(make_events(2))
    assert delivery.flush(SOON) == DeliveryCounts(accepted=2, dropped={"attempts": 2})
    assert len(vendor.calls) == 3
    assert heard == [("attempts", 2)]
    assert (delivery._bytes, delivery._attempts) == (0, {})


def test_wrong_credentials_pause_with_one_loud_line(build, vendor, caplog):  # noqa: F811
    """After a 401 nothing is asked, a flush does not wait, events queue up to the bound: one error says why."""
    delivery = build(max_events=5)
    vendor.status = 401
    delivery.record(make_events(3))
    assert delivery.flush(SOON).pending == 3
    delivery.record(make_events(4))
    assert delivery.flush(SOON) == DeliveryCounts(accepted=7, dropped={"overflow": 2}, pending=5)
    assert len(vendor.calls) == 1
    assert [level for level, text in messages(caplog) if "takes no events with these settings" in text] == ["ERROR"]


def test_a_pause_ends(build, vendor, caplog):  # noqa: F811
    """When the key is right again the pause ends by itself, and the events arrive."""
    caplog.set_level(logging.INFO, "django_moe_personalize")
    delivery = build(pause=0.01, batch_size=3)
    vendor.failures = [500, 500, 401, 401, 500]
    delivery.record(make_events(3))
    assert vendor.wait_for(lambda vendor: vendor.taken.total() == 3)
    assert delivery.flush(SOON).delivered == 3
    assert [level for level, _ in messages(caplog)] == ["WARNING", "ERROR", "WARNING", "INFO"]


def test_retry_after_is_respected_until_the_exit(build, vendor):  # noqa: F811
    """While the vendor wants to be left alone nothing is asked; only the end of the process asks once more."""
    delivery = build()
    vendor.failures, vendor.headers = [429], {"Retry-After": "600"}
    delivery.record(make_events(3))
    delivery.flush(0.3)
    assert delivery.flush(0.05).pending == 3
    assert len(vendor.calls) == 1
    delivery.close()
    assert delivery.counts() == DeliveryCounts(accepted=3, delivered=3)


def test_a_flush_is_not_fooled_by_a_batch_being_settled(build, vendor):  # noqa: F811
    """A flush that comes while listeners hear of one batch waits for the next batch all the same."""
    delivery = build(batch_size=2)
    entered, release = threading.Event(), threading.Event()

    def linger(**kwargs):
        entered.set()
        release.wait(SOON)

    vendor.failures, vendor.headers = [200, 429], {"Retry-After": "0.2"}
    events_delivered.connect(linger)
    try:
        delivery.record(make_events(2))
        assert entered.wait(SOON)
        delivery.record(make_events(1))
        releaser = threading.Timer(0.05, release.set)
        releaser.start()
        assert delivery.flush(SOON).delivered == 3
        releaser.join(SOON)
    finally:
        events_delivered.disconnect(linger)


@pytest.fixture
def sandbox(settings):
    """A sandbox over HTTP that fails half of the time: before an event is counted, or after."""
    engine = Engine(load_workspace())
    faults = Faults(error_rate=0.25, reset=0.2, malformed=0.15, seed=7)
    with build_server(engine, faults=faults) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        workspace = engine.workspace
        settings.MOE_PERSONALIZE = {
            "BASE_URL": server.url,
            "WORKSPACE_ID": workspace.workspace_id,
            "API_KEY": workspace.api_key,
        }
        yield server
        reset()
        server.shutdown()
        thread.join(SOON)


def test_every_event_counts_once_in_a_failing_workspace(sandbox):
    """Errors, resets and broken answers lose nothing and count nothing twice, by the vendor's own count."""
    faults, sandbox.injector.faults = sandbox.injector.faults, Faults()
    hero = get_client().fetch_experiences(["hero-banner"], customer_id="1", deadline=Deadline(SOON)).experiences
    sandbox.injector.faults = faults
    context = hero["hero-banner"].experience_context
    now = int(time.time()) - 10
    events = [Event(Action.SHOWN, str(number), context, now) for number in range(400)]
    delivery = ThreadDelivery(batch_size=10, backoff=0.005, max_attempts=1000)
    for event in events:
        delivery.record([event])
    assert delivery.flush(3 * SOON) == DeliveryCounts(accepted=400, delivered=400)
    delivery.close()
    assert sandbox.engine.ledger.counts()["hero-banner"].impressions == 400
    assert {entry.event_uuid for entry in sandbox.engine.ledger.entries()} == set(uuids(events))


# -- bounds


def test_events_beyond_the_bound_are_dropped_and_counted(build, vendor, caplog, heard):  # noqa: F811
    """The bound holds for what waits and what is being sent; one line a flood, and room is used again."""
    delivery = build(max_events=4, batch_size=2)
    vendor.hang.clear()
    delivery.record(make_events(2))
    assert vendor.wait_for(lambda vendor: vendor.arrived)
    delivery.record(make_events(4))
    counts = delivery.counts()
    assert (counts.pending, counts.dropped) == (4, {"overflow": 2})
    delivery.record(make_events(3))
    vendor.hang.set()
    assert delivery.flush(SOON) == DeliveryCounts(accepted=9, delivered=4, dropped={"overflow": 5})
    assert len(messages(caplog)) == 1
    delivery.record(make_events(5))
    assert delivery.flush(SOON).delivered == 8
    assert len(messages(caplog)) == 2
    assert sum(count for reason, count in heard if reason == "overflow") == 6


def test_memory_is_bounded_too(build):
    """Few large events hit the bound of bytes, and their bytes are given back when they are delivered."""
    large = [make_event(note="x" * 10_000) for _ in range(5)]
    delivery = build(max_bytes=3 * estimate_size(large[0]))
    for _ in range(2):
        delivery.record(large)
        assert delivery.flush(SOON).pending == 0
    assert delivery.counts() == DeliveryCounts(accepted=10, delivered=6, dropped={"overflow": 4})


def test_the_books_hold_at_every_moment(build, vendor):  # noqa: F811
    """While threads record and the vendor fails at random, the sum is right whenever one looks."""
    delivery = build(max_events=300, max_attempts=2, batch_size=20, interval=0.0)
    stop = threading.Event()
    wrong = []

    def look():
        while not stop.is_set():
            counts = delivery.counts()
            booked = counts.delivered + sum(counts.dropped.values()) + counts.pending
            if counts.accepted != booked or counts.pending < 0:
                wrong.append(counts)

    def record():
        for number in range(100):
            delivery.record(make_events(5))
            if number % 10 == 0:
                with vendor.changed:
                    vendor.failures.append(500)

    watcher = threading.Thread(target=look)
    recorders = [threading.Thread(target=record) for _ in range(3)]
    for thread in (watcher, *recorders):
        thread.start()
    for thread in recorders:
        thread.join(SOON)
    counts = delivery.flush(SOON)
    stop.set()
    watcher.join(SOON)
    assert wrong == []
    assert (counts.accepted, counts.pending) == (1500, 0)
    assert counts.delivered == vendor.taken.total() == len(vendor.taken)


def test_a_thread_that_cannot_start_costs_no_event(build):
    """When the system gives no thread the events wait for one."""
    delivery = build()
    with no_threads():
        delivery.record(make_events(1))
        assert delivery.flush().pending == 1
    delivery.record(make_events(1))
    assert delivery.flush(SOON).delivered == 2


# -- the end


def test_flush_gives_up_in_time(build, vendor):  # noqa: F811
    """A flush waits for a hung vendor no longer than it may, and says what is pending."""
    delivery = build()
    vendor.hang.clear()
    delivery.record(make_events(3))
    assert delivery.flush(0.05) == DeliveryCounts(accepted=3, pending=3)


def test_erased_events_are_not_sent(build, vendor, heard):  # noqa: F811
    """What waits of one customer is dropped, with its memory; others are delivered, and a flush does not hang."""
    delivery = build()
    ann, bob = make_event("ann"), make_event("bob")
    delivery.record([ann, bob, make_event("ann")])
    assert delivery.erase("ann") == 2
    assert delivery.erase("nobody") == 0
    assert delivery._bytes == estimate_size(bob)
    assert delivery.flush(SOON) == DeliveryCounts(accepted=3, delivered=1, dropped={"erased": 2})
    assert vendor.taken == {bob.event_uuid: 1}
    assert sorted(heard) == [("delivered", 1), ("erased", 2)]


def test_erased_events_on_their_way_are_not_tried_again(build, vendor):  # noqa: F811
    """What is being sent cannot be called back; if it fails it is dropped, and what is recorded later is not."""
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


def test_close_delivers_what_is_left(build, vendor):  # noqa: F811
    """Closing sends everything, once; the thread ends, and what comes later is dropped as such."""
    delivery = build()
    delivery.record(make_events(250))
    thread = delivery._thread
    delivery.close()
    assert delivery.counts() == DeliveryCounts(accepted=250, delivered=250)
    thread.join(SOON)
    assert not thread.is_alive()
    delivery.record(make_events(2))
    delivery.close()
    assert delivery.counts() == DeliveryCounts(accepted=252, delivered=250, dropped={"exit": 2})
    assert vendor.taken.total() == 250


def test_close_gives_up_in_time_and_counts_the_rest(build, vendor, caplog, heard):  # noqa: F811
    """What a hung vendor did not take in time is dropped once, whatever its late answer says."""
    delivery = build(exit_timeout=0.1, batch_size=10)
    vendor.hang.clear()
    delivery.record(make_events(25))
    begun = time.monotonic()
    delivery.close()
    assert time.monotonic() - begun < SOON / 2
    assert delivery.counts() == DeliveryCounts(accepted=25, dropped={"exit": 25})
    # The late answer may be warned of before or after.
    errors = [message for level, message in messages(caplog) if level == "ERROR"]
    assert errors == ["25 events were not delivered before the exit and are dropped"]
    assert heard == [("exit", 25)]
    thread = delivery._thread
    vendor.hang.set()
    thread.join(SOON)
    assert not thread.is_alive()
    assert delivery.counts() == DeliveryCounts(accepted=25, dropped={"exit": 25})


def test_close_does_not_wait_for_a_pause(build, vendor):  # noqa: F811
    """With credentials known to be wrong the exit takes no time."""
    delivery = build(exit_timeout=SOON)
    vendor.status = 401
    delivery.record(make_events(3))
    delivery.flush(SOON)
    begun = time.monotonic()
    delivery.close()
    assert time.monotonic() - begun < SOON / 2
    assert delivery.counts().dropped == {"exit": 3}
    assert len(vendor.calls) == 1


# -- forks


def test_a_child_owns_what_it_records_and_nothing_else(build, vendor):  # noqa: F811
    """Parent and child deliver their own events, each once, though the lock was held at the fork."""
    delivery = build()
    mine, childs = make_events(3), make_events(2)
    delivery.record(mine)

    def record_in_child():
        started_empty = delivery.counts() == DeliveryCounts()
        delivery.record(childs)
        return started_empty and delivery.flush(SOON) == DeliveryCounts(accepted=2, delivered=2)

    with delivery._changed:
        assert in_child(record_in_child)
    assert vendor.taken == dict.fromkeys(uuids(childs), 1)
    assert delivery.flush(SOON) == DeliveryCounts(accepted=3, delivered=3)
    assert vendor.taken == dict.fromkeys(uuids(mine + childs), 1)


@pytest.mark.parametrize("first", ["record", "flush", "close"])
def test_a_fork_without_python_hooks_is_noticed(build, vendor, first):  # noqa: F811
    """Some servers fork in C: the child notices by its process id, whatever it does first."""
    delivery = build()
    delivery.record(make_events(3))
    pool._forkables.discard(delivery)

    def use_in_child():
        if first == "record":
            delivery.record(make_events(2))
            return delivery.flush(SOON) == DeliveryCounts(accepted=2, delivered=2)
        getattr(delivery, first)()
        return delivery.counts() == DeliveryCounts()

    assert in_child(use_in_child)
    assert delivery.flush(SOON).delivered == 3
    assert set(vendor.taken.values()) == {1}

"""The outbox on SQLite over time: leases, what is parked, replayed, erased and purged, and who watches it."""

import json
import uuid
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from django_moe_personalize.delivery import outbox as outbox_module
from django_moe_personalize.delivery.base import DeliveryCounts
from django_moe_personalize.delivery.deliverer import PATIENCE, Deliverer
from django_moe_personalize.delivery.outbox import Outbox, Settlement, State
from django_moe_personalize.models import OutboxEvent, OutboxTally
from django_moe_personalize.moengage.types import Event
from django_moe_personalize.resilience import Deadline
from tests.delivery_vendor import SOON
from tests.test_delivery import heard, make_event, make_events, messages, vendor  # noqa: F401 - fixtures among them
from tests.test_delivery_database import build, make_due  # noqa: F401 - a fixture among them

pytestmark = pytest.mark.django_db


@pytest.fixture
def delivery(build):  # noqa: F811
    """Give a delivery with short waits."""
    return build()


# -- leases


def test_a_lease_is_one_deliverers_until_it_runs_out(delivery):
    """Two deliverers never have the same row; one that was killed leaves it to the other."""
    delivery.record(make_events(5))
    first, second, third = (Outbox().lease(limit, 60.0) for limit in (3, 3, 3))
    assert [len(lease.rows) for lease in (first, second, third)] == [3, 2, 0]
    assert len({row.pk for lease in (first, second) for row in lease.rows}) == 5
    make_due()
    assert len(Outbox().lease(10, 60.0).rows) == 5


def test_the_longest_due_are_first():
    """Rows come in the order in which they became due."""
    now = timezone.now()
    events = make_events(3)
    for event, age in zip(events, (1, 3, 2), strict=True):
        OutboxEvent.build(event, now - timedelta(seconds=age)).save()
    assert [Event.read(row.body) for row in Outbox().lease(2, 60.0).rows] == [events[1], events[2]]


def test_the_due_are_found_by_the_index(delivery):
    """However many wait: they are neither sorted nor looked through."""
    delivery.record(make_events(5))
    plan = delivery.outbox.due.order_by("due_at")[:2].explain()
    assert "USING INDEX moe_outbox_due" in plan
    assert "TEMP" not in plan


def test_a_lease_does_not_show_whose_events_it_holds(delivery):
    """An error report prints the locals of a deliverer."""
    delivery.record([make_event("customer-4711")])
    lease = Outbox().lease(1, 60.0)
    assert "customer-4711" in lease.rows[0].body
    assert "4711" not in repr(lease)


def test_who_lost_the_lease_settles_nothing(delivery, vendor, heard):  # noqa: F811
    """A deliverer that comes back too late leaves the rows, and the books, to who has them now."""
    delivery.record(make_events(3))
    late = Outbox().lease(10, 60.0)
    pks = [row.pk for row in late.rows]
    make_due()
    assert len(Outbox().lease(10, 60.0).rows) == 3
    settlement = Settlement([pks[0]], {pks[1]: (State.REFUSED, "no")}, {pks[2]: 0.0})
    assert Outbox().settle(late, settlement) == {}
    assert delivery.counts() == DeliveryCounts(accepted=3, pending=3)
    assert not OutboxEvent.objects.filter(lease=late.token).exists()
    assert heard == []


def test_a_lock_that_is_lost_is_tried_for_again(delivery, monkeypatch):
    """A deadlock costs a moment, not what was to be entered; one that stays is the caller's to hear of."""
    monkeypatch.setattr(outbox_module, "_RETRY_WAITS", (0.0, 0.0))
    failures = [1, 2]
    delete = Outbox._delete

    def deadlock(outbox, *args):
        if failures:
            failures.pop()
            raise outbox_module.OperationalError("deadlock detected")
        return delete(outbox, *args)

    monkeypatch.setattr(Outbox, "_delete", deadlock)
    delivery.record(make_events(1))
    assert delivery.erase("0") == 1
    failures += [1, 2, 3]
    with pytest.raises(outbox_module.OperationalError):
        delivery.erase("0")


# -- parked, erased, purged


def test_replayed_events_are_sent_again(delivery, vendor):  # noqa: F811
    """Some or all parked events become due, and move from dropped to pending to delivered."""
    events = make_events(3)
    vendor.poison = {event.event_uuid for event in events}
    delivery.record(events)
    assert delivery.flush() == DeliveryCounts(accepted=3, dropped={"refused": 3})
    vendor.poison = set()
    assert delivery.outbox.replay([uuid.UUID(events[0].event_uuid), uuid.uuid4()]) == 1
    assert delivery.counts() == DeliveryCounts(accepted=3, dropped={"refused": 2}, pending=1)
    assert delivery.outbox.replay() == 2
    assert delivery.flush() == DeliveryCounts(accepted=3, delivered=3)


def test_erase_deletes_what_there_is_of_a_customer(delivery, vendor, heard):  # noqa: F811
    """Pending, leased and parked rows go, of exactly this customer, and are counted as erased."""
    events = [make_event("ann"), make_event("Ann"), make_event("ann "), make_event("ann")]
    delivery.record(events)
    OutboxEvent.objects.filter(event_uuid=events[3].event_uuid).update(state=State.REFUSED)
    assert delivery.erase("ann") == 2
    assert delivery.erase("ann") == 0
    assert delivery.counts() == DeliveryCounts(accepted=4, dropped={"erased": 2}, pending=2)
    assert heard == [("erased", 2)]
    delivery.flush()
    assert sorted(element["customer_id"] for element in vendor.bodies[0]["elements"]) == ["Ann", "ann "]


def test_parked_events_are_kept_for_their_time(build, vendor):  # noqa: F811
    """Older ones are deleted by the way, and stay counted under their reason."""
    delivery = build(retention=60.0)
    events = make_events(3)
    vendor.poison = {event.event_uuid for event in events}
    delivery.record(events)
    delivery.flush()
    old = OutboxEvent.objects.filter(event_uuid__in=[events[0].event_uuid, events[1].event_uuid])
    old.update(due_at=timezone.now() - timedelta(seconds=61))
    OutboxEvent.objects.filter(event_uuid=events[1].event_uuid).update(state=State.ATTEMPTS)
    counts = delivery.flush()
    assert counts == DeliveryCounts(accepted=3, dropped={"refused": 2, "attempts": 1})
    assert OutboxEvent.objects.count() == 1


def test_the_oldest_pending_event_is_found(delivery):
    """Its age tells whether anybody delivers; parked ones do not count."""
    assert delivery.outbox.find_oldest() is None
    delivery.record(make_events(2))
    first, second = OutboxEvent.objects.order_by("pk")
    assert delivery.outbox.find_oldest() == first.created_at
    OutboxEvent.objects.filter(pk=first.pk).update(state=State.REFUSED)
    assert delivery.outbox.find_oldest() == second.created_at


def test_rows_and_tallies_say_what_they_are():
    """A shell shows an event by its UUID, without whose it is, and a tally by its outcome."""
    event = make_event("customer-4711")
    row = OutboxEvent.build(event, timezone.now())
    assert str(row) == event.event_uuid
    assert "4711" not in repr(row)
    assert str(OutboxTally(outcome="delivered")) == "delivered"
    assert json.loads(row.body)["customer_id"] == "customer-4711"


# -- watching


def watch(delivery, *, until, interval=0.01):
    """Watch the outbox until ``until(batches)`` holds, which is asked after each wait."""
    batches = []
    deliverer = Deliverer(delivery, on_batch=batches.append)
    wait = deliverer._wait
    waits = []

    def wait_a_little(seconds, deadline=None):
        waits.append(seconds)
        make_due()
        if until(batches) or len(waits) > 100:
            deliverer.stop()
        wait(min(seconds, 0.01), deadline)

    deliverer._wait = wait_a_little
    deliverer.watch(interval)
    return batches, waits


def test_watching_delivers_what_comes_later(delivery, vendor):  # noqa: F811
    """Who watches looks again after the interval, through failures, until told to stop."""
    vendor.failures = [500] * (PATIENCE + 2)
    delivery.record(make_events(1))
    _, waits = watch(delivery, until=lambda batches: vendor.taken)
    assert len(vendor.calls) == PATIENCE + 3
    assert waits[-1] == 0.01
    delivery.record(make_events(1))
    watch(delivery, until=lambda batches: vendor.taken.total() == 2)
    assert delivery.counts() == DeliveryCounts(accepted=2, delivered=2)


def test_a_deliverer_looks_for_old_parked_events_now_and_then(build, vendor):  # noqa: F811
    """When it first finds nothing due, and then once an hour, not each time."""
    delivery = build(retention=60.0)
    deliverer = Deliverer(delivery)
    for expected in (0, 1):
        delivery.record(make_events(1))
        OutboxEvent.objects.update(state=State.REFUSED, due_at=timezone.now() - timedelta(seconds=61))
        deliverer.drain()
        assert OutboxEvent.objects.count() == expected
    assert delivery.counts() == DeliveryCounts(accepted=2, dropped={"refused": 2})


def test_watching_pauses_longer_and_longer_after_wrong_credentials(build, vendor):  # noqa: F811
    """One call a pause, which doubles, and starts anew after things worked."""
    delivery = build(pause=60.0)
    vendor.failures = [401, 401, 401, 200]
    delivery.record(make_events(1))
    _, waits = watch(delivery, until=lambda batches: len(batches) == 4)
    assert waits == [60.0, 120.0, 240.0, 0.01]


@pytest.mark.django_db(transaction=True)
def test_watching_survives_the_database(delivery, vendor, caplog):  # noqa: F811
    """A database that fails is a line in the log without what it said, and a wait."""
    table = OutboxEvent._meta.db_table
    delivery.record(make_events(1))
    deliverer = Deliverer(delivery, on_batch=lambda outcome: deliverer.stop())
    lines = []

    def wait(seconds, deadline=None):
        lines[:] = messages(caplog)
        if len(lines) == 2 and not vendor.taken:
            rename("away", table)

    deliverer._wait = wait
    rename(table, "away")
    deliverer.watch(0.01)
    assert vendor.taken.total() == 1
    assert lines == [("WARNING", "The outbox cannot be used for now: OperationalError")] * 2


def rename(old, new):
    """Give a table another name."""
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")


def test_a_stopped_deliverer_finishes_the_batch_in_hand(delivery, vendor):  # noqa: F811
    """What is on its way is settled, what is not is left for others."""
    delivery.record(make_events(250))
    deliverer = Deliverer(delivery, on_batch=lambda outcome: deliverer.stop())
    assert deliverer.drain(deadline=Deadline(SOON)) is None
    assert delivery.counts() == DeliveryCounts(accepted=250, delivered=100, pending=150)

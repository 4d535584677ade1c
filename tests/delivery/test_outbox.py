"""The outbox on SQLite: leases, and parked, replayed, erased and purged events."""

import json
from datetime import timedelta

import pytest
from django.db import connections
from django.db.backends.dummy.base import DatabaseWrapper as NoDatabase
from django.utils import timezone

from django_moe_personalize.delivery import outbox as outbox_module
from django_moe_personalize.delivery.base import DeliveryCounts
from django_moe_personalize.delivery.database import DatabaseDelivery
from django_moe_personalize.delivery.outbox import Outbox, Settlement, State
from django_moe_personalize.models import OutboxCounter, OutboxEvent, Switch
from django_moe_personalize.moengage.types import Event
from tests.delivery.conftest import make_due
from tests.delivery.events import make_event, make_events

pytestmark = pytest.mark.django_db


def test_a_lease_belongs_to_one_deliverer_until_it_runs_out(delivery):
    """Two deliverers never lease the same row. When a lease has run out, another deliverer gets the row."""
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


def test_due_rows_are_found_by_the_index(delivery):
    """The database reads the due rows in the order of the index. It doesn't sort the pending rows."""
    delivery.record(make_events(5))
    plan = delivery.outbox.due.order_by("due_at")[:2].explain()
    assert "USING INDEX moe_outbox_due" in plan
    assert "TEMP" not in plan


def test_a_deliverer_that_lost_its_lease_settles_nothing(delivery, vendor, heard):
    """The deliverer with the old lease changes neither the rows of the new lease nor the counters."""
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


def test_a_deadlock_is_retried(delivery, monkeypatch):
    """A transaction that loses a deadlock is tried again. The caller gets the error of the third time."""
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


def test_erase_deletes_all_events_of_a_customer(delivery, vendor, heard):
    """Pending, leased and parked rows of exactly this customer are deleted and counted as erased."""
    events = [make_event("ann"), make_event("Ann"), make_event("ann "), make_event("ann")]
    delivery.record(events)
    OutboxEvent.objects.filter(event_uuid=events[3].event_uuid).update(state=State.REFUSED)
    assert delivery.erase("ann") == 2
    assert delivery.erase("ann") == 0
    assert delivery.counts() == DeliveryCounts(accepted=4, dropped={"erased": 2}, pending=2)
    assert heard == [("erased", 2)]
    delivery.flush()
    assert sorted(element["customer_id"] for element in vendor.bodies[0]["elements"]) == ["Ann", "ann "]


def test_erase_finds_events_from_before_a_new_secret_key(delivery, settings):
    """Without the key, nobody can confirm a guessed id by its hash. While the old key is a fallback, it erases too."""
    hashes = set()
    for key in ("first", b"second", "third"):
        settings.SECRET_KEY = key
        delivery.record([make_event("ann"), make_event("ann"), make_event("bob")])
        hashes.update(OutboxEvent.objects.values_list("customer_hash", flat=True))
    assert len(hashes) == 6
    settings.SECRET_KEY_FALLBACKS = [b"second"]
    assert delivery.erase("ann") == 4
    settings.SECRET_KEY_FALLBACKS = ["first", b"second"]
    assert delivery.erase("ann") == 2
    assert delivery.counts() == DeliveryCounts(accepted=9, dropped={"erased": 6}, pending=3)


def test_parked_events_are_kept_for_the_retention_time(build_outbox, vendor):
    """A process that finds no due event deletes older parked events. The counters still count the deleted events."""
    delivery = build_outbox(retention=60.0)
    events = make_events(3)
    vendor.poison = {event.event_uuid for event in events}
    delivery.record(events)
    delivery.flush()
    old = OutboxEvent.objects.filter(event_uuid__in=[events[0].event_uuid, events[1].event_uuid])
    old.update(due_at=timezone.now() - timedelta(seconds=61))
    OutboxEvent.objects.filter(event_uuid=events[1].event_uuid).update(state=State.ATTEMPTS)
    assert delivery.flush().dropped == {"refused": 2, "attempts": 1}
    # Not each time: the next search is an hour later.
    assert OutboxEvent.objects.count() == 3
    counts = DatabaseDelivery(retention=60.0).flush()
    assert counts == DeliveryCounts(accepted=3, dropped={"refused": 2, "attempts": 1})
    assert OutboxEvent.objects.count() == 1


def test_the_oldest_pending_event_is_found(delivery):
    """find_oldest() returns the time of the oldest pending event, and ignores parked events."""
    assert delivery.outbox.find_oldest() is None
    delivery.record(make_events(2))
    first, second = OutboxEvent.objects.order_by("pk")
    assert delivery.outbox.find_oldest() == first.created_at
    OutboxEvent.objects.filter(pk=first.pk).update(state=State.REFUSED)
    assert delivery.outbox.find_oldest() == second.created_at


def test_text_of_rows_counters_and_leases(delivery):
    """A shell shows an event by its UUID, and a counter by its outcome. No text names the customer."""
    event = make_event("customer-4711")
    delivery.record([event])
    row, lease = OutboxEvent.objects.get(), Outbox().lease(1, 60.0)
    assert json.loads(row.body)["customer_id"] == "customer-4711"
    assert lease.rows[0].body == row.body
    assert (str(row), str(OutboxCounter(outcome="delivered"))) == (event.event_uuid, "delivered")
    assert "4711" not in repr((row, lease))


def test_site_without_a_database():
    """The models pass the system checks of a site whose DATABASES is empty."""
    connections["nowhere"] = NoDatabase({**connections["default"].settings_dict, "ENGINE": ""}, "nowhere")
    try:
        assert [model.check(databases=["nowhere"]) for model in (OutboxEvent, OutboxCounter, Switch)] == [[]] * 3
    finally:
        del connections["nowhere"]

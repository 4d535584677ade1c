"""The background thread: flush, erase and close."""

import time

from django_moe_personalize.delivery.base import DeliveryCounts
from tests.delivery.events import make_event, make_events, messages
from tests.delivery.vendor import SOON


def test_flush_gives_up_in_time(build, vendor):
    """A flush waits for a MoEngage that hangs until its timeout, and returns the pending events."""
    delivery = build()
    vendor.hang.clear()
    delivery.record(make_events(3))
    assert delivery.flush(0.05) == DeliveryCounts(accepted=3, pending=3)


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
    """close() sends each event once and ends the thread. Later events are dropped as ``exit``."""
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


def test_close_gives_up_in_time_and_counts_the_rest(build, vendor, caplog, heard):
    """Events that a MoEngage that hangs didn't accept in time are dropped once, whatever its late response is."""
    delivery = build(exit_timeout=0.1, batch_size=10)
    vendor.hang.clear()
    delivery.record(make_events(25))
    begun = time.monotonic()
    delivery.close()
    assert time.monotonic() - begun < SOON / 2
    assert delivery.counts() == DeliveryCounts(accepted=25, dropped={"exit": 25})
    # The warning about the late response may come before or after.
    errors = [message for level, message in messages(caplog) if level == "ERROR"]
    assert errors == ["Dropped 25 events: MoEngage didn't accept them before the process ended"]
    assert heard == [("exit", 25)]
    thread = delivery._thread
    vendor.hang.set()
    thread.join(SOON)
    assert not thread.is_alive()
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

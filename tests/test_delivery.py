"""One attempt at delivery, the books, and the ways that keep nothing, against a vendor on loopback."""

import asyncio
import logging
import os
import threading
from types import SimpleNamespace

import pytest

from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.delivery.base import BaseDelivery, DeliveryCounts, get_delivery, reset_delivery
from django_moe_personalize.delivery.dummy import DummyDelivery
from django_moe_personalize.delivery.immediate import ImmediateDelivery
from django_moe_personalize.delivery.sending import MAX_BODY_BYTES, count_fitting, estimate_size, send
from django_moe_personalize.delivery.thread import ThreadDelivery
from django_moe_personalize.exceptions import AuthenticationError, RateLimitedError, ServerError, TransportError
from django_moe_personalize.moengage.types import Action, Event
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.signals import events_delivered, events_dropped
from tests.delivery_vendor import SOON, Vendor
from tests.processes import in_child

CONTEXT = {
    "cid": "65ea_F_T_WP_AB_2_P_0_AU_42D",
    "experience": "Home hero",
    "moe_locale_id": "0",
    "moe_variation_id": "2",
    "audience_name": "Everyone",
    "audience_id": "42D",
}


def make_event(customer="42", **attributes):
    """Return an impression."""
    return Event(Action.SHOWN, customer, {**CONTEXT, **attributes}, 1_760_000_000)


def make_events(count):
    """Return impressions of as many customers."""
    return [make_event(str(number)) for number in range(count)]


@pytest.fixture
def vendor(settings):
    with Vendor() as vendor:
        settings.MOE_PERSONALIZE = vendor.settings()
        yield vendor
        # What a test left pending must not wait for a vendor that is gone.
        vendor.status, vendor.failures = 200, []
        vendor.hang.set()
        reset_delivery()


@pytest.fixture
def heard():
    """Every signal of delivery: ("delivered", count) or (reason, count)."""
    signals = []

    def on_delivered(count, **kwargs):
        signals.append(("delivered", count))

    def on_dropped(count, reason, **kwargs):
        signals.append((reason, count))

    events_delivered.connect(on_delivered)
    events_dropped.connect(on_dropped)
    yield signals
    events_delivered.disconnect(on_delivered)
    events_dropped.disconnect(on_dropped)


def messages(caplog):
    """Return level and text of what the package logged."""
    ours = [record for record in caplog.records if record.name == "django_moe_personalize"]
    return [(record.levelname, record.getMessage()) for record in ours]


# -- one attempt


def test_send_groups_up_to_100_customers_a_call(vendor):
    """250 customers travel in three calls of at most 100 elements, in order."""
    events = make_events(250)
    outcome = send(events, timeout=SOON)
    assert outcome.delivered == events
    assert [len(body["elements"]) for body in vendor.bodies] == [100, 100, 50]
    assert [uuid for _, uuids in vendor.calls for uuid in uuids] == [event.event_uuid for event in events]


def test_send_keeps_a_call_below_the_body_limit(vendor):
    """Large events of few customers are split by size; one that is too large alone is still tried."""
    large = [make_event("1", note="x" * 40_000) for _ in range(3)] + [make_event("2", note="x" * 200_000)]
    assert send(large, timeout=SOON).delivered == large
    assert [len(uuids) for _, uuids in vendor.calls] == [2, 1, 1]


def test_count_fitting_takes_many_events_of_one_customer():
    """The limit of 100 is of customers: their events are bounded by the size alone."""
    assert count_fitting((event, 100) for event in [make_event()] * 500) == 500
    assert count_fitting((event, MAX_BODY_BYTES // 4) for event in [make_event()] * 500) == 4
    assert count_fitting(((event, 1) for event in make_events(9)), max_customers=3) == 3
    assert count_fitting([]) == 0


def test_estimate_is_about_what_an_event_takes_on_the_wire():
    """Flat and nested attributes are both estimated within a half of their JSON."""
    flat, nested = make_event(), make_event(offer={"moe_offering_id": "x" * 500})
    assert 250 <= estimate_size(flat) <= 600
    assert 500 <= estimate_size(nested) - estimate_size(flat) <= 900


def test_one_poison_event_among_100_is_refused_alone(vendor):
    """A 400 is halved until the bad event is alone: 99 arrive, in few calls, each once."""
    events = make_events(100)
    vendor.poison = {events[37].event_uuid}
    outcome = send(events, timeout=SOON)
    assert [event for event, _ in outcome.refused] == [events[37]]
    assert outcome.refused[0][1].description == "no"
    assert outcome.delivered == events[:37] + events[38:]
    assert set(vendor.taken.values()) == {1}
    assert len(vendor.calls) <= 15
    assert (outcome.kept, outcome.error) == ([], None)


def test_an_event_that_is_no_json_is_refused_alone(vendor):
    """An event that cannot be written costs no call, and its neighbours arrive."""
    events = [make_event(), make_event(b_id=object()), make_event()]
    outcome = send(events, timeout=SOON)
    assert [event for event, _ in outcome.refused] == [events[1]]
    assert outcome.delivered == [events[0], events[2]]


@pytest.mark.parametrize(
    ("status", "error"), [(500, ServerError), (503, ServerError), (429, RateLimitedError)], ids=lambda value: value
)
def test_send_stops_at_the_first_failure_and_keeps_the_rest(vendor, status, error):
    """After a failure that is not the events' fault nothing more is asked, and no event is lost."""
    vendor.failures = [200, status]
    events = make_events(350)
    outcome = send(events, timeout=SOON)
    assert isinstance(outcome.error, error)
    assert not outcome.needs_human
    assert (outcome.delivered, outcome.kept) == (events[:100], events[100:])
    assert len(vendor.calls) == 2


def test_retry_after_comes_from_the_rate_limit_alone(vendor):
    """The vendor's waiting time is handed on; other failures have none."""
    vendor.failures = [429, 429, 500]
    vendor.headers = {"Retry-After": "7"}
    assert send(make_events(1), timeout=SOON).retry_after == 7.0
    vendor.headers = {}
    assert send(make_events(1), timeout=SOON).retry_after == 0.0
    assert send(make_events(1), timeout=SOON).retry_after == 0.0


def test_wrong_credentials_need_a_human(vendor, settings):
    """401, an unknown workspace and missing settings are not retried blindly, nor blamed on the events."""
    vendor.status = 401
    outcome = send(make_events(3), timeout=SOON)
    assert isinstance(outcome.error, AuthenticationError)
    assert outcome.needs_human
    vendor.status, vendor.title = 400, "Request Error"
    outcome = send(make_events(3), timeout=SOON)
    assert (len(outcome.kept), outcome.needs_human) == (3, True)
    assert len(vendor.calls) == 2
    settings.MOE_PERSONALIZE = {"SANDBOX": False}
    outcome = send(make_events(3), timeout=SOON)
    assert (len(outcome.kept), outcome.needs_human) == (3, True)


def test_send_is_bounded_by_both_times(vendor):
    """A call ends after its own timeout, or at the end of all, whichever is first."""
    vendor.hang.clear()
    for timeout, until in ((0.05, None), (SOON, Deadline(0.05)), (0.05, Deadline(SOON)), (0.05, Deadline(None))):
        outcome = send(make_events(1), timeout=timeout, until=until)
        assert isinstance(outcome.error, TransportError)
        assert len(outcome.kept) == 1


# -- the interface


def test_base_class_is_an_interface():
    """A subclass has to say how it takes events; without that they are dropped, not raised into a page."""
    delivery = BaseDelivery()
    delivery.record(make_events(2))
    assert delivery.flush() == DeliveryCounts(accepted=2, dropped={"error": 2})
    assert delivery.erase("0") == 0
    delivery.close()
    with pytest.raises(NotImplementedError):
        delivery.take([])


def test_record_never_raises(caplog, heard):
    """A way that breaks costs the events, with a reason, a signal and a line that holds nothing of them."""

    class Broken(BaseDelivery):
        def take(self, events):
            raise RuntimeError(f"cannot store {events[0].customer_id}")

    delivery = Broken()
    delivery.record([make_event("customer-4711")])
    assert delivery.counts().dropped == {"error": 1}
    assert heard == [("error", 1)]
    assert messages(caplog) == [
        ("ERROR", "Events could not be taken over for delivery and are dropped: RuntimeError"),
    ]


def test_recording_nothing_is_nothing():
    """An empty record is not even counted."""
    delivery = DummyDelivery()
    delivery.record([])
    assert delivery.counts() == DeliveryCounts()


def test_a_listener_that_breaks_costs_nothing():
    """A signal's receiver that raises does not reach the page."""

    def explode(**kwargs):
        raise ValueError("mine")

    events_delivered.connect(explode)
    try:
        delivery = DummyDelivery()
        delivery.record(make_events(1))
    finally:
        events_delivered.disconnect(explode)
    assert delivery.counts().delivered == 1


def test_dummy_keeps_events_for_a_site_to_look_at(heard):
    """Events stay in order and count as delivered; sync and async alike."""
    delivery = DummyDelivery()
    events = make_events(3)
    delivery.record(events[:2])
    asyncio.run(delivery.arecord(events[2:]))
    assert delivery.events == events
    assert delivery.flush(1.0) == DeliveryCounts(accepted=3, delivered=3)
    assert heard == [("delivered", 2), ("delivered", 1)]


def test_books_start_empty_in_a_child():
    """What the parent took over is the parent's, with or without Python's fork hooks."""
    delivery = DummyDelivery()
    delivery.record(make_events(3))

    def is_empty():
        return delivery.counts() == DeliveryCounts() and delivery.events == []

    with delivery._books._lock:
        assert in_child(is_empty)

    def is_empty_without_hooks():
        delivery.record(make_events(3))
        delivery._pid = os.getppid()
        return is_empty()

    assert in_child(is_empty_without_hooks)
    assert delivery.counts().delivered == 3


# -- ImmediateDelivery


def test_immediate_delivers_before_it_returns(vendor, heard):
    """Events have arrived when record returns."""
    delivery = ImmediateDelivery()
    events = make_events(2)
    delivery.record(events)
    assert vendor.taken == {event.event_uuid: 1 for event in events}
    assert delivery.counts() == DeliveryCounts(accepted=2, delivered=2)
    assert heard == [("delivered", 2)]


def test_immediate_drops_what_fails(vendor, heard):
    """A failing vendor costs the events, never an exception; a refused one has its own reason."""
    delivery = ImmediateDelivery(timeout=1.0)
    events = make_events(2)
    vendor.poison = {events[0].event_uuid}
    delivery.record(events)
    vendor.status = 500
    delivery.record(make_events(1))
    assert delivery.counts() == DeliveryCounts(accepted=3, delivered=1, dropped={"refused": 1, "failed": 1})
    assert heard == [("delivered", 1), ("refused", 1), ("failed", 1)]


def test_immediate_does_not_block_the_event_loop(vendor):
    """The loop runs on while a hung vendor is being waited for, and so do other records."""

    async def record_beside_others():
        vendor.hang.clear()
        delivery = ImmediateDelivery()
        tasks = [asyncio.create_task(delivery.arecord(make_events(1))) for _ in range(2)]
        assert await asyncio.to_thread(vendor.wait_for, lambda vendor: vendor.arrived == 2)
        assert not any(task.done() for task in tasks)
        vendor.hang.set()
        await asyncio.wait_for(asyncio.gather(*tasks), SOON)

    asyncio.run(record_beside_others())
    assert vendor.taken.total() == 2


def test_log_has_one_line_a_change_and_nothing_personal(vendor, caplog):
    """However many attempts fail: one line when it begins, one when it gets worse, one when it is over."""
    caplog.set_level(logging.INFO, "django_moe_personalize")
    delivery = ImmediateDelivery()
    vendor.failures = [500, 503, 401, 401, 401]
    for _ in range(7):
        delivery.record([make_event("customer-4711")])
    assert messages(caplog) == [
        ("WARNING", "Events cannot be delivered for now: ServerError: MoEngage answered 500"),
        (
            "ERROR",
            "MoEngage takes no events with these settings (AuthenticationError: MoEngage answered 401: "
            "Authentication required): check WORKSPACE_ID, API_KEY and DATA_CENTER",
        ),
        ("INFO", "Events are delivered again"),
    ]


def test_refused_events_are_logged_by_number(vendor, caplog):
    """The line says how many and why, not whose."""
    events = [make_event("customer-4711"), make_event("customer-4712")]
    vendor.poison = {events[0].event_uuid}
    ImmediateDelivery().record(events)
    (line,) = messages(caplog)
    assert line == (
        "WARNING",
        "MoEngage refused 1 of 2 events: ResponseError: MoEngage answered 400: Invalid Field Value",
    )


# -- get_delivery


def backend(name, **options):
    return {"BACKEND": f"django_moe_personalize.delivery.{name}", "OPTIONS": options}


def test_get_delivery_is_the_one_of_the_settings(settings):
    """One instance a process, built as the setting says, the thread by default."""
    settings.MOE_PERSONALIZE = {"SANDBOX": True}
    assert isinstance(get_delivery(), ThreadDelivery)
    settings.MOE_PERSONALIZE = {"SANDBOX": True, "DELIVERY": backend("immediate.ImmediateDelivery", timeout=1.5)}
    delivery = get_delivery()
    assert isinstance(delivery, ImmediateDelivery)
    assert get_delivery() is delivery
    settings.DEBUG = not settings.DEBUG
    assert get_delivery() is delivery
    reset_delivery()
    assert get_delivery() is not delivery
    reset_delivery()


def test_changed_settings_flush_the_old_delivery(vendor, settings):
    """What was recorded before a change of settings is delivered, not forgotten."""
    settings.MOE_PERSONALIZE = vendor.settings(DELIVERY=backend("thread.ThreadDelivery", interval=60.0))
    old = get_delivery()
    old.record(make_events(3))
    settings.MOE_PERSONALIZE = vendor.settings(DELIVERY=backend("dummy.DummyDelivery"))
    assert isinstance(get_delivery(), DummyDelivery)
    assert old.counts() == DeliveryCounts(accepted=3, delivered=3)
    reset_delivery()


def test_many_threads_get_the_same_delivery(settings):
    """A race for the first delivery builds one."""
    settings.MOE_PERSONALIZE = {"SANDBOX": True, "DELIVERY": backend("dummy.DummyDelivery")}
    together = threading.Barrier(8)
    found = []

    def get():
        together.wait(SOON)
        found.append(get_delivery())

    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    reset_delivery()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("missing.Delivery", {}, "cannot be imported"),
        ("base.get_delivery", {}, "no subclass of BaseDelivery"),
        ("base.DeliveryCounts", {}, "no subclass of BaseDelivery"),
        ("thread.ThreadDelivery", {"max_event": 1}, "max_events, max_bytes"),
        ("dummy.DummyDelivery", {"max_events": 1}, "no options"),
        ("thread.ThreadDelivery", {"batch_size": 101}, "batch_size must be from 1 to 100, not 101"),
        ("thread.ThreadDelivery", {"max_events": 0}, "max_events must be at least 1, not 0"),
        ("thread.ThreadDelivery", {"max_bytes": "x"}, "OPTIONS"),
    ],
)
def test_mistakes_in_the_setting_say_what_is_valid(settings, name, options, message):
    """A backend that is none, and an option there is not, are configuration errors that help."""
    settings.MOE_PERSONALIZE = {"SANDBOX": True, "DELIVERY": backend(name, **options)}
    with pytest.raises(ConfigurationError, match=message):
        get_delivery()


def test_shared_delivery_of_a_child_is_not_locked_by_the_parent(settings):
    """A fork while another thread builds the delivery does not hang the child."""
    settings.MOE_PERSONALIZE = {"SANDBOX": True, "DELIVERY": backend("dummy.DummyDelivery")}
    reset_delivery()
    from django_moe_personalize.delivery import base

    held, release = threading.Event(), threading.Event()

    def hold():
        with base._shared.lock:
            held.set()
            release.wait(SOON)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(SOON)
    try:
        assert in_child(lambda: get_delivery().counts() == DeliveryCounts())
    finally:
        release.set()
        holder.join(SOON)


def test_events_that_cannot_be_measured_do_not_reach_the_page():
    """An event that is none is dropped when it is recorded."""
    delivery = ThreadDelivery()
    delivery.record([SimpleNamespace(attributes={})])
    assert delivery.counts() == DeliveryCounts(accepted=1, dropped={"error": 1})
    delivery.close()

"""The interface of deliveries, their counters, the delivery of a runtime, and the deliveries that keep nothing."""

import asyncio
import sys
from types import SimpleNamespace

import pytest

from django_moe_personalize.client import get_client
from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.delivery.base import BaseDelivery, DeliveryCounts, find_delivery, get_delivery
from django_moe_personalize.delivery.dummy import DummyDelivery
from django_moe_personalize.delivery.immediate import ImmediateDelivery
from django_moe_personalize.delivery.thread import ThreadDelivery
from django_moe_personalize.log import CREDENTIALS_FIX, DOCTOR_FIX
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.signals import events_delivered
from tests.delivery.conftest import connected
from tests.delivery.events import backend, make_event, make_events, messages
from tests.delivery.vendor import SOON, Vendor
from tests.processes import in_child

QUEUE = "celery.CeleryDelivery"


def test_record_never_raises(caplog, heard):
    """A delivery that fails drops the events of 30 pages. The log has the start and the end, and no personal data."""

    class Broken(BaseDelivery):
        def take(self, events):
            if self.counts().accepted <= 30:
                raise RuntimeError(f"cannot store {events[0].customer_id}")

    delivery = Broken()
    for _ in range(32):
        delivery.record([make_event("customer-4711")])
    assert delivery.flush() == DeliveryCounts(accepted=32, dropped={"error": 30}, pending=2)
    assert heard == [("error", 1)] * 30
    (_, start), (_, end) = messages(caplog)
    assert start.startswith("Broken can't take events (RuntimeError). Until it works, events are dropped.")
    assert end == "Broken takes events again after 0 s (30 failed)."
    assert {level for level, _ in messages(caplog)} == {"ERROR"}
    assert delivery.erase("0") == 0
    delivery.close()
    with pytest.raises(NotImplementedError):
        BaseDelivery().take([])


def test_a_receiver_that_raises_does_no_harm():
    """The exception of a signal's receiver does not reach the page."""

    def explode(**kwargs):
        raise ValueError("mine")

    delivery = DummyDelivery()
    with connected(explode, events_delivered):
        delivery.record(make_events(1))
    assert delivery.counts().delivered == 1


def test_dummy_keeps_events_for_a_sites_tests(heard):
    """Events stay in order and count as delivered, in sync and async code."""
    delivery = DummyDelivery()
    events = make_events(3)
    delivery.record([])
    assert delivery.counts() == DeliveryCounts()
    delivery.record(events[:2])
    asyncio.run(delivery.arecord(events[2:]))
    assert delivery.events == events
    assert delivery.flush(1.0) == DeliveryCounts(accepted=3, delivered=3)
    assert heard == [("delivered", 2), ("delivered", 1)]


def test_immediate_delivers_or_drops_before_it_returns(vendor, heard, caplog):
    """A failing MoEngage costs the events and raises nothing. A refused event is logged without its customer."""
    delivery = ImmediateDelivery(timeout=1.0)
    events = [make_event("customer-4711"), make_event("customer-4712")]
    vendor.poison = {events[0].event_uuid}
    delivery.record(events)
    assert vendor.taken == {events[1].event_uuid: 1}
    line = (
        "MoEngage refuses events (ResponseError: MoEngage answered 400: Invalid Field Value). These events aren't sent"
    )
    assert messages(caplog) == [("WARNING", f"{line} again.")]
    vendor.status = 500
    delivery.record(make_events(1))
    assert delivery.counts() == DeliveryCounts(accepted=3, delivered=1, dropped={"refused": 1, "failed": 1})
    assert heard == [("delivered", 1), ("refused", 1), ("failed", 1)]


def test_immediate_does_not_block_the_event_loop(vendor):
    """While a call of arecord() waits for MoEngage, the event loop runs and other calls continue."""

    async def record_concurrently():
        vendor.hang.clear()
        delivery = ImmediateDelivery()
        tasks = [asyncio.create_task(delivery.arecord(make_events(1))) for _ in range(2)]
        assert await asyncio.to_thread(vendor.wait_for, lambda vendor: vendor.arrived == 2)
        assert not any(task.done() for task in tasks)
        vendor.hang.set()
        await asyncio.wait_for(asyncio.gather(*tasks), SOON)

    asyncio.run(record_concurrently())
    assert vendor.taken.total() == 2


def test_log_has_one_line_a_change_and_no_personal_data(vendor, caplog):
    """Many attempts fail, but each change is one log line: failing, wrong credentials, and working again."""
    delivery = ImmediateDelivery()
    vendor.failures = [500, 503, 401, 401, 401]
    for _ in range(7):
        delivery.record([make_event("customer-4711")])
    assert messages(caplog) == [
        ("WARNING", f"Events can't be delivered (ServerError: MoEngage answered 500). {DOCTOR_FIX}"),
        (
            "ERROR",
            "Events can't be delivered for another reason (AuthenticationError: MoEngage answered 401: "
            f"Authentication required). {CREDENTIALS_FIX}",
        ),
        ("ERROR", "Events are delivered again after 0 s (5 failed)."),
    ]


def test_get_delivery_is_the_one_of_the_settings(configure, settings):
    """A runtime has a single delivery, which the setting DELIVERY names. The default is ThreadDelivery."""
    settings.MOE_PERSONALIZE = {"SANDBOX": True}
    assert isinstance(get_delivery(), ThreadDelivery)
    delivery = configure("immediate.ImmediateDelivery", timeout=1.5)
    assert isinstance(delivery, ImmediateDelivery)
    assert get_delivery() is delivery
    assert delivery.runtime is get_runtime()
    assert find_delivery(ImmediateDelivery) is delivery
    assert find_delivery(DummyDelivery) is None


@pytest.mark.parametrize("is_used", [False, True], ids=["client not built yet", "client in use"])
def test_changed_settings_flush_the_old_delivery_with_its_own_client(vendor, settings, configure, is_used):
    """Events recorded before a change of settings go to the old workspace, and not to the new workspace."""
    old = configure("thread.ThreadDelivery", interval=600.0)
    if is_used:
        old.record(make_events(2))
        old.flush(SOON)
    with Vendor() as other:
        old.record(make_events(3))
        settings.MOE_PERSONALIZE = other.settings(DELIVERY=backend("dummy.DummyDelivery"))
        assert isinstance(get_delivery(), DummyDelivery)
        assert get_client() is not get_client(old.runtime)
        assert other.arrived == 0
    assert old.counts().delivered == vendor.taken.total() == (5 if is_used else 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("missing.Delivery", {}, "can't be imported"),
        ("queued.deliver_outbox", {}, "isn't a subclass of BaseDelivery"),
        ("base.DeliveryCounts", {}, "isn't a subclass of BaseDelivery"),
        ("thread.ThreadDelivery", {"max_event": 1}, "max_events, max_bytes"),
        ("dummy.DummyDelivery", {"max_events": 1}, "Remove the options"),
        ("thread.ThreadDelivery", {"batch_size": 101}, "batch_size must be from 1 to 100, not 101"),
        ("thread.ThreadDelivery", {"max_events": 0}, "max_events must be at least 1, not 0"),
        ("thread.ThreadDelivery", {"max_bytes": "x"}, "OPTIONS"),
        (QUEUE, {"publish_timeout": 0}, "publish_timeout must be above 0, not 0"),
        (QUEUE, {"recovery": 1.0}, "publish_timeout"),
        (QUEUE, {"max_attempts": 0}, "max_attempts must be at least 1, not 0"),
        (QUEUE, {"fallback": "dummy"}, "fallback must be written like DELIVERY: a dict"),
        (QUEUE, {"fallback": {"PATH": "x"}}, 'like DELIVERY: only the keys "BACKEND" and "OPTIONS"'),
        (QUEUE, {"fallback": {"BACKEND": "dummy"}}, "fallback must be written like DELIVERY: a dotted path"),
        (QUEUE, {"fallback": backend("missing.Delivery")}, r'\["fallback"\]\["BACKEND"\].*can\'t be imported'),
        (QUEUE, {"fallback": backend("dummy.DummyDelivery", x=1)}, r'\["fallback"\]\["OPTIONS"\]'),
        ("tasks.TasksDelivery", {"backend": "nowhere"}, "backend 'nowhere' can't be used"),
        ("database.DatabaseDelivery", {"batch_size": 101}, "batch_size must be from 1 to 100, not 101"),
        ("database.DatabaseDelivery", {"max_attempts": 0}, "max_attempts must be at least 1, or None for no limit"),
        ("database.DatabaseDelivery", {"lease": 0.5}, "lease must be at least 1 second, not 0.5"),
        ("database.DatabaseDelivery", {"using": "other"}, "using must be one of default, not 'other'"),
    ],
)
def test_mistakes_in_the_setting_name_the_valid_values(configure, name, options, message):
    """A wrong backend or option is a configuration error with a fix."""
    with pytest.raises(ConfigurationError, match=message):
        configure(name, **options)


@pytest.mark.parametrize(
    ("name", "library", "package"),
    [(QUEUE, "celery", "celery"), ("tasks.TasksDelivery", "django_tasks", "django-tasks")],
)
def test_a_missing_library_is_named_with_its_package(configure, monkeypatch, name, library, package):
    """The fix is a command to type."""
    monkeypatch.delitem(sys.modules, f"django_moe_personalize.delivery.{name.partition('.')[0]}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    # As if Django had no tasks.
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=f"pip install {package}\\."):
        configure(name)


def test_a_forked_child_builds_its_own_delivery(vendor, configure):
    """Parent and child each deliver their own events once, even if a thread of the parent held the lock at the fork."""
    delivery = configure("thread.ThreadDelivery", interval=600.0)
    delivery.record(make_events(3))

    def deliver_in_child():
        get_delivery().record(make_events(2))
        return get_delivery().flush(SOON) == DeliveryCounts(accepted=2, delivered=2)

    with delivery._changed:
        assert in_child(deliver_in_child)
    assert vendor.taken.total() == 2
    assert delivery.flush(SOON) == DeliveryCounts(accepted=3, delivered=3)
    assert set(vendor.taken.values()) == {1}


def test_an_object_that_is_not_an_event_does_not_reach_the_page(vendor):
    """record() drops the object and all events of the same call: a delivery takes all events of a call, or no event."""
    delivery = ThreadDelivery()
    delivery.record([make_event(), SimpleNamespace(attributes={})])
    delivery.close()
    assert delivery.counts() == DeliveryCounts(accepted=2, dropped={"error": 2})
    assert vendor.arrived == 0

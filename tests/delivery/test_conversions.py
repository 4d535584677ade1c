"""Conversions through each delivery, and what happens to the other events while the Data API fails alone."""

import json

import pytest

from django_moe_personalize import api
from django_moe_personalize.client import build_transport, get_data_client, read_data_url
from django_moe_personalize.conf import ConfigurationError, get_settings
from django_moe_personalize.delivery import tasks
from django_moe_personalize.delivery.base import DeliveryCounts, get_delivery
from django_moe_personalize.delivery.database import Deliverer
from django_moe_personalize.delivery.sending import send
from django_moe_personalize.exceptions import AuthenticationError
from django_moe_personalize.models import OutboxEvent
from django_moe_personalize.moengage.data_api import build_conversion
from django_moe_personalize.resilience import Backoff, Deadline
from django_moe_personalize.runtime import use_workspace
from django_moe_personalize.testing import override_personalize
from tests.delivery.conftest import make_due
from tests.delivery.events import backend, make_event, make_events, messages, uuids
from tests.delivery.vendor import SOON

pytestmark = pytest.mark.django_db


def make_conversions(count):
    return [build_conversion(f"user-{number}", "Order placed", {"total": 12.5}) for number in range(count)]


@pytest.mark.parametrize(
    ("name", "options"),
    [("thread.ThreadDelivery", {}), ("immediate.ImmediateDelivery", {}), ("database.DatabaseDelivery", {})],
)
def test_each_delivery(configure, vendor, name, options):
    """The Data API gets each conversion, the events endpoint each impression, and the counters have both."""
    delivery = configure(name, **options)
    api.track_event("user-1", "Order placed", {"total": 12.5})
    api.track_event("user-1", "Order paid")
    delivery.record([make_event()])
    assert delivery.flush(SOON) == DeliveryCounts(accepted=3, delivered=3)
    bodies = {body.get("type"): body for body in vendor.bodies}
    assert bodies["event"]["customer_id"] == "user-1"
    assert [len(body["elements"]) for body in vendor.bodies if "elements" in body] == [1]


def test_dummy_and_tasks(configure, vendor, settings):
    """A conversion is one task, whose message a worker reads. The dummy keeps the event."""
    delivery = configure("dummy.DummyDelivery")
    api.track_event("user-1", "Order placed")
    assert [(event.name, event.customer_id) for event in delivery.events] == [("Order placed", "user-1")]
    immediate = f"{tasks._FRAMEWORK}.backends.immediate.ImmediateBackend"
    settings.TASKS = {"default": {"BACKEND": immediate}}
    delivery = configure("tasks.TasksDelivery")
    api.track_event("user-1", "Order placed")
    assert delivery.counts() == DeliveryCounts(accepted=1, delivered=1)
    assert vendor.bodies[-1]["actions"][0]["action"] == "Order placed"


def test_mixed_batch(vendor):
    """Each API gets its own events. If one fails, the other API still gets all of its events."""
    conversions, events = make_conversions(3), make_events(2)
    mixed = [conversions[0], *events, *conversions[1:]]
    outcome = send(mixed, timeout=SOON)
    assert (uuids(outcome.delivered), outcome.failure) == (uuids(events + conversions), None)
    vendor.data_status = 500
    outcome = send(mixed, timeout=SOON)
    assert (uuids(outcome.delivered), uuids(outcome.kept)) == (uuids(events), uuids(conversions))
    assert (outcome.error, outcome.failure) == (None, outcome.data_error)
    vendor.data_status, vendor.status = 200, 500
    outcome = send(mixed, timeout=SOON)
    assert (uuids(outcome.delivered), uuids(outcome.kept)) == (uuids(conversions), uuids(events))


def test_refused_conversion(vendor):
    """A conversion that the Data API refuses stands alone. The other conversions of its customer arrive."""
    conversions = [build_conversion("user-1", "Order placed") for _ in range(4)]
    vendor.poison = {conversions[2].event_uuid}
    outcome = send(conversions, timeout=SOON)
    assert [event.event_uuid for event, _ in outcome.refused] == list(vendor.poison)
    assert len(outcome.delivered) == 3


def test_thread_sends_impressions_while_the_data_api_hangs(build, vendor):
    """Conversions have a thread of their own. Erasing, flushing and closing cover both."""
    delivery, conversions = build(), make_conversions(2)
    vendor.data_status = 503
    delivery.record_conversions(conversions)
    delivery.second.flush(0.1)
    delivery.record(make_events(2))
    # On a busy machine the impressions need several of these short waits.
    assert any(delivery.flush(0.1).delivered == 2 for _ in range(100))
    assert delivery.counts() == DeliveryCounts(accepted=4, delivered=2, pending=2)
    assert delivery.find_oldest() == conversions[0].event_time
    assert delivery.erase("user-0") == 1
    vendor.recover()
    assert delivery.flush(SOON) == DeliveryCounts(accepted=4, delivered=3, dropped={"erased": 1})
    delivery.record_conversions(make_conversions(1))
    delivery.close()
    assert delivery.counts() == DeliveryCounts(accepted=5, delivered=4, dropped={"erased": 1})


def test_outbox_sends_impressions_while_the_data_api_fails(delivery, vendor, caplog):
    """After a failure the process leases no conversion for a while. One line tells the start, one the end."""
    vendor.data_status = 401
    delivery.record([*make_conversions(1), *make_events(1)])
    assert Deliverer(delivery).drain(deadline=Deadline(SOON)).wrong_credentials
    delivery.record([*make_conversions(1), *make_events(1)])
    assert delivery.deliver_batch().failure is None
    assert delivery.deliver_batch() is None
    assert list(OutboxEvent.objects.values_list("is_conversion", "attempts")) == [(True, 0), (True, 0)]
    vendor.recover()
    delivery._data_at = 0.0
    make_due()
    assert delivery.flush() == DeliveryCounts(accepted=4, delivered=4)
    assert [(level, text.partition(" (")[0]) for level, text in messages(caplog)] == [
        ("ERROR", "Conversions can't be delivered"),
        ("ERROR", "Conversions are delivered again after 0 s"),
    ]
    assert "Check DATA_API_KEY" in caplog.text


def test_outbox_tries_conversions_again(delivery, vendor, monkeypatch):
    """A run without --watch waits for the Data API a few times, then it leaves the conversions to the next run."""
    vendor.data_status = 500
    delivery.record(make_conversions(1))
    monkeypatch.setattr(delivery, "waits", Backoff(100.0, 100.0, draw=lambda: 1.0))
    deliverer = Deliverer(delivery)
    waits = []

    def wait(seconds, deadline=None):
        waits.append(seconds)
        delivery._data_at = 0.0
        make_due()

    monkeypatch.setattr(deliverer, "_wait", wait)
    assert deliverer.drain(patience=3).failure is not None
    assert len(waits) == 2
    delivery._data_at = 0.0
    delivery.max_attempts = 1
    make_due()
    assert deliverer.drain().data_error is not None
    assert delivery.counts().dropped == {"attempts": 1}


def test_missing_key(build_outbox, vendor, caplog):
    """The log says so once, at the call. The outbox parks the conversion, which is sent after the key is set."""
    with override_personalize(**vendor.settings(DATA_API_KEY="", DELIVERY=get_delivery_setting())):
        for _ in range(2):
            api.track_event("user-1", "Order placed")
        delivery = get_delivery()
        assert delivery.flush() == DeliveryCounts(accepted=2, dropped={"refused": 2})
        assert caplog.text.count("Conversions can't be sent: MOE_PERSONALIZE lacks DATA_API_KEY") == 1
        assert "MOE_PERSONALIZE_DATA_API_KEY" in OutboxEvent.objects.first().reason
    delivery = build_outbox()
    delivery.outbox.replay()
    assert delivery.flush() == DeliveryCounts(accepted=2, delivered=2)


def get_delivery_setting():
    return {"BACKEND": "django_moe_personalize.delivery.database.DatabaseDelivery", "OPTIONS": {}}


def test_erased_customer(delivery, vendor):
    """An erasure finds the conversions of a customer."""
    delivery.record(make_conversions(3))
    assert api.erase(customer_id="user-1") == 1
    assert delivery.flush() == DeliveryCounts(accepted=3, delivered=2, dropped={"erased": 1})


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"DATA_CENTER": "101"}, "https://api-101.moengage.com/v1"),
        ({"DATA_CENTER": "02", "BASE_URL": "https://proxy.example/moe"}, "https://proxy.example/moe"),
    ],
)
def test_address(settings, url):
    """The Data API has a host of its own. A proxy or a sandbox has both APIs."""
    pair = {"WORKSPACE_ID": "W", "API_KEY": "k", "DATA_API_KEY": "d", "SANDBOX": False}
    with override_personalize(**pair, **settings):
        assert read_data_url(get_settings()) == url
        client = get_data_client()
        assert client._transport.base_url == url
        assert build_transport(get_settings()).base_url != url or "proxy" in url


def test_sandbox_behind_a_url(vendor, tmp_path):
    """Without credentials in the settings, the workspace file has the Data key too."""
    file = tmp_path / "workspace.json"
    file.write_text('{"workspace_id": "TESTS", "api_key": "k", "data_api_key": "d", "experiences": []}')
    with override_personalize(**vendor.settings(WORKSPACE_ID="", API_KEY="", DATA_API_KEY="", SANDBOX=str(file))):
        assert send(make_conversions(1), timeout=SOON).delivered
    with (
        override_personalize(**vendor.settings(DATA_API_KEY="")),
        pytest.raises(ConfigurationError, match="DATA_API_KEY"),
    ):
        get_data_client()


@pytest.mark.parametrize("name", ["database.DatabaseDelivery", "thread.ThreadDelivery"])
def test_erased_customer_in_the_fallback_of_a_queue(configure, vendor, name):
    """An erasure finds the events that the queue didn't take. The outbox looks for no withdrawals later."""
    options = {"interval": 600.0} if name == "thread.ThreadDelivery" else {}
    delivery = configure("tests.delivery.test_queued.ListDelivery", fallback=backend(name, **options))
    delivery.queue = None
    delivery.record(make_events(3))
    api.track_event("user-1", "Order placed")
    assert [api.erase(customer_id=customer) for customer in ("1", "user-1")] == [1, 1]
    assert delivery.flush(SOON) == DeliveryCounts(accepted=4, delivered=2, dropped={"erased": 2})


def test_wrong_key_in_the_fallback_of_a_queue(configure, vendor):
    """While the queue fails too, the conversions don't stop the other events."""
    fallback = backend("thread.ThreadDelivery", interval=600.0)
    delivery = configure("tests.delivery.test_queued.ListDelivery", fallback=fallback)
    vendor.data_status, delivery.queue = 403, None
    api.track_event("user-1", "Order placed")
    assert delivery.flush(0.1).pending == 1
    delivery.record(make_events(1))
    assert delivery.flush(SOON) == DeliveryCounts(accepted=2, delivered=1, pending=1)


def test_wrong_key_in_a_thread(build, vendor, caplog):
    """A wrong Data key pauses the conversions alone."""
    vendor.data_status = 403
    delivery = build()
    delivery.record_conversions(make_conversions(1))
    delivery.flush(SOON)
    delivery.record(make_events(1))
    assert delivery.flush(SOON) == DeliveryCounts(accepted=2, delivered=1, pending=1)
    assert AuthenticationError.__name__ in caplog.text


@pytest.mark.parametrize("name", ["thread.ThreadDelivery", "database.DatabaseDelivery"])
def test_workspaces(vendor, settings, caplog, name):
    """A conversion goes to its workspace with that workspace's own key. A workspace inherits no key of another one."""
    outlet = {"WORKSPACE_ID": "OUTLET", "API_KEY": "o", "DATA_API_KEY": "d"}
    own = {"default": {}, "outlet": outlet, "third": {"WORKSPACE_ID": "THIRD", "API_KEY": "t"}}
    settings.MOE_PERSONALIZE = vendor.settings(DELIVERY=backend(name), WORKSPACES=own)
    for workspace in own:
        api.track_event("user-1", f"Order in {workspace}", workspace=workspace)
        with use_workspace(workspace):
            counts = get_delivery().flush(SOON)
        assert (counts.accepted, counts.dropped) == (1, {"refused": 1} if workspace == "third" else {})
    targets = [(each.target, json.loads(each.body)["actions"][0]["action"]) for each in vendor._server.received]
    assert targets == [("/v1/event/TESTS", "Order in default"), ("/v1/event/OUTLET", "Order in outlet")]
    assert caplog.text.count("Conversions can't be sent") == 1

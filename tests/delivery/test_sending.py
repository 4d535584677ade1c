"""One attempt to deliver events, without the events of customers who withdrew consent."""

import time
from io import StringIO

import pytest
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.db import connection

from django_moe_personalize import api
from django_moe_personalize.delivery import sending
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.delivery.immediate import ImmediateDelivery
from django_moe_personalize.delivery.sending import (
    MAX_BODY_BYTES,
    MAX_SKEW,
    count_fitting,
    mark_withdrawal,
    send,
    split_withdrawn,
)
from django_moe_personalize.delivery.thread import ThreadDelivery
from django_moe_personalize.exceptions import AuthenticationError, RateLimitedError, ServerError, TransportError
from django_moe_personalize.moengage.types import Action, Event
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.signals import events_delivered
from django_moe_personalize.testing import override_personalize
from tests.delivery.conftest import connected
from tests.delivery.events import CONTEXT, make_event, make_events, uuids
from tests.delivery.vendor import SOON


def test_send_groups_up_to_100_customers_a_call(vendor):
    """The events of 250 customers travel in three calls of at most 100 elements, in order."""
    events = make_events(250)
    outcome = send(events, timeout=SOON)
    assert outcome.delivered == events
    assert [len(body["elements"]) for body in vendor.bodies] == [100, 100, 50]
    assert [uuid for _, sent in vendor.calls for uuid in sent] == uuids(events)


def test_send_keeps_a_call_below_the_body_limit(vendor):
    """Large events of few customers are split by size. An event that is too large alone is still tried."""
    large = [make_event("1", note="x" * 40_000) for _ in range(3)] + [make_event("2", note="x" * 200_000)]
    assert send(large, timeout=SOON).delivered == large
    assert [len(sent) for _, sent in vendor.calls] == [2, 1, 1]


def test_count_fitting_takes_many_events_of_one_customer():
    """The limit of 100 counts customers. Only the size limits the events of one customer."""
    small, large = make_event(), make_event(note="x" * (MAX_BODY_BYTES // 4 - 500))
    assert count_fitting([small] * 200) == 200
    assert count_fitting([large] * 500) == 4
    assert count_fitting(make_events(9), max_customers=3) == 3
    assert count_fitting([]) == 0


def test_estimate_is_about_the_size_on_the_wire():
    """The estimate is close to the JSON's length for flat and nested attributes."""
    flat, nested = make_event(), make_event(offer={"moe_offering_id": "x" * 500})
    assert 250 <= flat.size <= 600
    assert 500 <= nested.size - flat.size <= 900


def test_one_poison_event_among_100_is_refused_alone(vendor):
    """A 400 is halved until the bad event is alone: 99 events arrive, in few calls, each once."""
    events = make_events(100)
    vendor.poison = {events[37].event_uuid}
    outcome = send(events, timeout=SOON)
    assert [event for event, _ in outcome.refused] == [events[37]]
    assert outcome.refused[0][1].description == "no"
    assert outcome.delivered == events[:37] + events[38:]
    assert set(vendor.taken.values()) == {1}
    assert len(vendor.calls) <= 15
    assert (outcome.kept, outcome.error) == ([], None)


def test_an_event_that_json_cannot_express_is_refused_alone(vendor):
    """No call is made for the bad event, and the other events arrive."""
    events = [make_event(), make_event(b_id=object()), make_event()]
    outcome = send(events, timeout=SOON)
    assert [event for event, _ in outcome.refused] == [events[1]]
    assert outcome.delivered == [events[0], events[2]]


@pytest.mark.parametrize(
    ("status", "error"), [(500, ServerError), (503, ServerError), (429, RateLimitedError)], ids=lambda value: value
)
def test_send_stops_at_the_first_failure_and_keeps_the_rest(vendor, status, error):
    """If the events don't cause the failure, send() makes no further call and loses no event."""
    vendor.failures = [200, status]
    events = make_events(350)
    outcome = send(events, timeout=SOON)
    assert isinstance(outcome.error, error)
    assert not outcome.wrong_credentials
    assert (outcome.delivered, outcome.kept) == (events[:100], events[100:])
    assert len(vendor.calls) == 2


def test_retry_after_comes_from_the_rate_limit_alone(vendor):
    """Other failures have none."""
    vendor.failures = [429, 429, 500]
    vendor.headers = {"Retry-After": "7"}
    assert send(make_events(1), timeout=SOON).retry_after == 7.0
    vendor.headers = {}
    assert send(make_events(1), timeout=SOON).retry_after == 0.0
    assert send(make_events(1), timeout=SOON).retry_after == 0.0


def test_wrong_credentials_are_told_from_bad_events(vendor, settings):
    """A 401, an unknown workspace and missing settings keep the events and need a person."""
    vendor.status = 401
    outcome = send(make_events(3), timeout=SOON)
    assert isinstance(outcome.error, AuthenticationError)
    assert outcome.wrong_credentials
    vendor.status, vendor.title = 400, "Request Error"
    outcome = send(make_events(3), timeout=SOON)
    assert (len(outcome.kept), outcome.wrong_credentials) == (3, True)
    assert len(vendor.calls) == 2
    settings.MOE_PERSONALIZE = {"SANDBOX": False}
    outcome = send(make_events(3), timeout=SOON)
    assert (len(outcome.kept), outcome.wrong_credentials) == (3, True)


def test_send_is_bounded_by_both_times(vendor):
    """A call ends after its own timeout or at the common deadline, whichever is first."""
    vendor.hang.clear()
    for timeout, until in ((0.05, None), (SOON, Deadline(0.05)), (0.05, Deadline(SOON)), (0.05, Deadline(None))):
        outcome = send(make_events(1), timeout=timeout, until=until)
        assert isinstance(outcome.error, TransportError)
        assert len(outcome.kept) == 1


def build_event(customer_id, *, seconds=0):
    """Return an impression that happens ``seconds`` from now."""
    return Event(Action.SHOWN, customer_id, CONTEXT, int(time.time()) + seconds)


def test_earlier_events_are_not_sent(upstream):
    """Events in the memory of another process are dropped when they are due. Other customers' events are sent."""
    delivery = ThreadDelivery(interval=60)
    delivery.record([build_event("ada"), build_event("grace")])
    mark_withdrawal("ada")
    counts = delivery.flush(timeout=10)
    delivery.close()
    assert [entry.customer_id for entry in upstream.engine.ledger.entries()] == ["grace"]
    assert (counts.delivered, counts.dropped, counts.pending) == (1, {"erased": 1}, 0)


def test_later_events_are_sent(monkeypatch):
    """A customer who agrees again needs no second call. The clocks of machines may differ a little."""
    now = time.time()
    with monkeypatch.context() as earlier:
        earlier.setattr(time, "time", lambda: now - 60)
        mark_withdrawal("ada")
        before, after = build_event("ada", seconds=MAX_SKEW - 1), build_event("ada", seconds=MAX_SKEW + 2)
    # The clock was ahead when this event was recorded, so its time says nothing.
    future = build_event("ada", seconds=90)
    assert split_withdrawn([before, after, future]) == ([after], [before, future])


def test_the_mark_does_not_contain_the_customer():
    """The cache doesn't reveal who has withdrawn."""
    mark_withdrawal("canary-customer")
    assert "canary" not in repr(cache._cache)
    assert len(cache._cache) == 1


def test_events_are_sent_when_the_cache_fails(settings, caplog):
    """Without the cache, the event is sent: the customer had given consent when the event happened."""
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    assert not mark_withdrawal("ada")
    event = build_event("ada")
    assert split_withdrawn([event]) == ([event], ())
    assert "ada" not in caplog.text


def test_a_foreign_value_is_not_a_mark(monkeypatch):
    """The value of another program under our key withdraws nothing."""
    event = build_event("ada")
    monkeypatch.setattr(sending, "get_many", lambda names: dict.fromkeys(names, "garbage"))
    assert split_withdrawn([event]) == ([event], [])


@pytest.mark.parametrize("backend", ["thread.ThreadDelivery", "immediate.ImmediateDelivery"])
def test_api_erases_and_marks(upstream, backend):
    """One call of a site's consent banner stops all earlier events. A batch of withdrawn events causes no call."""
    with override_personalize(DELIVERY={"BACKEND": f"django_moe_personalize.delivery.{backend}"}):
        late = build_event("ada")
        assert api.erase(customer_id="ada") == 0
        get_delivery().record([late])
        assert get_delivery().flush(timeout=10).dropped == {"erased": 1}
        assert upstream.requests == []


def test_an_id_is_required():
    """An empty id is the caller's mistake: nothing is erased."""
    for customer_id in ("", None, 7):
        with pytest.raises(ValueError, match="non-empty string"):
            api.erase(customer_id=customer_id)
    for customer_id in ("", "  "):
        with pytest.raises(CommandError, match="The customer id is empty"):
            call_command("moe_erase", customer_id)


class CountingDelivery(ImmediateDelivery):
    """Say that one customer has one waiting event, and that each other customer has two."""

    def erase(self, customer_id):
        return 1 if customer_id == "one-event" else 2


def test_command_erases_and_lists_the_remaining_data(upstream):
    """The command prints the number of erased events and the data elsewhere, and never the id."""
    with override_personalize(DELIVERY={"BACKEND": f"{__name__}.CountingDelivery"}):
        said = StringIO()
        call_command("moe_erase", "one-event", stdout=said)
        assert said.getvalue().startswith("Erased 1 waiting event.\n")
        assert "within 600 seconds" in said.getvalue()
        assert "one-event" not in said.getvalue()
        call_command("moe_erase", "ada", stdout=said)
        assert "Erased 2 waiting events." in said.getvalue()
        assert split_withdrawn([event := build_event("ada")]) == ([], [event])


@pytest.mark.django_db(transaction=True)
def test_a_restarted_database_hides_no_withdrawal(upstream):
    """The sending thread, whose cache or receivers may use the database, gets a new connection."""
    tried = []

    def receive(**kwargs):
        tried.append("failed")
        # Django never closes a database in memory.
        connection.is_in_memory_db = lambda: False
        connection.cursor().execute("SELECT 1").close()
        # A restart does this to existing connections.
        connection.connection.close()
        tried[-1] = "worked"

    delivery = ThreadDelivery(interval=0.01)
    with connected(receive, events_delivered):
        for _ in range(3):
            delivery.record([build_event("ada")])
            delivery.flush(timeout=10)
        delivery.close()
    assert tried == ["worked"] * 3

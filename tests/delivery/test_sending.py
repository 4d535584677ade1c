"""One attempt to deliver events, to a MoEngage on loopback."""

import pytest

from django_moe_personalize.delivery.sending import MAX_BODY_BYTES, count_fitting, send
from django_moe_personalize.exceptions import AuthenticationError, RateLimitedError, ServerError, TransportError
from django_moe_personalize.resilience import Deadline
from tests.delivery.events import make_event, make_events, uuids
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

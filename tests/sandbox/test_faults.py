"""Faults on demand, in the process."""

import json
from typing import Any

import pytest

from django_moe_personalize.exceptions import DeadlineExceeded, TransportError
from django_moe_personalize.moengage.http1 import Response
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.sandbox.faults import Answer, FaultInjector, Faults, parse_faults
from django_moe_personalize.sandbox.transport import SandboxTransport
from tests.sandbox.ways import EVENTS, assert_refused, batch, build_engine, element, get_metadata, post

EVENT = post(EVENTS, batch(element()))


class Sleeper:
    """A clock that moves only when code sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self, seconds: float) -> None:
        self.now += seconds

    def deadline(self, seconds: float | None = 1.0) -> Deadline:
        """Return a deadline on this clock."""
        return Deadline(seconds, clock=lambda: self.now)


def build_transport(**faults: Any) -> tuple[SandboxTransport, Sleeper]:
    """Build a transport with faults whose latency takes no real time."""
    sleeper = Sleeper()
    return SandboxTransport(build_engine(), faults=Faults(**faults), sleep=sleeper), sleeper


def list_statuses(count: int, **faults: Any) -> list[int]:
    """Return the statuses of ``count`` metadata calls."""
    transport, sleeper = build_transport(**faults)
    return [transport.send(get_metadata(), deadline=sleeper.deadline()).status for _ in range(count)]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"latency": -1}, "latency must be a number of seconds, 0 or more, not -1"),
        ({"latency": float("nan")}, "latency must be a number of seconds"),
        ({"drip": "1"}, "drip must be a number of seconds, 0 or more, not '1'"),
        ({"error_rate": 1.1}, r"error_rate must be a rate from 0 to 1, not 1\.1"),
        ({"reset": "yes"}, "reset must be a rate from 0 to 1, not 'yes'"),
        ({"malformed": -0.1}, "malformed must be a rate from 0 to 1"),
        ({"error_status": 200}, "error_status must be an integer from 400 to 599, not 200"),
        ({"error_status": 500.0}, "error_status must be an integer from 400 to 599"),
        ({"retry_after": -1}, "retry_after must be a whole number of seconds, 0 or more, not -1"),
        ({"retry_after": 1.5}, "retry_after must be a whole number of seconds"),
        ({"seed": "x"}, "seed must be an integer, not 'x'"),
        ({"latence": 1}, "unknown fault 'latence', did you mean \"latency\""),
    ],
)
def test_an_invalid_fault_is_a_value_error(fault: dict[str, Any], message: str) -> None:
    """The message names the field and its valid values."""
    with pytest.raises(ValueError, match=message):
        parse_faults(fault)


def test_every_fault_can_be_set() -> None:
    """The limits are valid; booleans are rates."""
    delays = {"latency": 0, "drip": 1.5, "retry_after": 0}
    fields = {**delays, "error_rate": 1, "error_status": 599, "reset": True, "malformed": False, "seed": 7}
    assert parse_faults(fields) == Faults(**fields)
    assert parse_faults({}) == Faults()


def test_without_faults_the_response_is_the_engines() -> None:
    """The response comes at once and unchanged."""
    transport, sleeper = build_transport()
    expected = transport.engine.handle(get_metadata())
    response = transport.send(get_metadata(), deadline=sleeper.deadline())
    assert (response.status, response.headers, response.body) == (expected.status, expected.headers, expected.body)
    assert Answer(expected) == Answer(expected, latency=0.0, drip=0.0, reset=False)
    assert sleeper.now == 0
    transport.close()


def test_errors_come_at_their_rate_and_a_seed_repeats_them() -> None:
    """About the given share of requests fails, and the same requests fail for the same seed."""
    faults = {"error_rate": 0.3, "error_status": 503}
    statuses = list_statuses(1000, **faults, seed=1)
    assert set(statuses) == {200, 503}
    assert 240 < statuses.count(503) < 360
    assert statuses == list_statuses(1000, **faults, seed=1)
    assert statuses != list_statuses(1000, **faults, seed=2)


def test_setting_faults_restarts_the_random_choices() -> None:
    """The same seed set again repeats the same choices."""
    injector, faults = FaultInjector(), Faults(error_rate=0.5, seed=3)

    def choose() -> list[int]:
        injector.faults = faults
        return [injector.answer(lambda _: Response(200), get_metadata()).response.status for _ in range(50)]

    assert choose() == choose()


def test_an_error_has_the_vendors_envelope_and_the_request_is_not_handled() -> None:
    """The ledger has no trace of a request that failed."""
    transport, sleeper = build_transport(error_rate=1)
    response = transport.send(EVENT, deadline=sleeper.deadline())
    assert_refused(response, 500, "Internal Server Error")
    assert "retry-after" not in response.headers
    assert transport.engine.ledger.entries() == []


@pytest.mark.parametrize(
    ("status", "retry_after", "expected"),
    [(429, 30, ("30", "10000", "0", "30")), (429, None, (None, "10000", "0", "0")), (503, 5, ("5", None, None, None))],
)
def test_errors_have_the_vendors_headers(status: int, retry_after: int | None, expected: tuple[str | None]) -> None:
    """A 429 has the rate limit headers of the vendor's other APIs; any error may have a Retry-After."""
    transport, sleeper = build_transport(error_rate=1, error_status=status, retry_after=retry_after)
    headers = transport.send(get_metadata(), deadline=sleeper.deadline()).headers
    names = ("retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
    assert tuple(headers.get(name) for name in names) == expected


def test_a_malformed_response_is_not_json_but_the_request_was_handled() -> None:
    """The body is cut; the ledger has the event."""
    transport, sleeper = build_transport(malformed=True)
    response = transport.send(EVENT, deadline=sleeper.deadline())
    assert response.status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(response.body)
    assert len(transport.engine.ledger.entries()) == 1


def test_a_reset_loses_the_response_and_a_retry_counts_once() -> None:
    """The sandbox handled the request, so only the UUID stops the retry from counting again."""
    transport, sleeper = build_transport(reset=True)
    with pytest.raises(TransportError, match="reset"):
        transport.send(EVENT, deadline=sleeper.deadline())
    transport.injector.faults = Faults()
    assert transport.send(EVENT, deadline=sleeper.deadline()).status == 200
    assert len(transport.engine.ledger.entries()) == 1


@pytest.mark.parametrize(
    ("faults", "seconds", "passed"), [({"latency": 0.2, "drip": 0.1}, 1, 0.3), ({"latency": 5}, None, 5)]
)
def test_latency_and_drip_pass_before_the_response(faults: dict[str, float], seconds: float, passed: float) -> None:
    """A request waits for latency and drip, if its deadline allows this wait. ``None`` means no deadline."""
    transport, sleeper = build_transport(**faults)
    assert transport.send(get_metadata(), deadline=sleeper.deadline(seconds)).status == 200
    assert sleeper.now == pytest.approx(passed)


@pytest.mark.parametrize(("faults", "seconds", "entries"), [({"latency": 5}, 0.25, 1), ({}, 0.0, 0)])
def test_a_call_ends_at_its_deadline(faults: dict[str, float], seconds: float, entries: int) -> None:
    """The caller doesn't wait longer. The engine handles the request only if it arrives before the deadline."""
    transport, sleeper = build_transport(**faults)
    with pytest.raises(DeadlineExceeded):
        transport.send(EVENT, deadline=sleeper.deadline(seconds))
    assert sleeper.now == seconds
    assert len(transport.engine.ledger.entries()) == entries

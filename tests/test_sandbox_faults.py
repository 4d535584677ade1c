"""Faults on demand, and the in-process way in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from django_moe_personalize.exceptions import DeadlineExceeded, TransportError
from django_moe_personalize.moengage.messages import Response
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.sandbox.faults import Answer, FaultInjector, Faults, parse_faults
from django_moe_personalize.sandbox.transport import SandboxTransport
from tests import contract_schema
from tests.contract_schema import assert_valid
from tests.sandbox_ways import EVENTS, action, batch, build_engine, element, get_metadata, post


class Sleeper:
    """A clock that only sleep() moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self, seconds: float) -> None:
        self.now += seconds

    def clock(self) -> float:
        """Return the time."""
        return self.now


def build_transport(**faults: Any) -> tuple[SandboxTransport, Sleeper]:
    """Build a transport with faults, whose waiting takes no time."""
    sleeper = Sleeper()
    return SandboxTransport(build_engine(), faults=Faults(**faults), sleep=sleeper), sleeper


def statuses(count: int, **faults: Any) -> list[int]:
    """Return the statuses of so many metadata calls."""
    transport, _ = build_transport(**faults)
    return [transport.send(get_metadata(), deadline=Deadline(None)).status for _ in range(count)]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"latency": -1}, "latency must be seconds, 0 or more, not -1"),
        ({"latency": float("nan")}, "latency must be seconds"),
        ({"drip": "1"}, "drip must be seconds, 0 or more, not '1'"),
        ({"error_rate": 1.1}, r"error_rate must be a rate from 0 to 1, not 1\.1"),
        ({"reset": "yes"}, "reset must be a rate from 0 to 1, not 'yes'"),
        ({"malformed": -0.1}, "malformed must be a rate from 0 to 1"),
        ({"error_status": 200}, "error_status must be 400 to 599, not 200"),
        ({"error_status": 500.0}, "error_status must be 400 to 599"),
        ({"retry_after": -1}, "retry_after must be whole seconds, 0 or more, not -1"),
        ({"retry_after": 1.5}, "retry_after must be whole seconds"),
        ({"seed": "x"}, "seed must be an integer, not 'x'"),
        ({"latence": 1}, "unknown fault 'latence', did you mean \"latency\""),
    ],
)
def test_a_fault_out_of_range_is_a_value_error(fault: dict[str, Any], message: str) -> None:
    """The message names the field and what it must be."""
    with pytest.raises(ValueError, match=message):
        parse_faults(fault)


def test_every_fault_can_be_given() -> None:
    """The edges are in range; booleans are rates."""
    fields = {
        "latency": 0,
        "drip": 1.5,
        "error_rate": 1,
        "error_status": 599,
        "retry_after": 0,
        "reset": True,
        "malformed": False,
        "seed": 7,
    }

    assert parse_faults(fields) == Faults(**fields)
    assert parse_faults({}) == Faults()


def test_no_faults_change_nothing() -> None:
    """By default the answer is the engine's, at once."""
    transport, sleeper = build_transport()

    answer, plain = transport.send(get_metadata(), deadline=Deadline(1)), transport.engine.handle(get_metadata())
    assert (answer.status, answer.headers, answer.body) == (plain.status, plain.headers, plain.body)
    assert sleeper.now == 0
    transport.close()


def test_errors_come_at_their_rate_and_are_repeatable_by_a_seed() -> None:
    """About the asked share fails, the same calls for the same seed."""
    found = statuses(1000, error_rate=0.3, error_status=503, seed=1)

    assert set(found) == {200, 503}
    assert 240 < found.count(503) < 360
    assert found == statuses(1000, error_rate=0.3, error_status=503, seed=1)
    assert found != statuses(1000, error_rate=0.3, error_status=503, seed=2)


def test_setting_faults_starts_the_draws_anew() -> None:
    """The same seed set again gives the same calls again."""
    injector, faults = FaultInjector(), Faults(error_rate=0.5, seed=3)

    def draws() -> list[int]:
        injector.faults = faults
        return [injector.answer(lambda _: Response(200), get_metadata()).response.status for _ in range(50)]

    assert draws() == draws()


def test_an_error_is_the_vendors_envelope_and_nothing_is_handled() -> None:
    """A request that fails leaves no trace in the ledger."""
    transport, _ = build_transport(error_rate=1)

    response = transport.send(post(EVENTS, batch(element())), deadline=Deadline(1))

    assert response.status == 500
    assert_valid(json.loads(response.body), contract_schema.ERROR)
    assert "retry-after" not in response.headers
    assert transport.engine.ledger.entries() == []


@pytest.mark.parametrize(("retry_after", "reset"), [(30, "30"), (None, "0")])
def test_429_carries_the_rate_limit(retry_after: int | None, reset: str) -> None:
    """The headers the vendor's other APIs send, and Retry-After when asked for."""
    transport, _ = build_transport(error_rate=1, error_status=429, retry_after=retry_after)

    headers = transport.send(get_metadata(), deadline=Deadline(1)).headers

    assert headers.get("retry-after") == (None if retry_after is None else "30")
    assert headers["x-ratelimit-limit"] == "10000"
    assert (headers["x-ratelimit-remaining"], headers["x-ratelimit-reset"]) == ("0", reset)


def test_retry_after_may_come_with_any_error() -> None:
    """503 has it, too."""
    transport, _ = build_transport(error_rate=1, error_status=503, retry_after=5)

    headers = transport.send(get_metadata(), deadline=Deadline(1)).headers

    assert headers["retry-after"] == "5"
    assert "x-ratelimit-limit" not in headers


def test_a_malformed_answer_is_no_json_but_was_handled() -> None:
    """The body is cut; the event it answers was taken."""
    transport, _ = build_transport(malformed=True)

    response = transport.send(post(EVENTS, batch(element())), deadline=Deadline(1))

    assert response.status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(response.body)
    assert len(transport.engine.ledger.entries()) == 1


def test_a_reset_loses_the_answer_and_a_retry_counts_once() -> None:
    """The request was handled: only the UUID keeps its retry from counting twice."""
    transport, _ = build_transport(reset=True)
    sent = post(EVENTS, batch(element(action())))

    with pytest.raises(TransportError, match="reset"):
        transport.send(sent, deadline=Deadline(1))
    transport.injector.faults = Faults()
    assert transport.send(sent, deadline=Deadline(1)).status == 200

    assert len(transport.engine.ledger.entries()) == 1


def test_latency_is_waited_for() -> None:
    """Latency and drip pass before the answer is whole."""
    transport, sleeper = build_transport(latency=0.2, drip=0.1)

    assert transport.send(get_metadata(), deadline=Deadline(1, clock=sleeper.clock)).status == 200
    assert sleeper.now == pytest.approx(0.3)


def test_latency_ends_at_the_deadline() -> None:
    """The caller waits no longer than it said; the sandbox has had the request."""
    transport, sleeper = build_transport(latency=5)

    with pytest.raises(DeadlineExceeded):
        transport.send(post(EVENTS, batch(element())), deadline=Deadline(0.25, clock=sleeper.clock))
    assert sleeper.now == 0.25
    assert len(transport.engine.ledger.entries()) == 1


def test_without_a_deadline_latency_is_waited_out() -> None:
    """A deadline of None never passes."""
    transport, sleeper = build_transport(latency=5)

    assert transport.send(get_metadata(), deadline=Deadline(None)).status == 200
    assert sleeper.now == 5


def test_an_expired_deadline_asks_nothing() -> None:
    """The engine never sees the request."""
    transport, _ = build_transport()

    with pytest.raises(DeadlineExceeded):
        transport.send(post(EVENTS, batch(element())), deadline=Deadline(0))
    assert transport.engine.ledger.entries() == []


def test_an_answer_has_no_faults_by_default() -> None:
    """Its response goes out at once and whole."""
    response = Response(200)
    assert Answer(response) == Answer(response, latency=0.0, drip=0.0, reset=False)

"""The control paths of the sandbox's server: ledger, decisions, faults."""

import json
from typing import Any

import pytest

from django_moe_personalize.moengage.http1 import Request
from django_moe_personalize.sandbox.control import is_control_allowed
from django_moe_personalize.sandbox.engine import Engine
from tests.sandbox.ways import EVENTS, HttpWay, action, assert_refused, batch, element, fetch, get_metadata, post, read

LEDGER, EXPLAIN, FAULTS = "/_sandbox/ledger", "/_sandbox/explain", "/_sandbox/faults"


def call(control: HttpWay, method: str, path: str, body: Any = None) -> Any:
    """Return the JSON of a control path."""
    response = control(Request(method, path, body=b"" if body is None else json.dumps(body).encode()))
    assert response.status == 200
    return read(response)


def test_the_ledger_is_read_and_cleared_over_http(engine: Engine, api: HttpWay, control: HttpWay) -> None:
    """GET returns counts and entries as JSON; DELETE removes them."""
    context = fetch(engine, {})["plain"]["experience_context"]
    api(post(EVENTS, batch(element(action(attributes=context)))))
    ledger = call(control, "GET", LEDGER)
    assert ledger["counts"] == {"plain": {"impressions": 1, "clicks": 0, "conversions": 0}}
    assert ledger["entries"][0]["customer_id"] == "42"
    empty = {"counts": {}, "entries": [], "repeats": 0}
    assert call(control, "DELETE", LEDGER) == call(control, "GET", LEDGER) == empty


def test_explain_returns_the_decisions_of_a_fetch(control: HttpWay) -> None:
    """Each key has its decision with the sentence; an invalid body gets the 400 of a fetch."""
    plain, nope = call(control, "POST", EXPLAIN, {"experience_key": ["plain", "nope"]})["decisions"]
    assert (plain["served"], plain["reason"], plain["variation_id"]) == (True, None, "1")
    assert plain["sentence"] == "audience “All users” → matched; variation 1 (the only one)."
    assert plain["entry"]["payload"]["T"]["value"] == "x" * 200
    assert (nope["served"], nope["reason"], nope["entry"]) == (False, "INVALID_EXPERIENCE_KEY", None)
    assert_refused(control(Request("POST", EXPLAIN, body=b"{")), 400, "Malformed JSON")


def test_faults_are_set_over_http(api: HttpWay, control: HttpWay) -> None:
    """PUT replaces the faults and GET returns them; a mistake changes nothing and gets a 400 that names it."""
    assert call(control, "PUT", FAULTS, {"error_rate": 1, "error_status": 429, "retry_after": 7})["error_status"] == 429
    response = api(get_metadata())
    assert (response.status, response.headers["retry-after"]) == (429, "7")
    bad = control(Request("PUT", FAULTS, body=b'{"eror_rate": 1}'))
    assert_refused(bad, 400, "Invalid Field Value")
    assert 'did you mean "error_rate"?' in read(bad)["description"]
    assert call(control, "GET", FAULTS)["retry_after"] == 7
    call(control, "PUT", FAULTS, {})
    assert api(get_metadata()).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "title"),
    [
        ("GET", "/_sandbox/nothing", 404, "Not Found"),
        ("POST", LEDGER, 405, "Method Not Allowed"),
        ("GET", EXPLAIN, 405, "Method Not Allowed"),
        ("OPTIONS", FAULTS, 405, "Method Not Allowed"),
    ],
)
def test_other_control_requests_are_refused(control: HttpWay, method: str, path: str, status: int, title: str) -> None:
    """The refusal includes OPTIONS, so that no web page may send a PUT or DELETE."""
    response = control(Request(method, path))
    assert_refused(response, status, title)
    assert ("allow" in response.headers) is (status == 405)


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "203.0.113.5:8899", "127.0.0.1.evil:80", ""]
)
def test_control_is_refused_under_another_host_name(control: HttpWay, host: str) -> None:
    """DNS rebinding does not reach the ledger."""
    assert_refused(control(Request("GET", LEDGER, headers={"Host": host})), 403, "Forbidden")


@pytest.mark.parametrize(
    ("client", "host", "allowed"),
    [
        ("127.0.0.1", "localhost:8899", True),
        ("127.0.0.1", "LOCALHOST", True),
        ("127.8.8.8", "127.0.0.1", True),
        ("::1", "[::1]:8899", True),
        ("::1", "[::1]", True),
        ("127.0.0.1", "evil.example:80", False),
        ("203.0.113.5", "localhost:8899", False),
    ],
)
def test_control_is_only_for_this_machine(client: str, host: str, allowed: bool) -> None:
    """The client's address and the Host header must both be a loopback address or name."""
    assert is_control_allowed(client, host) is allowed

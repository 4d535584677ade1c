"""The control paths of a sandbox server: its ledger, its reasons, its faults."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from django_moe_personalize.moengage.messages import Request
from django_moe_personalize.sandbox.control import is_control_allowed
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.server import SandboxServer
from tests import contract_schema
from tests.contract_schema import assert_valid
from tests.sandbox_ways import EVENTS, FETCH, HttpWay, action, batch, build_engine, element, get_metadata, post, serving

EXPERIENCE = {"key": "plain", "name": "Plain", "payload": {"T": "x" * 200}}


@pytest.fixture
def engine() -> Engine:
    """An engine of one experience."""
    return build_engine(EXPERIENCE)


@pytest.fixture
def server(engine: Engine) -> Iterator[SandboxServer]:
    """Its server, without faults."""
    with serving(engine) as running:
        yield running


@pytest.fixture
def way(server: SandboxServer) -> Iterator[HttpWay]:
    """A keep-alive connection to the API."""
    made = HttpWay(server)
    yield made
    made.connection.close()


@pytest.fixture
def control(server: SandboxServer) -> Iterator[HttpWay]:
    """A keep-alive connection to the control paths."""
    made = HttpWay(server, base="")
    yield made
    made.connection.close()


def test_ledger_is_read_and_emptied_over_http(way: HttpWay, control: HttpWay) -> None:
    """Counts and entries as JSON; DELETE forgets them."""
    way(post(EVENTS, batch(element(action(attributes=plain_context(way))))))

    ledger = json.loads(control(Request("GET", "/_sandbox/ledger")).body)
    assert ledger["counts"] == {"plain": {"impressions": 1, "clicks": 0}}
    assert ledger["entries"][0]["customer_id"] == "42"
    assert control(Request("DELETE", "/_sandbox/ledger")).status == 200
    assert json.loads(control(Request("GET", "/_sandbox/ledger")).body) == {"counts": {}, "entries": []}


def plain_context(way: HttpWay) -> dict[str, str]:
    """Return the context of the one experience."""
    return json.loads(way(post(FETCH, {})).body)["experiences"]["plain"]["experience_context"]


def test_explain_answers_over_http(control: HttpWay) -> None:
    """The decisions of a fetch body, with their sentences; a bad body is the endpoint's 400."""
    body = {"experience_key": ["plain", "nope"]}
    decisions = json.loads(control(Request("POST", "/_sandbox/explain", body=json.dumps(body).encode())).body)

    plain, nope = decisions["decisions"]
    assert (plain["served"], plain["reason"], plain["variation_id"]) == (True, None, "1")
    assert plain["sentence"] == "audience “All users” → matched; variation A the only one."
    assert plain["entry"]["payload"]["T"]["value"] == "x" * 200
    assert (nope["served"], nope["reason"], nope["entry"]) == (False, "INVALID_EXPERIENCE_KEY", None)
    assert control(Request("POST", "/_sandbox/explain", body=b"{")).status == 400


def test_faults_are_set_over_http(way: HttpWay, control: HttpWay) -> None:
    """PUT replaces them, GET shows them; a mistake changes nothing and is told."""
    put = Request("PUT", "/_sandbox/faults", body=b'{"error_rate": 1, "error_status": 429, "retry_after": 7}')
    assert json.loads(control(put).body)["error_status"] == 429
    response = way(get_metadata())
    assert (response.status, response.headers["retry-after"]) == (429, "7")

    bad = control(Request("PUT", "/_sandbox/faults", body=b'{"eror_rate": 1}'))
    assert bad.status == 400
    assert "did you mean" in json.loads(bad.body)["description"]
    assert json.loads(control(Request("GET", "/_sandbox/faults")).body)["retry_after"] == 7

    control(Request("PUT", "/_sandbox/faults", body=b"{}"))
    assert way(get_metadata()).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/_sandbox/nothing", 404),
        ("POST", "/_sandbox/ledger", 405),
        ("GET", "/_sandbox/explain", 405),
        ("OPTIONS", "/_sandbox/faults", 405),
    ],
)
def test_other_control_requests_are_refused(control: HttpWay, method: str, path: str, status: int) -> None:
    """With the envelope; OPTIONS too, so that no web page may PUT or DELETE."""
    response = control(Request(method, path))

    assert response.status == status
    assert_valid(json.loads(response.body), contract_schema.ERROR)
    assert ("allow" in response.headers) is (status == 405)


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "203.0.113.5:8899", "127.0.0.1.evil:80", ""]
)
def test_control_is_refused_under_another_name(control: HttpWay, host: str) -> None:
    """DNS rebinding does not reach the ledger."""
    response = control(Request("GET", "/_sandbox/ledger", headers={"Host": host}))

    assert response.status == 403
    assert_valid(json.loads(response.body), contract_schema.ERROR)


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
def test_control_is_for_this_machine(client: str, host: str, allowed: bool) -> None:
    """Both ends must be the loopback, however it is written."""
    assert is_control_allowed(client, host) is allowed

"""What the contract suite shares: the fixtures of both ways in, and how answers are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from django_moe_personalize.moengage.messages import Request, Response
from django_moe_personalize.moengage.transport import RequestsTransport
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.server import SandboxServer
from django_moe_personalize.sandbox.transport import SandboxTransport
from django_moe_personalize.sandbox.workspace import load_workspace
from tests import contract_schema
from tests.contract_schema import assert_valid
from tests.sandbox_ways import NOW, HttpWay, serving

Way = Callable[[Request], Response]
KEYS = ["hero-banner", "promo-strip", "cart-upsell", "recommendations", "spring-sale", "winter-gala"]
PHONE = "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 Chrome/140.0 Mobile Safari/537.36"


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The shipped workspace at a fixed time."""
    return Engine(load_workspace(), clock=lambda: NOW)


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[SandboxServer]:
    """A server of the engine for the whole module."""
    with serving(engine) as running:
        yield running


@pytest.fixture(params=["in-process", "http"])
def way(request: pytest.FixtureRequest, engine: Engine, server: SandboxServer) -> Iterator[Way]:
    """Each way in, with an empty ledger."""
    engine.ledger.clear()
    if request.param == "in-process":
        transport = SandboxTransport(engine)
        yield lambda sent: transport.send(sent, deadline=Deadline(10))
        return
    http = HttpWay(server)
    yield http
    http.connection.close()


@pytest.fixture(params=["in-process", "http"])
def transport(request: pytest.FixtureRequest, engine: Engine, server: SandboxServer) -> Iterator[Any]:
    """Each way in as the client's transport, with an empty ledger."""
    engine.ledger.clear()
    made = SandboxTransport(engine) if request.param == "in-process" else RequestsTransport(server.url)
    yield made
    made.close()


def read(response: Response) -> Any:
    """Return the decoded body of an answer that says it is JSON."""
    assert response.headers["content-type"].startswith("application/json")
    return json.loads(response.body)


def assert_refused(response: Response, status: int, title: str) -> None:
    """Assert the vendor's envelope with a status and a title."""
    envelope = read(response)
    assert_valid(envelope, contract_schema.ERROR)
    assert (response.status, envelope["title"]) == (status, title)

"""Fixtures of the sandbox's tests, which use neither Django nor its settings."""

from collections.abc import Iterator
from typing import Any

import pytest

from django_moe_personalize.moengage.transport import RequestsTransport
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.server import SandboxServer
from django_moe_personalize.sandbox.transport import SandboxTransport
from django_moe_personalize.sandbox.workspace import load_workspace
from tests.sandbox.ways import NOW, HttpWay, Way, build_engine, serving


@pytest.fixture(autouse=True)
def fresh_process() -> None:
    """Replace the fixture of the other tests, which resets Django's cache and the package's state."""


@pytest.fixture
def engine() -> Engine:
    """An engine with one experience."""
    return build_engine({"key": "plain", "name": "Plain", "payload": {"T": "x" * 200}})


@pytest.fixture
def server(engine: Engine) -> Iterator[SandboxServer]:
    """A server for ``engine``, without faults."""
    with serving(engine) as running:
        yield running


@pytest.fixture
def api(server: SandboxServer) -> Iterator[HttpWay]:
    """A keep-alive connection to the API of ``server``."""
    with HttpWay(server) as way:
        yield way


@pytest.fixture
def control(server: SandboxServer) -> Iterator[HttpWay]:
    """A keep-alive connection to ``server``, for any path."""
    with HttpWay(server, base="") as way:
        yield way


@pytest.fixture(scope="module")
def shipped_server() -> Iterator[SandboxServer]:
    """A server for the shipped workspace at NOW."""
    with serving(Engine(load_workspace(), clock=lambda: NOW)) as running:
        yield running


@pytest.fixture
def shipped(shipped_server: SandboxServer) -> Engine:
    """The engine of the shipped workspace, with an empty ledger."""
    shipped_server.engine.ledger.clear()
    return shipped_server.engine


@pytest.fixture(params=["in-process", "http"])
def way(request: pytest.FixtureRequest, shipped: Engine, shipped_server: SandboxServer) -> Iterator[Way]:
    """Each way to send a request to the shipped workspace."""
    if request.param == "in-process":
        transport = SandboxTransport(shipped)
        yield lambda sent: transport.send(sent, deadline=Deadline(10))
        return
    with HttpWay(shipped_server) as http:
        yield http


@pytest.fixture(params=["in-process", "http"])
def transport(request: pytest.FixtureRequest, shipped: Engine, shipped_server: SandboxServer) -> Iterator[Any]:
    """Each transport of a client to the shipped workspace."""
    made = SandboxTransport(shipped) if request.param == "in-process" else RequestsTransport(shipped_server.url)
    yield made
    made.close()

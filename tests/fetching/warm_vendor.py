"""MoEngage as a real HTTP server: the sandbox's responses, which a test can hold back or replace."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from django_moe_personalize.client import get_client
from django_moe_personalize.fetching.flights import get_flights
from django_moe_personalize.fetching.upstream import get_background, get_pool
from django_moe_personalize.moengage.client import PersonalizeClient
from django_moe_personalize.moengage.http1 import Request
from django_moe_personalize.moengage.transport import RequestsTransport
from django_moe_personalize.resilience import CircuitBreaker, Deadline, PoolBusy, WorkerPool
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.workspace import load_workspace
from django_moe_personalize.visitor import Identity, Visitor
from tests.loopback import Exchange, Loopback
from tests.wire import LONG, Tls, wait_until

KEYS = ("hero-banner",)
SOON = 0.2
"""The deadline in tests that wait for the deadline to pass."""


class Vendor:
    """A server with the sandbox behind it, and a client with an idle connection to it.

    While ``hold()`` lasts, no fetch is answered. If ``behave`` is set, it answers the fetches.
    """

    def __init__(self, tls: Tls | None = None) -> None:
        self.engine = Engine(load_workspace())
        self.behave: Callable[[Exchange], object] | None = None
        self.answered = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.server = Loopback(self._serve, tls=tls and tls.context)
        self.reach(self.server.url, **({"verify": str(tls.ca_file)} if tls else {}))

    def reach(self, url: str, **options: object) -> None:
        """Build a client that calls the server by this URL."""
        self.transport = RequestsTransport(url, **options)
        workspace = self.engine.workspace
        self.client = PersonalizeClient(
            workspace_id=workspace.workspace_id, api_key=workspace.api_key, transport=self.transport
        )

    def _serve(self, exchange: Exchange) -> None:
        is_fetch = exchange.received.target.endswith("/fetch")
        if is_fetch:
            self.go_on.wait(LONG)
        if is_fetch and self.behave is not None:
            self.behave(exchange)
        else:
            self.reply(exchange)
        self.answered += is_fetch

    def reply(self, exchange: Exchange) -> None:
        """Answer as the sandbox does."""
        received = exchange.received
        path, _, query = received.target.removeprefix("/v1").partition("?")
        response = self.engine.handle(Request(received.method, path, query, received.headers, received.body))
        exchange.reply(response.body, status=f"{response.status} x", headers=dict(response.headers))

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Answer no fetch while the context lasts, or until ``go_on`` is set."""
        self.go_on.clear()
        try:
            yield
        finally:
            self.go_on.set()

    def warm(self) -> None:
        """Make a call that leaves an idle connection."""
        self.client.fetch_metadata(deadline=Deadline(LONG))

    def wait_for_answers(self, count: int) -> None:
        """Wait until this many fetches are answered. The responses may be unread."""
        wait_until(lambda: self.answered >= count)

    def has_idle_connection(self) -> bool:
        """Return whether the client has an idle connection. Afterwards the client has one."""
        before = self.server.connections
        self.warm()
        return self.server.connections == before

    @property
    def fetches(self) -> list[dict[str, Any]]:
        """The bodies of the fetches so far."""
        return [json.loads(r.body) for r in self.server.received if r.target.endswith("/fetch")]


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    """Give a vendor with an idle connection. Afterwards no flight may be left."""
    end = Vendor()
    with end.server, get_client.override(end.client):
        end.warm()
        yield end
        end.go_on.set()
        wait_until(lambda: not get_pool().in_flight and not get_background().in_flight)
        assert len(get_flights()._flights) == 0
        end.client.close()


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the reports to the circuit breaker, in order."""
    told: list[str] = []
    for name in ("success", "failure", "close_gate"):
        real = getattr(CircuitBreaker, name)
        monkeypatch.setattr(CircuitBreaker, name, lambda *args, n=name, r=real, **kw: (told.append(n), r(*args, **kw)))
    return told


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the names of the functions that the pool of fetching threads accepted."""
    names: list[str] = []
    real = WorkerPool.submit

    def submit(pool: WorkerPool, fn: Callable[..., Any], *args: Any) -> Any:
        if pool is get_pool():
            # A page's job comes with the page's context.
            names.append((args[0] if fn.__name__ == "run" else fn).__name__)
        return real(pool, fn, *args)

    monkeypatch.setattr(WorkerPool, "submit", submit)
    return names


@pytest.fixture
def fill_pool(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Give a function after which the pool of fetching threads accepts no work."""

    def refuse(*args: object) -> None:
        raise PoolBusy("busy")

    return lambda: monkeypatch.setattr(get_pool(), "submit", refuse)


def build_visitor(number: int = 1) -> Visitor:
    """Return a new visitor."""
    return Visitor(Identity(f"visitor-{number}"), {})


VISITOR = build_visitor()

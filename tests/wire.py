"""A transport with a kept connection to a server that misbehaves to order, for exchanges in two steps.

with Wire(lambda exchange: exchange.reply(b"{}")) as wire:
    exchange = wire.ask()
    response = exchange.receive(10.0)
"""

from __future__ import annotations

import contextlib
import select
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
import trustme

from django_moe_personalize.moengage import Exchange as ExchangeInFlight
from django_moe_personalize.moengage import Request, Response
from django_moe_personalize.moengage.transport import RequestsTransport
from django_moe_personalize.resilience import Deadline
from tests.loopback import Exchange, Loopback

SECRET = "Basic czNjcmV0"
FETCH = Request(
    "POST",
    "/experiences/fetch",
    headers={"Authorization": SECRET, "MOE-APPKEY": "WORK", "Content-Type": "application/json", "User-Agent": "us"},
    body=b'{"identifiers": {"customer_id": "Wanda"}}',
)
WARM = Request("GET", "/warm", headers={"User-Agent": "us"})
LONG = 10.0
"""Seconds that nothing takes unless it hangs."""


class HasFileno(Protocol):
    """What waits for something on a socket."""

    def fileno(self) -> int:
        """Return its file descriptor."""
        ...


class Tls:
    """Both ends of TLS for 127.0.0.1: the server's context, and the file with its authority."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self.context)
        self.ca_file = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.ca_file)


class Wire:
    """A server and a transport to it; what is asked at ``/warm`` is answered, all else as ``behave`` does it."""

    def __init__(self, behave: Callable[[Exchange], object], *, tls: Tls | None = None, **options: object) -> None:
        self._behave = behave
        self.server = Loopback(self._answer, tls=tls and tls.context)
        if tls is not None:
            options["verify"] = str(tls.ca_file)
        self.transport = RequestsTransport(self.server.url, **options)

    def __enter__(self) -> Wire:
        self.server.__enter__()
        self.warm()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.transport.close()
        self.server.__exit__()

    def _answer(self, exchange: Exchange) -> None:
        if exchange.received.target.endswith(WARM.path):
            exchange.reply(b"warm")
        else:
            self._behave(exchange)

    def warm(self) -> Response:
        """Ask in one step, which leaves a connection to be reserved."""
        return self.transport.send(WARM, deadline=Deadline(LONG))

    def ask(self, request: Request = FETCH) -> ExchangeInFlight:
        """Send a request on a kept connection, made where there is none."""
        if not self.is_kept():
            self.warm()
        exchange = self.transport.start(request)
        assert exchange is not None
        return exchange

    def is_kept(self) -> bool:
        """Return whether there is a connection to reserve."""
        return has_idle(self.transport)


@pytest.fixture(scope="session")
def tls_ends(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """Both ends of TLS."""
    return Tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["plain", "tls"])
def build_wire(request: pytest.FixtureRequest, tls_ends: Tls) -> Iterator[Callable[..., Wire]]:
    """Make wires with and without TLS that end with the test."""
    wires: list[Wire] = []

    def build(behave: Callable[[Exchange], object], **options: object) -> Wire:
        wires.append(Wire(behave, tls=tls_ends if request.param == "tls" else None, **options).__enter__())
        return wires[-1]

    yield build
    for wire in wires:
        wire.__exit__()


def has_idle(transport: RequestsTransport) -> bool:
    """Return whether a request can be sent at once."""
    idle = transport._get_idle()
    connection = idle.take()
    if connection is not None:
        idle._take_back(connection, True)
    return connection is not None


def wait_readable(part: HasFileno) -> None:
    """Wait until something has come."""
    assert select.select([part], [], [], LONG)[0]


def receive(exchange: ExchangeInFlight) -> Response:
    """Return the answer, which has to come."""
    response = exchange.receive(LONG)
    assert response is not None
    return response


def wait_until(is_so: Callable[[], object]) -> None:
    """Wait until something is so, which must not take long."""
    until = time.monotonic() + LONG
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.001)


def break_off(data: bytes, end: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
    """Return a behaviour: send bytes as they are, then end the connection."""

    def behave(exchange: Exchange) -> None:
        # The client may have had enough of it before the end.
        with contextlib.suppress(OSError):
            exchange.send(data)
            end(exchange)

    return behave

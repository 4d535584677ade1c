"""A transport with an open connection to a server on loopback that misbehaves to order.

with Wire(lambda exchange: exchange.reply(b"{}")) as wire:
    response = wire.send()                  # in one step
    response = receive(wire.start())        # in two
"""

from __future__ import annotations

import contextlib
import select
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from django_moe_personalize.moengage.http1 import HTTPExchange, Request, Response
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
"""Seconds that only something that hangs takes."""


class Tls:
    """Both ends of TLS for 127.0.0.1: the server's context, and the file with its authority."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.context = self.build_context("127.0.0.1")
        self.ca_file = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca_file)

    def build_context(self, host: str) -> ssl.SSLContext:
        """Return a server's context with a certificate for ``host``."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(host).configure_cert(context)
        return context


class Wire:
    """A server and a transport to it. The server answers ``/warm``; ``behave`` answers everything else."""

    def __init__(self, behave: Callable[[Exchange], object], *, tls: Tls | None = None, **options: object) -> None:
        self._behave = behave
        self.server = Loopback(self._answer, tls=tls and tls.context)
        if tls is not None:
            options["verify"] = str(tls.ca_file)
        self.transport = RequestsTransport(self.server.url, **options)

    def __enter__(self) -> Wire:
        self.server.__enter__()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.transport.close()
        self.server.__exit__()

    def _answer(self, exchange: Exchange) -> None:
        if exchange.received.target.endswith(WARM.path):
            exchange.reply(b"warm")
        else:
            self._behave(exchange)

    def send(self, request: Request = FETCH, *, seconds: float | None = LONG) -> Response:
        """Send in one step."""
        return self.transport.send(request, deadline=Deadline(seconds))

    def warm(self) -> Response:
        """Send in one step; that leaves an open connection."""
        return self.send(WARM)

    def start(self, request: Request = FETCH) -> HTTPExchange:
        """Send the first of two steps, after opening a connection where there is none."""
        if not self.is_kept():
            self.warm()
        exchange = self.transport.start(request)
        assert exchange is not None
        return exchange

    def is_kept(self) -> bool:
        return has_idle(self.transport)


@pytest.fixture(scope="session")
def tls_ends(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["plain", "tls"])
def build_wire(request: pytest.FixtureRequest, tls_ends: Tls) -> Iterator[Callable[..., Wire]]:
    """Make wires, without and with TLS, that end with the test."""
    with contextlib.ExitStack() as stack:
        tls = tls_ends if request.param == "tls" else None
        yield lambda behave, **options: stack.enter_context(Wire(behave, tls=tls, **options))


def has_idle(transport: RequestsTransport) -> bool:
    """Return whether a transport has an open connection that is idle."""
    if (connection := transport._pool.take()) is not None:
        transport._pool.give_back(connection, transport._pool.idle, is_reusable=True)
    return connection is not None


def wait_readable(part: Any) -> None:
    """Wait until data has arrived at a socket, or at an object with a socket."""
    assert select.select([part], [], [], LONG)[0]


def receive(exchange: HTTPExchange) -> Response:
    """Return the response, which has to come."""
    response = exchange.receive(LONG)
    assert response is not None
    return response


def wait_until(is_so: Callable[[], object]) -> None:
    """Wait until something is so, which must not take long."""
    until = time.monotonic() + LONG
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.001)


def echo(exchange: Exchange) -> None:
    """Answer with the body of the request."""
    exchange.reply(exchange.received.body)


def break_off(data: bytes, end: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
    """Return a behavior: send bytes as they are, then end the connection."""

    def behave(exchange: Exchange) -> None:
        # The client may have had enough before the end.
        with contextlib.suppress(OSError):
            exchange.send(data)
            end(exchange)

    return behave

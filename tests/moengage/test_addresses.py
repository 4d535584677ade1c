"""Hosts with several addresses, of which some are silent or unreachable."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext

import pytest

from django_moe_personalize.exceptions import DeadlineExceeded, TransportError
from django_moe_personalize.moengage import connection_pool, connections
from django_moe_personalize.moengage.transport import RequestsTransport
from django_moe_personalize.resilience import Deadline
from tests.loopback import Loopback
from tests.moengage.test_connections import SOON, find_closed_port, send, serve  # noqa: F401 - a fixture among them
from tests.wire import FETCH, LONG, echo


@contextmanager
def fill(host: str, port: int) -> Iterator[None]:
    """Listen and accept no connection: the backlog is full, so connecting hangs."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((host, port), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield


BAD: dict[str, tuple[str, Callable[[str, int], AbstractContextManager[object]]]] = {
    "silent": ("127.0.0.2", fill),
    "silent-in-tls": ("127.0.0.3", lambda host, port: socket.create_server((host, port))),
    "refused": ("127.0.0.4", lambda host, port: nullcontext()),
    "no-route": ("2001:db8::1", lambda host, port: nullcontext()),
}


@pytest.fixture
def resolve(monkeypatch):
    """Return a function that sets the addresses of localhost, and returns a list of the addresses that are tried."""
    look_up, connect = socket.getaddrinfo, connections.Connector.connect
    tried: list[str] = []

    def try_address(connector: connections.Connector, address: connections.Address, seconds: float) -> object:
        tried.append(address[1][0])
        return connect(connector, address, seconds)

    def resolve(*addresses: str) -> list[str]:
        def find(host: str, *args: object, **options: object) -> list[object]:
            hosts = addresses if host == "localhost" else [host]
            return [row for host in hosts for row in look_up(host, *args, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", find)
        return tried

    monkeypatch.setattr(connections.Connector, "connect", try_address)
    return resolve


@pytest.mark.parametrize("bad", [*[[kind] for kind in BAD], ["silent", "refused"], [*BAD]], ids="+".join)
def test_bad_address_costs_one_page(bad, resolve, tls_ends, monkeypatch):
    """The next address is tried soon, and from then on first. The order of the addresses in DNS doesn't matter."""
    addresses = [BAD[kind][0] for kind in bad]
    tried = resolve(*addresses, "127.0.0.1")
    with ExitStack() as stack:
        server = stack.enter_context(Loopback(echo, tls=tls_ends.build_context("localhost")))
        for kind in bad:
            host, start = BAD[kind]
            stack.enter_context(start(host, server.port))
        options = {"verify": str(tls_ends.ca_file), "connect_timeout": LONG}
        transport = stack.enter_context(closing(RequestsTransport(f"https://localhost:{server.port}", **options)))
        assert transport.send(FETCH, deadline=Deadline(LONG)).status == 200
        assert {*tried} == {*addresses, "127.0.0.1"}
        # On a busy machine the good address may be slow too.
        monkeypatch.setattr(connection_pool, "STAGGER", LONG)
        transport.close()
        tried.clear()
        resolve("127.0.0.1", *addresses)
        assert transport.send(FETCH, deadline=Deadline(LONG)).status == 200
        transport.close()
        resolve(*addresses, "127.0.0.1")
        assert transport.send(FETCH, deadline=Deadline(LONG)).status == 200
        assert tried == ["127.0.0.1"] * 2


def test_all_addresses_are_bad(resolve):
    """The error is that of the last address."""
    port = find_closed_port()
    tried = resolve("127.0.0.4", "127.0.0.1")
    with pytest.raises(TransportError, match="ConnectionRefusedError"):
        send(f"http://localhost:{port}")
    assert tried == ["127.0.0.4", "127.0.0.1"]


def test_families_take_turns(resolve):
    """Several IPv6 addresses without a route don't hold up IPv4."""
    resolve("2001:db8::1", "2001:db8::2", "127.0.0.2", "127.0.0.1")
    connector = connections.Connector("http://localhost:80", "")
    found = [address[0] for _, address in connector.look_up()]
    assert found == ["2001:db8::1", "127.0.0.2", "2001:db8::2", "127.0.0.1"]


def test_address_that_falls_silent(resolve, monkeypatch):
    """After a call without a response, the next call tries another address first, and after two no old connection."""
    monkeypatch.setattr(connection_pool, "STAGGER", LONG)
    good = Loopback(echo)
    port = good.port
    bad = Loopback(lambda exchange: exchange.reply(b"") if exchange.received.method == "GET" else exchange.hang())
    bad._listener.close()
    bad._listener = socket.create_server(("127.0.0.2", port))
    bad._host = "127.0.0.2"
    tried = resolve("127.0.0.2", "127.0.0.1")
    with good, bad, closing(RequestsTransport(f"http://localhost:{port}")) as transport:
        started = [transport._pool.wait(LONG, is_new=True) for _ in range(4)]
        assert tried == ["127.0.0.2"] * 4
        address = socket.AF_INET, ("127.0.0.1", port)
        old = connection_pool.Connection(transport._pool._connector.connect(address, LONG), address)
        for connection in [old, *started]:
            transport._pool.give_back(connection, transport._pool.idle, is_reusable=True)
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                transport.send(FETCH, deadline=Deadline(SOON))
        assert transport.send(FETCH, deadline=Deadline(LONG)).body == FETCH.body
        assert tried[4:] == ["127.0.0.1"]

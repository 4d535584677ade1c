"""Attempts to connect: callers share them, and a connection outlives the caller that wanted it."""

import copy
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest

from django_moe_personalize.exceptions import DeadlineExceeded, StillConnecting, TransportError
from django_moe_personalize.moengage import connection_pool
from django_moe_personalize.moengage.connection_pool import ConnectionPool
from django_moe_personalize.moengage.transport import RequestsTransport
from django_moe_personalize.resilience import Deadline, PoolBusy, WorkerPool
from tests.loopback import Exchange, Loopback
from tests.wire import FETCH, LONG, Wire, echo, wait_until

SOON = 0.05


class Socket:
    """A socket that stays open until the server or the pool ends it."""

    def __init__(self, address):
        self.address = address
        self.is_open = True
        self.has_ended = False

    def settimeout(self, seconds):
        """Do nothing."""

    def recv(self, size):
        if not self.has_ended:
            raise BlockingIOError

    def close(self):
        self.is_open = False


class Connector:
    """A host in a test. While ``go`` isn't set, the step ``held`` hangs. ``errors`` are raised in order, then none."""

    peer = "MoEngage"
    proxy = ""

    def __init__(self, *addresses, held="", errors=()):
        self.addresses = addresses or ("10.0.0.1",)
        self.held = held
        self.errors = list(errors)
        self.go = threading.Event()
        self.opened = []

    def look_up(self):
        if self.held == "look_up":
            self.go.wait(LONG)
        return list(self.addresses)

    def connect(self, address, seconds):
        if self.held in ("connect", address):
            self.go.wait(LONG)
        if self.errors and (error := self.errors.pop(0)):
            raise error
        self.opened.append(Socket(address))
        return self.opened[-1]


def build_pool(connector, seconds=LONG):
    return ConnectionPool(connector, connect_timeout=seconds, max_idle=8)


def test_failure_reaches_all_callers():
    """Callers that wait for the same attempt get copies of its error, with the same cause."""
    error = TransportError("refused")
    error.__cause__ = OSError()
    connector = Connector(held="connect", errors=[error] * 4)
    pool = build_pool(connector)
    with ThreadPoolExecutor(8) as callers:
        calls = [callers.submit(pool.wait, LONG) for _ in range(8)]
        wait_until(lambda: pool._waiting == 8)
        assert len(pool._attempts) == connection_pool.COLD_ATTEMPTS
        connector.go.set()
    errors = [call.exception() for call in calls]
    assert {type(one) for one in errors} == {TransportError}
    assert {one.__cause__ for one in errors} == {error.__cause__}
    assert len({id(one) for one in errors}) == 8
    assert pool.wait(LONG)


def test_bug_reaches_the_caller():
    """An unexpected error isn't copied, because a copy could fail."""
    with pytest.raises(KeyError):
        build_pool(Connector(errors=[KeyError()])).wait(LONG)


def test_failed_attempt_is_no_reason_to_give_up():
    """If an attempt fails, its callers wait for the other attempts. After a success, they try again."""
    connector = Connector(held="connect", errors=[TransportError("refused"), None])
    pool = build_pool(connector)
    with ThreadPoolExecutor(2) as callers:
        calls = [callers.submit(pool.wait, LONG) for _ in range(2)]
        wait_until(lambda: pool._waiting == 2)
        connector.go.set()
        assert {id(call.result().sock) for call in calls} == {id(one) for one in connector.opened}


def test_connection_that_ends_at_once_is_replaced():
    """A connection that the server closed before its first request isn't used."""
    connector = Connector()
    connect = connector.connect

    def connect_twice(*args):
        sock = connect(*args)
        sock.has_ended = len(connector.opened) == 1
        return sock

    connector.connect = connect_twice
    assert build_pool(connector).wait(LONG).sock is connector.opened[1]


@pytest.mark.parametrize("state", ["new", "old", "after-a-failure"])
def test_caller_whose_time_is_over(state, monkeypatch):
    """The error says whether the attempt is new, unless the attempt before failed. A copy leaves out the attempt."""
    connector = Connector(held="connect")
    pool = build_pool(connector)
    monkeypatch.setattr(connection_pool, "EARLY_SECONDS", 0.0 if state == "old" else LONG)
    if state == "after-a-failure":
        connector.held, connector.errors = "", [TransportError("refused")]
        with pytest.raises(TransportError):
            pool.wait(LONG)
        connector.held = "connect"
    # As in a site's tests with freezegun.
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    for _ in range(2):
        with pytest.raises(StillConnecting, match="answer in time: the connection isn't open") as caught:
            pool.wait(SOON)
    assert caught.value.is_early == (state == "new")
    # If an attempt hangs, the next caller begins another.
    assert len(pool._attempts) == (2 if state == "old" else 1)
    for twin in (copy.copy(caught.value), pickle.loads(pickle.dumps(caught.value))):
        assert twin.is_early == caught.value.is_early
    connector.go.set()
    assert caught.value.attempt.result(LONG) is None
    assert pool.take().sock in connector.opened


def test_lookup_that_hangs(monkeypatch):
    """After the time to connect, callers get an error that names the DNS lookup, and start another attempt."""
    monkeypatch.setattr(connection_pool, "GRACE", 0.0)
    connector = Connector(held="look_up")
    pool = build_pool(connector, SOON)
    with pytest.raises(DeadlineExceeded, match="the DNS lookup hangs") as caught:
        pool.wait(LONG)
    assert not isinstance(caught.value, StillConnecting)
    connector.go.set()
    wait_until(lambda: pool.idle)
    assert pool.wait(LONG).sock is connector.opened[0]


@pytest.mark.parametrize("errors", [[TransportError("refused"), None], [None]])
def test_without_threads(errors, monkeypatch):
    """While Python exits, it starts no thread. Then the caller's thread connects, to one address after the other."""

    def refuse(*args):
        raise PoolBusy

    monkeypatch.setattr(WorkerPool, "submit", refuse)
    connector = Connector("10.0.0.1", "10.0.0.2", errors=errors)
    assert build_pool(connector).wait(LONG).address == ("10.0.0.2" if len(errors) > 1 else "10.0.0.1")


def test_slower_address_is_closed(monkeypatch):
    """If two addresses connect, only the faster connection stays open."""
    monkeypatch.setattr(connection_pool, "STAGGER", SOON)
    connector = Connector("10.0.0.1", "10.0.0.2", held="10.0.0.1")
    pool = build_pool(connector)
    fast = pool.wait(LONG)
    assert (fast.address, fast.sock.is_open) == ("10.0.0.2", True)
    wait_until(lambda: not pool._attempts)
    connector.go.set()
    wait_until(lambda: len(connector.opened) == 2 and not connector.opened[1].is_open)
    assert not pool.idle


def test_slow_addresses_that_fail(monkeypatch):
    """The error is that of the address that failed last, even if this address was tried first."""
    monkeypatch.setattr(connection_pool, "STAGGER", SOON)
    waits = []
    wait_for = connection_pool.wait_for
    monkeypatch.setattr(connection_pool, "wait_for", lambda *args: (waits.append(args), wait_for(*args))[1])
    connector = Connector("10.0.0.1", "10.0.0.2", held="10.0.0.1", errors=[TransportError("a"), TransportError("b")])
    pool = build_pool(connector)
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(pool.wait, LONG)
        # The second address has failed, and the first address is still under way.
        wait_until(lambda: len(waits) == 3)
        connector.go.set()
        assert str(call.exception()) == "b"


def test_few_suspects(monkeypatch):
    """A host whose addresses change doesn't fill the memory."""
    monkeypatch.setattr(connection_pool, "MAX_SUSPECTS", 1)
    pool = build_pool(Connector("10.0.0.1", "10.0.0.2", errors=[TransportError("a"), TransportError("b")]))
    with pytest.raises(TransportError, match="b"):
        pool.wait(LONG)
    assert [*pool._suspects] == ["10.0.0.2"]


def test_quick_server_is_reconnected_in_the_callers_thread():
    """The caller connects to the last address without a lookup. After an error, a thread looks the host up again."""
    connector = Connector()
    pool = build_pool(connector)
    first = pool.wait(LONG)
    connector.addresses = ("10.0.0.2",)
    assert [pool.wait(LONG).address, pool.wait(LONG).address] == [first.address] * 2
    connector.errors = [TransportError("moved")]
    assert pool.wait(LONG).address == "10.0.0.2"
    assert [*pool._suspects] == ["10.0.0.1"]
    pool._fastest = *pool._fastest[:2], LONG / 2
    connector.addresses = ("10.0.0.3",)
    assert pool.wait(LONG).address == "10.0.0.3"


@pytest.mark.parametrize("why", ["silent", "proxy", "far", "late"])
def test_server_that_is_not_reconnected_in_the_callers_thread(why, monkeypatch):
    """The usual attempts try other addresses too, and their callers wait no longer than their deadline."""
    connector = Connector()
    connector.proxy = "the proxy" if why == "proxy" else ""
    pool = build_pool(connector)
    pool.wait(LONG)
    address, until, took = pool._fastest
    if why == "silent":
        pool._suspect(address)
    elif why == "far":
        pool._fastest = address, until, connection_pool.STAGGER
    elif why == "late":
        pool._fastest = address, 0.0, took
    assert pool._reconnect(LONG) is None
    assert len(connector.opened) == 1


def test_reconnecting_takes_little_time(monkeypatch):
    """However late the deadline is, another address is tried as soon as in the usual attempts."""
    allowed = []
    connector = Connector()
    pool = build_pool(connector)
    pool.wait(LONG)
    connector.connect = lambda address, seconds: allowed.append(seconds) or Socket(address)
    assert pool._reconnect(LONG) is not None
    assert pool._reconnect(0.2) is not None
    assert allowed == [connection_pool.STAGGER, 0.1]


@pytest.mark.parametrize("end", [Exchange.close, Exchange.reset, lambda exchange: exchange.send(b"HTTP/1.1 408 X")])
def test_new_connection_that_the_server_ended(end):
    """A connection that never carried a request may have unread TLS tickets, but nothing else."""
    is_open = threading.Event()
    with Wire(echo) as wire:
        wire.server._converse = lambda connection: is_open.wait(LONG) and end(Exchange(None, 1, connection, is_open))
        wire.transport.connect(deadline=Deadline(LONG))
        is_open.set()
        (connection,) = wire.transport._pool.idle
        wait_until(lambda: not connection.is_connected)
        assert wire.transport._pool.take() is None


def test_connect_needs_time():
    """connect() opens no connection if one is idle."""
    with Wire(echo) as wire:
        with pytest.raises(DeadlineExceeded):
            wire.transport.connect(deadline=Deadline(0.0))
        for _ in range(2):
            wire.transport.connect(deadline=Deadline(LONG))
        assert wire.send().body == FETCH.body
        assert wire.server.connections == 1


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("way", ["send", "start"])
def test_late_response(answers, way, build_wire, monkeypatch):
    """The connection of a late response stays open, unless the response doesn't come at all."""
    monkeypatch.setattr(connection_pool, "LINGER_SECONDS", LONG if answers else SOON)
    go = threading.Event()
    wire = build_wire(lambda exchange: (go.wait(LONG), echo(exchange)))
    wire.warm()
    if way == "send":
        with pytest.raises(DeadlineExceeded):
            wire.send(seconds=0.25)
    else:
        exchange = wire.start()
        assert exchange.receive(0.0) is None
        exchange.abandon()
    assert not wire.is_kept()
    if not answers:
        wait_until(lambda: not wire.transport._pool._threads.in_flight)
    go.set()
    if answers:
        wait_until(wire.is_kept)
    assert wire.send().body == FETCH.body
    assert wire.server.connections == (1 if answers else 2)


def test_late_response_without_a_thread(build_wire, monkeypatch):
    """If no thread is free, the connection is closed. An exchange that has ended isn't abandoned."""
    wire = build_wire(lambda exchange: exchange.hang())
    exchange = wire.start()
    monkeypatch.setattr(wire.transport._pool._threads, "offer", lambda *args: False)
    for _ in range(2):
        exchange.abandon()
    assert not wire.is_kept()
    with pytest.raises(RuntimeError):
        exchange.receive(0.0)


def test_servers_close_all_idle_connections(build_wire):
    """Callers that find only closed connections share the attempts to connect."""
    wire = build_wire(echo)
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda _: wire.send(), range(8)))
        before = wire.server.connections
        wire.server.drop_connections()
        assert {response.status for response in callers.map(lambda _: wire.send(), range(16))} == {200}
    assert wire.server.connections <= before + 8


def test_child_process_connects_itself():
    """After a fork, no attempt and no lock of the parent process holds up the child."""
    with Loopback(echo) as server, closing(RequestsTransport(server.url)) as transport:
        transport._pool._changed.acquire()
        transport._pool._pid -= 1  # As after a fork.
        with suppress(StillConnecting):
            assert transport.send(FETCH, deadline=Deadline(LONG)).body == FETCH.body


def test_pool_without_close():
    """A pool that no caller closes leaves no open connection behind."""
    connector = Connector()
    pool = build_pool(connector)
    pool.give_back(pool.wait(LONG), pool.idle, is_reusable=True)
    # As the garbage collector does. A thread may hold the pool for a moment longer.
    pool.__del__()
    assert [sock.is_open for sock in connector.opened] == [False]

"""A call in two steps: the exchange sends the request at once, and the caller reads the response later."""

import gzip
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from django_moe_personalize.exceptions import InvalidResponseError, TransportError
from django_moe_personalize.moengage.http1 import MAX_BYTES, HTTPExchange, NotTakenError, Request, describe_failure
from tests.error_reports import describe_report
from tests.loopback import Exchange, build_head
from tests.wire import FETCH, LONG, SECRET, Wire, break_off, echo, has_idle, receive, wait_readable, wait_until

SOON = 0.2
PROMPTLY = LONG / 2
"""Seconds that only something that waits for the server takes."""

LENGTH = build_head("200 OK", {"Content-Length": "999"})
CHUNKED = build_head("200 OK", {"Transfer-Encoding": "chunked"})
BIG = Request("POST", "/big", body=b" " * 20_000_000)


# -- the response


@pytest.mark.parametrize("cut", [1, 20, len(LENGTH), len(LENGTH) + 1])
def test_response_is_read_once_it_is_whole(cut, build_wire):
    """receive() returns None until the response is complete. After the response, receive() raises RuntimeError."""
    data = LENGTH + b"x" * 999
    more = threading.Event()
    wire = build_wire(lambda exchange: (exchange.send(data[:cut]), more.wait(LONG), exchange.send(data[cut:])))
    exchange = wire.start()
    wait_readable(exchange)
    assert not exchange.has_begun
    assert exchange.receive(0.0) is None
    assert exchange.receive(0.001) is None
    assert exchange.has_begun
    more.set()
    response = receive(exchange)
    assert (response.status, response.body) == (200, b"x" * 999)
    with pytest.raises(RuntimeError, match="has ended"):
        exchange.receive(0.0)


def test_response_that_is_there_is_read_without_waiting(build_wire):
    """receive() reads a response that has arrived in any number of TLS records."""
    wire = build_wire(lambda exchange: exchange.reply(b" " * MAX_BYTES))
    exchange = wire.start()
    wait_until(lambda: exchange.receive(0.0))
    assert wire.is_kept()


def test_request_is_out_before_anyone_waits(build_wire):
    """send() returns at once, and the server gets the request before a caller reads the response."""
    wire = build_wire(echo)
    exchange = wire.start()
    wait_until(lambda: len(wire.server.received) == 2)
    assert receive(exchange).body == FETCH.body


@pytest.mark.parametrize(
    "behave",
    [
        Exchange.hang,
        lambda exchange: exchange.drip(LENGTH + b" " * 999, every=0.02),
        lambda exchange: exchange.drip(CHUNKED + b"1\r\n \r\n" * 999, every=0.02),
    ],
    ids=["nothing", "drips", "drips-chunks"],
)
def test_waiting_ends_on_time(behave, build_wire):
    """receive() returns after its seconds, even if a part of the response has arrived."""
    exchange = build_wire(behave).start()
    start = time.monotonic()
    assert exchange.receive(SOON) is None
    assert SOON <= time.monotonic() - start < PROMPTLY
    exchange.release()


@pytest.mark.parametrize("body", [b"{}", gzip.compress(b"{}")[:-9]], ids=["not", "half"])
def test_response_that_cannot_be_decompressed(body, build_wire):
    """The caller gets an error, but the connection stays open."""
    wire = build_wire(lambda exchange: exchange.reply(body, headers={"Content-Encoding": "GZIP"}))
    for _ in range(2):
        with pytest.raises(InvalidResponseError, match="not one whole gzip stream"):
            receive(wire.start())
    assert wire.server.connections == 1


# -- the connection afterwards


@pytest.mark.parametrize(
    ("data", "is_kept"),
    [
        (build_head("204 No Content", {}), True),
        (build_head("204 No Content", {"Connection": "close"}), False),
        (build_head("204 No Content", {}) + b"\n", False),
    ],
    ids=["in-order", "last", "with-a-byte-too-many"],
)
def test_connection_is_kept_unless_it_must_not(data, is_kept, build_wire):
    """The next call uses a reusable connection, and otherwise opens a new connection."""
    wire = build_wire(lambda exchange: exchange.send(data))
    for _ in range(3):
        assert receive(wire.start()).status == 204
        assert wire.is_kept() == is_kept
    assert wire.server.connections == (1 if is_kept else 3)


def test_second_response_costs_the_connection(build_wire):
    """Extra bytes close the connection, because they must not become the next visitor's response."""
    late = threading.Event()
    wire = build_wire(lambda exchange: (exchange.reply(b"first"), late.wait(LONG), exchange.reply(b"nobody's")))
    assert receive(wire.start()).body == b"first"
    late.set()
    wait_until(lambda: not wire.is_kept())
    assert wire.warm().body == b"warm"


def test_release_before_the_response_closes_the_connection(build_wire):
    """A response that arrives later must not reach another caller."""
    wire = build_wire(lambda exchange: (time.sleep(SOON), echo(exchange)))
    exchange = wire.start()
    exchange.release()
    exchange.release()
    assert not wire.is_kept()
    assert receive(wire.start(Request("POST", "/echo", body=b"mine"))).body == b"mine"
    assert wire.server.connections == 2


def test_release_after_the_response_changes_nothing(build_wire):
    """The next exchange may use the connection already."""
    wire = build_wire(echo)
    first = wire.start()
    receive(first)
    second = wire.start(Request("POST", "/echo", body=b"second"))
    first.release()
    assert receive(second).body == b"second"
    assert wire.server.connections == 1


# -- failures


@pytest.mark.parametrize("die", [Exchange.close, Exchange.reset, Exchange.half_close], ids=lambda die: die.__name__)
def test_connection_that_died_idle_may_be_asked_again(die, build_wire):
    """The server closed the connection before the request arrived, so a retry is safe."""
    wire = build_wire(die)
    exchange = wire.start()
    with pytest.raises(NotTakenError, match="closed an idle connection"):
        receive(exchange)
    wire.warm()
    exchange.release()
    assert wire.is_kept()
    assert wire.server.connections == 2


@pytest.mark.parametrize("end", [Exchange.close, Exchange.reset], ids=lambda end: end.__name__)
@pytest.mark.parametrize("data", [b"H", LENGTH + b"ada@example.com", CHUNKED + b"99\r\nada@example.com"], ids=len)
def test_half_a_response_is_a_transport_error(data, end, build_wire):
    """The exchange closes the connection, and the next call works on another connection."""
    wire = build_wire(break_off(data, end))
    with pytest.raises(TransportError, match=r"in the middle|no whole response from MoEngage \(\w+\)") as caught:
        receive(wire.start())
    assert type(caught.value) is TransportError
    assert "ada@example.com" not in describe_report(caught.value)
    assert not wire.is_kept()
    assert wire.warm().body == b"warm"


def test_server_that_stops_reading_is_not_waited_for(build_wire):
    """The exchange closes the connection, so that no other request follows an incomplete request."""
    wire = build_wire(lambda exchange: (exchange.reply(b"{}"), exchange.hang()))
    receive(wire.start())
    start = time.monotonic()
    assert wire.transport.start(BIG) is None
    assert time.monotonic() - start < PROMPTLY
    assert not wire.is_kept()


def test_connection_that_ends_while_the_request_is_sent(build_wire, monkeypatch):
    """send() or receive() raises NotTakenError."""
    wire = build_wire(Exchange.hang)
    wire.warm()
    write = wire.transport._write
    monkeypatch.setattr(wire.transport, "_write", lambda request: (wire.server.drop_connections(), write(request))[1])
    exchange = wire.transport.start(BIG)
    if exchange is not None:
        with pytest.raises(NotTakenError):
            receive(exchange)
    assert not wire.is_kept()


class Aborted(BaseException):
    """The exception with which a server stops its worker."""


class BrokenSocket:
    """A socket whose send() fails, and whose recv() returns a response."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.settimeout = self.recv = lambda _number: build_head("413 Too Large", {"Content-Length": "0"})

    def send(self, data: memoryview) -> int:
        """Raise the error."""
        raise self.error


def test_server_may_answer_before_it_has_read_everything():
    """The caller gets a 413 from a server that stopped reading the request."""
    exchange = HTTPExchange(BrokenSocket(BrokenPipeError()), lambda is_reusable: None)
    exchange.send(memoryview(b"POST"), 1.0)
    assert receive(exchange).status == 413


def test_abort_while_sending_closes_the_connection():
    """The exchange closes the connection, so that no other request follows an incomplete request."""
    ends: list[bool] = []
    with pytest.raises(Aborted):
        HTTPExchange(BrokenSocket(Aborted()), ends.append).send(memoryview(b"POST"), 1.0)
    assert ends == [False]


@pytest.mark.parametrize("way", ["send", "start"])
@pytest.mark.parametrize(
    "behave",
    [
        pytest.param(Exchange.reset, id="reset"),
        pytest.param(break_off(LENGTH + b"Wanda", Exchange.close), id="half"),
        pytest.param(break_off(CHUNKED + b"Wanda\r\n", Exchange.hang), id="no-size"),
        pytest.param(lambda exchange: exchange.reply(b"Wanda" * MAX_BYTES), id="oversize"),
        pytest.param(break_off(b"Wanda\r\n\r\n", Exchange.close), id="not-http"),
        pytest.param(break_off(b"HTTP/1.1 200 OK\r\nWanda\r\n\r\n", Exchange.close), id="no-header"),
        pytest.param(lambda exchange: exchange.reply(b"Wanda", headers={"Content-Encoding": "gzip"}), id="not-gzip"),
    ],
)
def test_error_report_shows_no_secret_and_no_visitor(behave, way, build_wire):
    """No message and no local variable in the chain of errors contains the key, the visitor or the response."""
    wire = build_wire(behave, proxies={"ftp": "http://me:pw@127.0.0.1"})
    with pytest.raises((TransportError, InvalidResponseError)) as caught:
        wire.send() if way == "send" else receive(wire.start())
    shown = describe_report(caught.value)
    assert ("request = Request(method='POST'" if way == "send" else "seconds = ") in shown
    assert not [secret for secret in (SECRET, "czNjcmV0", "Wanda", "me:pw") if secret in shown]


def test_cause_brings_no_frames():
    """The cause is the operating system's error, without a traceback and without a cause of its own."""
    secret = OSError("broken")
    secret.__context__ = ValueError("Wanda")
    failure = describe_failure(secret, "MoEngage")
    assert failure.__cause__ is secret
    assert "Wanda" not in describe_report(failure)


# -- which connections there are


def test_nothing_starts_before_the_first_call():
    """start() returns None, because to open a connection takes time."""
    with Wire(echo) as wire:
        assert wire.transport.start(FETCH) is None
        assert wire.server.connections == 0


@pytest.mark.parametrize("maxsize", [1, 4])
def test_nothing_starts_while_all_connections_are_in_use(maxsize, build_wire):
    """A connection serves one exchange at a time."""
    wire = build_wire(echo, pool_maxsize=maxsize)
    exchange = wire.start()
    assert wire.transport.start(FETCH) is None
    assert receive(exchange).body == FETCH.body
    assert wire.is_kept()


def test_more_connections_than_are_kept(build_wire, caplog):
    """The transport closes the connection that was idle for the longest time, without a warning."""
    wire = build_wire(echo, pool_maxsize=1)
    exchange = wire.start()
    wire.warm()
    receive(exchange)
    assert wire.server.connections == 2
    assert exchange.fileno() != -1
    assert len(wire.transport._pool.idle) == 1
    assert caplog.records == []


def test_nothing_starts_after_closing(build_wire):
    """close() closes the idle connections. A connection in use is closed at the end of its exchange."""
    wire = build_wire(echo)
    exchange = wire.start()
    wire.transport.close()
    assert not wire.is_kept()
    assert receive(exchange).body == FETCH.body
    assert not wire.is_kept()
    assert wire.warm().body == b"warm"
    assert wire.server.connections == 2


def test_connection_that_the_server_closed_is_not_used(build_wire):
    """The next call opens a new connection."""
    wire = build_wire(echo)
    wire.warm()
    wire.server.drop_connections()
    wait_until(lambda: not wire.is_kept())
    assert wire.transport.start(FETCH) is None
    assert wire.warm().body == b"warm"
    assert wire.server.connections == 2


# -- nobody gets another's response


def test_threads_get_their_own_responses(build_wire):
    """Many threads send, start, release and close. Each thread reads the response to its own request."""
    wire = build_wire(echo, pool_maxsize=4)

    def ask(number: int) -> bool:
        request = Request("POST", "/echo", body=f"visitor {number}".encode() * 20)
        if number % 50 == 0:
            wire.transport.close()
        exchange = wire.transport.start(request) if number % 3 else None
        if exchange is None:
            return wire.send(request).body == request.body
        if number % 7 == 0:
            exchange.release()
            return True
        return receive(exchange).body == request.body

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(800)))


def test_exchange_that_a_child_inherits_leaves_it_no_connection(build_wire):
    """A parent's request in flight must not leave an idle connection in the child process."""
    wire = build_wire(echo)
    exchange = wire.start()
    wire.transport._pool._pid -= 1  # As after a fork.
    receive(exchange)
    assert not has_idle(wire.transport)


def test_request_that_is_larger_than_the_buffer():
    """The pool leaves its sockets without a timeout. The rest of the request waits until the server reads on."""
    ours, theirs = socket.socketpair()
    size, received = 4_000_000, bytearray()

    def read():
        while len(received) < size:
            received.extend(theirs.recv(65536))

    with ours, theirs:
        ours.settimeout(0.0)
        reader = threading.Thread(target=read)
        reader.start()
        HTTPExchange(ours, lambda is_reusable: None).send(memoryview(b"x" * size), LONG)
        reader.join(LONG)
    assert len(received) == size

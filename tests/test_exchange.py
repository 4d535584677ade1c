"""A call in two steps on a kept connection: the same request, and the same answer however it comes."""

from __future__ import annotations

import gzip
import socket
import threading
import time

import pytest

from django_moe_personalize.moengage.answers import MAX_BYTES
from django_moe_personalize.moengage.messages import Request
from django_moe_personalize.moengage.pools import TimedHTTPPool, TimedHTTPSPool
from django_moe_personalize.moengage.transport import RequestsTransport
from django_moe_personalize.resilience import Deadline
from tests.loopback import Exchange, build_head
from tests.wire import FETCH, LONG, WARM, receive, wait_readable, wait_until

SOON = 0.2
MARGIN = 0.75
"""Seconds by which a busy machine may be late."""

CHUNKED = {"Transfer-Encoding": "chunked"}
ZIPPED = gzip.compress(b'{"a": 1}', mtime=0)

ANSWERS = {
    "length": (build_head("200 OK", {"Content-Length": "8"}) + b'{"a": 1}', 200, b'{"a": 1}', True),
    "other-case": (b"HTTP/1.1 200 OK\r\ncontent-LENGTH:8\r\n\r\n" + b'{"a": 1}', 200, b'{"a": 1}', True),
    "bare-newlines": (b"HTTP/1.1 200\nContent-Length: 2\n\n{}", 200, b"{}", True),
    "nothing": (build_head("503 Busy", {"Content-Length": "0", "Retry-After": "5"}), 503, b"", True),
    "no-content": (build_head("204 No Content", {}), 204, b"", True),
    "chunked": (build_head("200 OK", CHUNKED) + b'3\r\n{"a\r\n5;x=y\r\n": 1}\r\n0\r\n\r\n', 200, b'{"a": 1}', True),
    "trailers": (build_head("200 OK", CHUNKED) + b"2\r\n{}\r\n0\r\nA: b\r\nC: d\r\n\r\n", 200, b"{}", True),
    "no-chunks": (build_head("200 OK", CHUNKED) + b"0\r\n\r\n", 200, b"", True),
    "gzip": (
        build_head("200 OK", {"Content-Encoding": "gzip", "Content-Length": str(len(ZIPPED))}) + ZIPPED,
        200,
        b'{"a": 1}',
        True,
    ),
    "gzip-in-chunks": (
        build_head("200 OK", {"Content-Encoding": "gzip", **CHUNKED})
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(ZIPPED), ZIPPED),
        200,
        b'{"a": 1}',
        True,
    ),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}", True),
    "hints": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Go\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        200,
        b"{}",
        True,
    ),
    "last": (build_head("200 OK", {"Content-Length": "2", "Connection": "close"}) + b"{}", 200, b"{}", False),
    "http-1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}", False),
}
"""Answers as they are on the wire: status, body, and whether the connection may be used again."""


def echo(exchange: Exchange) -> None:
    """Answer with what was asked."""
    exchange.reply(exchange.received.body)


# -- the request


@pytest.mark.parametrize(
    "asked",
    [
        FETCH,
        WARM,
        Request("GET", "/warm", query="status=Active%2CPaused", headers={"User-Agent": "us", "X-A": "\xe9"}),
        Request("POST", "/big", headers={"User-Agent": "us"}, body=bytes(range(256)) * 512),
    ],
    ids=["post", "get", "query", "big"],
)
def test_a_request_is_the_same_as_in_one_step(asked, build_wire):
    """Method, target, every header and the body."""
    wire = build_wire(echo)
    wire.transport.send(asked, deadline=Deadline(LONG))
    receive(wire.ask(asked))
    one_step, two_steps = wire.server.received[1:]
    assert one_step == two_steps
    assert two_steps.headers["host"] == f"127.0.0.1:{wire.server.port}"


@pytest.mark.parametrize(
    ("pool", "authority"),
    [
        (TimedHTTPSPool("sdk-01.moengage.com", port=443), "sdk-01.moengage.com"),
        (TimedHTTPSPool("sdk-01.moengage.com"), "sdk-01.moengage.com"),
        (TimedHTTPSPool("sdk-01.moengage.com", port=8443), "sdk-01.moengage.com:8443"),
        (TimedHTTPPool("localhost", port=80), "localhost"),
        (TimedHTTPPool("localhost", port=443), "localhost:443"),
        (TimedHTTPPool("::1", port=80), "[::1]"),
        (TimedHTTPPool("[::1]", port=8000), "[::1]:8000"),
    ],
)
def test_host_has_a_port_that_is_not_the_schemes(pool, authority):
    """As in one step, and with brackets around an IPv6 address."""
    assert pool.authority == authority


def test_host_over_ipv6():
    """Both ways send the same Host to an IPv6 address."""
    heads: list[list[bytes]] = []

    def serve(listener: socket.socket) -> None:
        connection, _address = listener.accept()
        with connection, connection.makefile("rb") as reader:
            for _ in range(2):
                heads.append([line for line in iter(reader.readline, b"\r\n") if line.startswith(b"Host")])
                connection.sendall(build_head("204 No Content", {}))

    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        authority = f"[::1]:{listener.getsockname()[1]}"
        transport = RequestsTransport(f"http://{authority}")
        transport.send(WARM, deadline=Deadline(LONG))
        exchange = transport.reserve()
        assert exchange.send(WARM)
        receive(exchange)
        transport.close()
        thread.join(LONG)
    assert heads == [[f"Host: {authority}\r\n".encode()]] * 2


# -- the answer


@pytest.mark.parametrize(("data", "status", "body", "is_kept"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_in_one_piece(data, status, body, is_kept, build_wire):
    """Status, headers and body are read, and the connection serves the next call unless it must not."""
    wire = build_wire(lambda exchange: exchange.send(data))
    for _ in range(3):
        response = receive(wire.ask())
        assert (response.status, response.body) == (status, body)
        assert response.headers.get("retry-after") == ("5" if status == 503 else None)
        assert wire.is_kept() == is_kept
    assert wire.server.connections == (1 if is_kept else 3)


@pytest.mark.parametrize(("data", "status", "body", "is_kept"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_in_any_two_pieces(data, status, body, is_kept, build_wire):
    """Wherever it is cut, the first piece is no answer yet, and asking again later gives all of it."""
    more = threading.Event()
    cuts = iter(range(len(data)))

    def behave(exchange: Exchange) -> None:
        cut = next(cuts)
        exchange.send(data[:cut])
        more.wait(LONG)
        exchange.send(data[cut:])

    wire = build_wire(behave)
    for cut in range(len(data)):
        more.clear()
        exchange = wire.ask()
        if cut:
            wait_readable(exchange)
        assert exchange.receive() is None
        assert exchange.receive() is None
        more.set()
        response = receive(exchange)
        assert (response.status, response.body) == (status, body)


@pytest.mark.parametrize(("data", "status", "body", "is_kept"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_byte_by_byte(data, status, body, is_kept, build_wire):
    """However slowly it comes, it is read, and what came is never lost between two looks."""
    wire = build_wire(lambda exchange: exchange.drip(data, every=0.0002))
    exchange = wire.ask()
    while (response := exchange.receive(0.0005)) is None:
        pass
    assert (response.status, response.body) == (status, body)


@pytest.mark.parametrize("name", ["length", "chunked", "no-content", "continue"])
def test_an_answer_with_something_beyond_it(name, build_wire):
    """The answer is read, and the connection is closed: whatever that was, it is not the next visitor's."""
    data, status, body, _is_kept = ANSWERS[name]
    wire = build_wire(lambda exchange: exchange.send(data + b"\n"))
    for _ in range(2):
        response = receive(wire.ask())
        assert (response.status, response.body) == (status, body)
        assert not wire.is_kept()
    assert wire.server.connections == 2


@pytest.mark.parametrize("data", [b"", b"{", b'{"a": 1}' * 50_000], ids=len)
def test_an_answer_until_the_end(data, build_wire):
    """Without a length the answer ends with the connection, which is not used again."""
    wire = build_wire(lambda exchange: (exchange.send(build_head("200 OK", {}) + data), exchange.close()))
    for _ in range(2):
        assert receive(wire.ask()).body == data
        assert not wire.is_kept()
    assert wire.server.connections == 2


@pytest.mark.parametrize("head", [{"Content-Length": str(MAX_BYTES)}, CHUNKED], ids=["length", "chunks"])
def test_an_answer_of_exactly_the_limit(head, build_wire):
    """1 MiB is allowed."""
    piece = b" " * 1024
    body = b"400\r\n%b\r\n" % piece * 1024 + b"0\r\n\r\n" if head is CHUNKED else piece * 1024
    wire = build_wire(lambda exchange: exchange.send(build_head("200 OK", head) + body))
    for _ in range(2):
        assert receive(wire.ask()).body == piece * 1024
    assert wire.server.connections == 1


def test_what_comes_after_an_answer_is_nobodys(build_wire):
    """A second answer nobody asked for costs the connection, not the next visitor."""
    late = threading.Event()

    def behave(exchange: Exchange) -> None:
        exchange.reply(b"first")
        late.wait(LONG)
        exchange.reply(b"nobody's")

    wire = build_wire(behave)
    assert receive(wire.ask()).body == b"first"
    assert wire.is_kept()
    late.set()
    wait_until(lambda: not wire.is_kept())
    assert wire.warm().body == b"warm"


# -- waiting


@pytest.mark.parametrize(
    "behave",
    [
        Exchange.hang,
        lambda exchange: exchange.drip(build_head("200 OK", {"Content-Length": "9999"}) + b" " * 9999, every=0.01),
        lambda exchange: exchange.drip(build_head("200 OK", CHUNKED) + b"1\r\n \r\n" * 999, every=0.01),
    ],
    ids=["nothing", "drips", "drips-chunks"],
)
def test_waiting_ends_on_time(behave, build_wire):
    """Receiving lasts as long as it is told, whatever drips in meanwhile."""
    exchange = build_wire(behave).ask()
    start = time.monotonic()
    assert exchange.receive(SOON) is None
    assert SOON <= time.monotonic() - start < SOON + MARGIN
    start = time.monotonic()
    assert exchange.receive() is None
    assert time.monotonic() - start < MARGIN
    exchange.release()


def test_a_request_is_out_before_anyone_waits(build_wire):
    """Sending returns at once, and the server has it though nobody reads."""
    wire = build_wire(echo)
    start = time.monotonic()
    exchange = wire.ask()
    assert time.monotonic() - start < MARGIN
    wait_until(lambda: len(wire.server.received) == 2)
    assert receive(exchange).body == FETCH.body


# -- giving back


def test_releasing_before_the_answer_closes_the_connection(build_wire):
    """The answer that may still come is for nobody else."""
    wire = build_wire(lambda exchange: (time.sleep(SOON), echo(exchange)))
    exchange = wire.ask()
    exchange.release()
    exchange.release()
    assert not wire.is_kept()
    assert receive(wire.ask(Request("POST", "/echo", body=b"mine"))).body == b"mine"
    assert wire.server.connections == 2


def test_releasing_unsent_keeps_the_connection(build_wire):
    """Nothing was asked on it."""
    wire = build_wire(echo)
    wire.transport.reserve().release()
    assert receive(wire.ask()).body == FETCH.body
    assert wire.server.connections == 1


def test_releasing_after_the_answer_takes_it_from_nobody(build_wire):
    """The connection is another's by then."""
    wire = build_wire(echo)
    first = wire.ask()
    receive(first)
    second = wire.ask(Request("POST", "/echo", body=b"second"))
    first.release()
    assert receive(second).body == b"second"
    assert wire.server.connections == 1


def test_a_call_in_one_step_follows_on_the_same_connection(build_wire):
    """What two steps leave of a socket's timeout is no other call's."""
    wire = build_wire(lambda exchange: (time.sleep(SOON), echo(exchange)))
    exchange = wire.ask()
    assert exchange.receive() is None
    receive(exchange)
    assert wire.transport.send(FETCH, deadline=Deadline(LONG)).body == FETCH.body
    receive(wire.ask())
    assert wire.server.connections == 1

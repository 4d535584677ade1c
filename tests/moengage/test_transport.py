"""RequestsTransport and a real server that misbehaves: deadlines, complete responses, and errors without secrets."""

import gzip
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from django_moe_personalize.exceptions import DeadlineExceeded, InvalidResponseError, TransportError
from django_moe_personalize.moengage.http1 import MAX_BYTES, Request, Response
from django_moe_personalize.moengage.transport import RequestsTransport
from django_moe_personalize.resilience import Deadline
from tests.error_reports import describe_report
from tests.loopback import Exchange, Loopback, build_head
from tests.wire import FETCH, LONG, SECRET, break_off, receive

SOON = 0.25
"""The seconds of a deadline that passes in a test."""

PROMPTLY = LONG / 2
"""Seconds that only something that waits for the server takes."""

CHUNKED = build_head("200 OK", {"Transfer-Encoding": "chunked"})


def answer(exchange: Exchange) -> None:
    """Answer as MoEngage does for no experience."""
    exchange.reply(b'{"experiences": {}}')


@pytest.fixture
def filled_port() -> Iterator[int]:
    """Give a port whose listener accepts no connection: the backlog is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for one in waiting:
            one.close()


def fail_late(transport: RequestsTransport, *, seconds: float | None = SOON) -> None:
    """Expect a call to end at its deadline, not at the server's last byte, with an error that shows no secret."""
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="did not answer in time") as caught:
        transport.send(FETCH, deadline=Deadline(seconds))
    assert SOON <= time.monotonic() - start < PROMPTLY
    shown = describe_report(caught.value)
    assert not [secret for secret in (SECRET, "Wanda") if secret in shown]
    transport.close()


# -- there and back


def test_request_arrives_as_it_was_given(build_wire):
    """send() and start() transmit the method, path, query, headers and body of the Request."""
    wire = build_wire(answer)
    response = wire.send()
    assert (response.status, response.body) == (200, b'{"experiences": {}}')
    assert response.headers == {"content-length": "19", "content-type": "application/json"}
    wire.send(Request("GET", "/experiences/metadata", query="status=Active%2CPaused", headers={"X-A": "\xe9"}))
    wire.send(Request("POST", "/empty"))
    assert wire.start().receive(LONG) is not None
    post, get, empty, started = wire.server.received
    assert (post.method, post.target, post.body) == ("POST", "/v1/experiences/fetch", FETCH.body)
    assert post.headers == {name.lower(): value for name, value in FETCH.headers.items()} | {
        "host": f"127.0.0.1:{wire.server.port}",
        "accept-encoding": "gzip",
        "content-length": str(len(FETCH.body)),
    }
    assert started == post
    assert (get.method, get.target, get.body) == ("GET", "/v1/experiences/metadata?status=Active%2CPaused", b"")
    assert get.headers["x-a"] == "\xe9"
    assert "content-length" not in get.headers
    assert empty.headers["content-length"] == "0"


@pytest.mark.parametrize(
    ("base_url", "host"),
    [
        ("https://SDK-01.moengage.com:443/v1", "sdk-01.moengage.com"),
        ("https://sdk-01.moengage.com:8443/v1", "sdk-01.moengage.com:8443"),
        ("http://localhost:80", "localhost"),
        ("http://localhost:443", "localhost:443"),
        ("http://[::1]:80", "[::1]"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_host_has_a_port_that_is_not_the_schemes(base_url, host):
    """The Host header leaves out the default port of the scheme, and has brackets around an IPv6 address."""
    assert f"\r\nHost: {host}\r\n".encode() in RequestsTransport(base_url)._write_head("GET", "/")


def test_ipv6():
    """An IPv6 address can be called."""
    with Loopback(answer, host="::1") as server:
        transport = RequestsTransport(server.url)
        assert transport.send(FETCH, deadline=Deadline(LONG)).status == 200
        assert server.received[0].headers["host"] == f"[::1]:{server.port}"
        transport.close()


@pytest.mark.parametrize("status", ["204 No Content", "301 Moved Permanently", "401 Unauthorized", "503 Busy"])
def test_any_status_is_a_response(status, build_wire):
    """The transport returns a response with any status, and keeps the connection open."""
    headers = {} if status.startswith("204") else {"Content-Length": "0"}
    wire = build_wire(lambda exchange: exchange.send(build_head(status, headers | {"Retry-After": "5"})))
    for _ in range(2):
        response = wire.send()
        assert (response.status, response.body) == (int(status[:3]), b"")
        assert response.headers["retry-after"] == "5"
    assert wire.server.connections == 1


def test_redirect_is_not_followed(build_wire):
    """The transport sends credentials and visitors' data only to the base URL."""
    other = build_wire(answer)
    location = {"Location": other.server.url}
    wire = build_wire(lambda exchange: exchange.reply(status="307 Temporary Redirect", headers=location))
    assert wire.send().status == 307
    assert other.server.received == []


def test_cookies_are_not_kept(build_wire):
    """A cookie that one visitor got doesn't travel with another visitor's request."""
    wire = build_wire(lambda exchange: exchange.reply(headers={"Set-Cookie": "who=wanda; Path=/"}))
    wire.send()
    wire.send()
    assert "cookie" not in wire.server.received[1].headers


def test_close_closes_and_the_transport_may_be_used_again(build_wire):
    """The next call after close() opens a new connection; closing twice is fine."""
    wire = build_wire(answer)
    wire.transport.close()
    wire.send()
    wire.send()
    assert wire.server.connections == 1
    wire.transport.close()
    wire.transport.close()
    assert wire.send().status == 200
    assert wire.server.connections == 2


# -- on time


@pytest.mark.parametrize(
    "behave",
    [
        pytest.param(Exchange.hang, id="never-answers"),
        pytest.param(lambda exchange: exchange.drip(b"HTTP/1.1 200 OK\r\n" * 99, every=0.02), id="drips-headers"),
        pytest.param(lambda exchange: exchange.drip(b"HTTP/1.1 100 Go on\r\n\r\n" * 99, every=0.02), id="drips-100s"),
        pytest.param(
            lambda exchange: exchange.drip(build_head("200 OK", {"Content-Length": "999"}) + b" " * 999, every=0.01),
            id="drips-body",
        ),
        pytest.param(break_off(build_head("200 OK", {"Content-Length": "9"}), Exchange.hang), id="stops-in-the-middle"),
        pytest.param(lambda exchange: exchange.drip(CHUNKED + b"1\r\n \r\n" * 999, every=0.01), id="drips-chunks"),
    ],
)
@pytest.mark.parametrize("warm", [False, True], ids=["new-connection", "kept-connection"])
def test_no_response_outlives_the_deadline(behave, warm, build_wire):
    """Headers, body and silence end at the deadline."""
    wire = build_wire(behave)
    if warm:
        wire.warm()
    fail_late(wire.transport)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("seconds", "options"), [(SOON, {}), (LONG, {"connect_timeout": SOON})])
def test_server_that_never_accepts_does_not_outlive_the_deadline(scheme, seconds, options, filled_port):
    """The time to connect is a part of the deadline. connect_timeout limits a call with a longer deadline."""
    fail_late(RequestsTransport(f"{scheme}://127.0.0.1:{filled_port}", **options), seconds=seconds)


def test_tls_handshake_does_not_outlive_the_deadline():
    """A server that accepts the connection and sends nothing can't delay the caller."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fail_late(RequestsTransport(f"https://127.0.0.1:{listener.getsockname()[1]}"))


def test_server_that_reads_nothing_does_not_outlive_the_deadline():
    """The time to send is a part of the deadline."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        transport = RequestsTransport(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(DeadlineExceeded):
            transport.send(Request("POST", "/big", body=b" " * 20_000_000), deadline=Deadline(SOON))


@pytest.mark.parametrize("seconds", [None, LONG])
def test_timeout_holds_without_an_earlier_deadline(seconds, build_wire):
    """A call without a deadline ends after ``timeout``."""
    fail_late(build_wire(Exchange.hang, timeout=SOON).transport, seconds=seconds)


def test_past_deadline_asks_nothing(build_wire):
    """If no time is left, the transport sends no request."""
    wire = build_wire(answer)
    with pytest.raises(DeadlineExceeded, match="no time was left"):
        wire.send(seconds=0.0)
    assert wire.server.connections == 0


def test_next_call_has_its_own_time(build_wire):
    """A call with a short deadline doesn't change the time of the next call on the same connection."""
    wire = build_wire(lambda exchange: (time.sleep(SOON), answer(exchange)))
    exchange = wire.start()
    assert exchange.receive(0.0) is None
    receive(exchange)
    assert wire.send().status == 200
    assert wire.server.connections == 1


# -- broken


@pytest.mark.parametrize(
    ("behave", "problem"),
    [
        pytest.param(Exchange.reset, r"from MoEngage \(ConnectionResetError", id="reset"),
        pytest.param(Exchange.close, r"from MoEngage \(ConnectionResetError", id="closed"),
        pytest.param(Exchange.half_close, r"from MoEngage \(ConnectionResetError", id="half-closed"),
        pytest.param(break_off(b"HTTP/1.1 2", Exchange.close), "in the middle", id="closed-in-the-status"),
        pytest.param(break_off(CHUNKED + b"9\r\n{}", Exchange.reset), "middle|ConnectionReset", id="reset-in-a-chunk"),
        pytest.param(break_off(b"SSH-2.0-OpenSSH\r\n", Exchange.hang), r"not valid HTTP/1\.1", id="not-http"),
    ],
)
@pytest.mark.parametrize("warm", [False, True], ids=["new-connection", "kept-connection"])
def test_half_a_response_is_none(behave, problem, warm, build_wire):
    """The caller gets a TransportError at once, and the next call works on a new connection."""
    wire = build_wire(behave)
    if warm:
        wire.warm()
    with pytest.raises(TransportError, match=problem) as caught:
        wire.send()
    assert type(caught.value) is TransportError
    # A kept connection that ends without a byte is replaced once: then the new one must end, too.
    assert len(wire.server.received) == 1 + warm + (warm and problem.startswith("from"))
    assert wire.warm().status == 200


@pytest.mark.parametrize("die", [Exchange.close, Exchange.reset, Exchange.half_close], ids=lambda die: die.__name__)
def test_kept_connection_that_died_idle_is_replaced_once(die, build_wire):
    """If the server closed the idle connection, the transport sends the request once more."""
    wire = build_wire(lambda exchange: die(exchange) if exchange.turn == 2 else answer(exchange))
    wire.send()
    assert wire.send().status == 200
    assert (wire.server.connections, len(wire.server.received)) == (2, 3)


def test_second_try_takes_a_new_connection(build_wire):
    """After a dead idle connection, the transport opens a new connection and tries no other idle connection."""
    dead = threading.Event()
    wire = build_wire(lambda exchange: exchange.close() if dead.is_set() and exchange.turn > 1 else answer(exchange))
    exchange = wire.start()
    wire.warm()
    receive(exchange)
    dead.set()
    assert wire.send().status == 200
    assert wire.server.connections == 3


def test_closing_while_another_thread_sends(build_wire, monkeypatch):
    """close() closes the idle connections, and doesn't affect a call in another thread."""
    wire = build_wire(answer)
    write = wire.transport._write
    monkeypatch.setattr(wire.transport, "_write", lambda request: (wire.transport.close(), write(request))[1])
    assert wire.send().status == 200
    assert wire.server.connections == 1


def test_restart_of_the_server_costs_no_call(build_wire):
    """A restart closes all idle connections, but no later call fails."""
    wire = build_wire(answer)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: wire.send(), range(8)))
        wire.server.drop_connections()
        assert {response.status for response in pool.map(lambda _: wire.send(), range(8))} == {200}


def test_refused_connection_is_a_transport_error():
    """The cause is the operating system's error, without a cause of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TransportError, match=r"from MoEngage \(ConnectionRefusedError\)") as caught:
        RequestsTransport(f"http://127.0.0.1:{port}").send(FETCH, deadline=Deadline(LONG))
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert caught.value.retryable


@pytest.mark.parametrize("host", ["moengage.invalid", "a" * 64 + ".invalid"], ids=["unknown", "impossible"])
def test_name_that_does_not_exist_is_a_transport_error(host):
    """A failed DNS lookup raises a TransportError."""
    with pytest.raises(TransportError, match="no whole response from MoEngage"):
        RequestsTransport(f"https://{host}").send(FETCH, deadline=Deadline(LONG))


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_response_above_the_limit_is_refused(encoding, build_wire):
    """One byte more than the limit, decompressed, is an InvalidResponseError."""
    body = b" " * (MAX_BYTES + 1)
    headers = {"Content-Encoding": encoding}
    wire = build_wire(lambda exchange: exchange.reply(gzip.compress(body) if encoding else body, headers=headers))
    with pytest.raises(InvalidResponseError, match=f"larger than {MAX_BYTES} bytes"):
        wire.send()


# -- secrets


@pytest.mark.parametrize("send", ["send", "start"])
def test_request_with_a_line_break_is_not_sent(send, build_wire):
    """The error report shows no secret, and no connection is lost."""
    wire = build_wire(answer)
    wire.warm()
    request = Request("POST", "/x", headers={"Authorization": SECRET, "X": "a\r\nb"}, body=b"Wanda")
    with pytest.raises(ValueError, match="line break") as caught:
        getattr(wire, send)(request)
    shown = describe_report(caught.value)
    assert not [secret for secret in (SECRET, "Wanda") if secret in shown]
    assert wire.is_kept()


def test_log_shows_no_secret_and_no_visitor(caplog, build_wire):
    """At level DEBUG, no module logs a header or a body."""
    caplog.set_level(logging.DEBUG)
    build_wire(lambda exchange: exchange.reply(b"Wanda")).send()
    assert not [secret for secret in (SECRET, "Wanda") if secret in caplog.text]


def test_abort_shows_no_secret_and_no_visitor(build_wire):
    """An abort during a call shows no secret in the frames, and closes the connection."""

    def abort(*_args: object) -> None:
        raise SystemExit(1)

    wire = build_wire(break_off(build_head("200 OK", {"Content-Length": "99"}) + b"Wanda", Exchange.hang))
    before = signal.signal(signal.SIGALRM, abort)
    signal.setitimer(signal.ITIMER_REAL, SOON)
    with pytest.raises(SystemExit) as caught:
        wire.send()
    signal.signal(signal.SIGALRM, before)
    shown = describe_report(caught.value)
    assert "request = Request(method='POST'" in shown
    assert not [secret for secret in (SECRET, "Wanda") if secret in shown]
    assert not wire.is_kept()


def test_reprs_show_the_base_url_alone():
    """The reprs of a transport, a request and a response contain no secret."""
    transport = RequestsTransport("http://LOCALHOST:8000/v1/", proxies={"http": "http://me:pw@127.0.0.1:1"})
    assert repr(transport) == "<RequestsTransport http://localhost:8000/v1>"
    assert repr(FETCH) == "Request(method='POST', path='/experiences/fetch', query='')"
    assert repr(Response(200, {"set-cookie": "x"}, b"Wanda")) == "Response(status=200)"

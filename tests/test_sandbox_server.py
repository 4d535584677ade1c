"""The sandbox over HTTP: connections, bodies, control paths and faults on the line."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from django_moe_personalize.moengage.messages import Request
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.faults import Faults
from django_moe_personalize.sandbox.server import MAX_READ, SandboxServer, build_server
from tests import contract_schema
from tests.contract_schema import assert_valid
from tests.sandbox_ways import (
    EVENTS,
    FETCH,
    METADATA,
    HttpWay,
    action,
    batch,
    build_engine,
    credentials,
    element,
    get_metadata,
    post,
    serving,
)

EXPERIENCE = {"key": "plain", "name": "Plain", "payload": {"T": "x" * 200}}


@pytest.fixture
def engine() -> Engine:
    """An engine of one experience."""
    return build_engine(EXPERIENCE)


@pytest.fixture
def server(engine: Engine) -> Iterator[SandboxServer]:
    """Its server, without faults."""
    with serving(engine) as running:
        yield running


@pytest.fixture
def way(server: SandboxServer) -> Iterator[HttpWay]:
    """A keep-alive connection to the API."""
    made = HttpWay(server)
    yield made
    made.connection.close()


@pytest.fixture
def control(server: SandboxServer) -> Iterator[HttpWay]:
    """A keep-alive connection to the control paths."""
    made = HttpWay(server, base="")
    yield made
    made.connection.close()


def exchange(server: SandboxServer, *parts: bytes, end: bool = False) -> bytes:
    """Send bytes as they are and return all that comes until the server closes."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as line:
        for part in parts:
            line.sendall(part)
        if end:
            line.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := line.recv(65_536):
            received += chunk
    return received


def head(method: str = "POST", path: str = FETCH, *lines: str) -> bytes:
    """Return the head of a request with credentials."""
    headers = [f"{name}: {value}" for name, value in credentials().items()]
    return "\r\n".join([f"{method} /v1{path} HTTP/1.1", "Host: localhost", *headers, *lines, "", ""]).encode()


def assert_refused(received: bytes, status: int) -> None:
    """Assert one answer with the vendor's envelope, after which the server closed."""
    start, _, body = received.partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 %d " % status), received
    assert b"connection: close" in start
    assert_valid(json.loads(body), contract_schema.ERROR)


def test_the_url_is_the_base_of_the_api(server: SandboxServer) -> None:
    """Port 0 takes a free one, and the url says which."""
    assert server.url == f"http://127.0.0.1:{server.server_port}/v1"


def test_ipv6_is_served(engine: Engine) -> None:
    """An IPv6 address is bound, and written in brackets."""
    with build_server(engine, "::1") as server:
        assert server.url == f"http://[::1]:{server.server_port}/v1"


def test_a_connection_is_kept_alive(way: HttpWay) -> None:
    """Errors that leave the line in order do not close it."""
    way(get_metadata())
    line = way.connection.sock

    for request in (get_metadata(), post(FETCH, b"{"), Request("GET", "/nowhere"), post(FETCH, {})):
        way(request)

    assert line is way.connection.sock is not None


def test_head_has_no_body(server: SandboxServer) -> None:
    """HEAD is no method of the API, and its 405 is a head alone."""
    received = exchange(server, head("HEAD", METADATA, "Connection: close"))

    assert received.startswith(b"HTTP/1.1 405 ")
    assert received.endswith(b"\r\n\r\n")


def test_the_server_does_not_name_python(way: HttpWay) -> None:
    """The Server header is the sandbox's own."""
    assert way(get_metadata()).headers["server"] == "moe-sandbox"


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/experiences/metadata", "/experiences/metadata", "http://x/v1/"])
def test_paths_outside_the_base_are_not_found(control: HttpWay, path: str) -> None:
    """Nothing answers outside the two prefixes."""
    response = control(Request("GET", path, headers=credentials()))

    assert response.status == 404
    assert_valid(json.loads(response.body), contract_schema.ERROR)


def test_a_chunked_body_is_refused_with_411(server: SandboxServer) -> None:
    """The answer arrives although the client is still sending."""
    chunks = b"2\r\n{}\r\n" * 1_000_000 + b"0\r\n\r\n"

    assert_refused(exchange(server, head("POST", FETCH, "Transfer-Encoding: chunked"), chunks), 411)


@pytest.mark.parametrize("lengths", [["-1"], ["x"], ["+2"], ["²"], ["9" * 4999], ["2", "3"], ["1, 2"]])
def test_a_bad_content_length_is_refused_with_400(server: SandboxServer, lengths: list[str]) -> None:
    """Nobody can tell where the next request would begin: the line is closed."""
    sent = head("POST", FETCH, *(f"Content-Length: {length}" for length in lengths))

    assert_refused(exchange(server, sent, end=True), 400)


def test_a_repeated_content_length_is_taken_once(server: SandboxServer) -> None:
    """Two equal ones are one."""
    sent = head("POST", FETCH, "Content-Length: 2", "Content-Length: 2", "Connection: close")

    assert exchange(server, sent, b"{}").startswith(b"HTTP/1.1 200 ")


def test_a_body_cut_short_is_refused(server: SandboxServer, engine: Engine) -> None:
    """What ended before its length is never handled."""
    body = json.dumps(batch(element())).encode()

    received = exchange(server, head("POST", EVENTS, f"Content-Length: {len(body) + 1}"), body, end=True)

    assert_refused(received, 400)
    assert engine.ledger.entries() == []


def test_no_content_length_is_an_empty_body(server: SandboxServer) -> None:
    """As the contract says of an empty body."""
    assert b'"Malformed JSON"' in exchange(server, head("POST", FETCH, "Connection: close"))


def test_a_huge_body_is_answered_and_the_line_closed(server: SandboxServer) -> None:
    """Past what is read at all the answer still arrives: 413."""
    body = b" " * (8 * MAX_READ)

    assert_refused(exchange(server, head("POST", FETCH, f"Content-Length: {len(body)}"), body), 413)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET / HTTP/x\r\n\r\n", 400),
        (b"POST /v1/experiences/fetch\r\n\r\n", 400),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"\x00\xff\xfe\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_gets_the_envelope(server: SandboxServer, sent: bytes, status: int) -> None:
    """Never a traceback, never an HTML page."""
    assert_refused(exchange(server, sent, end=True), status)


def test_a_closing_line_is_listened_to_for_a_moment_only(
    server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused client that neither sends nor closes does not hold a thread."""
    monkeypatch.setattr("django_moe_personalize.sandbox.server.LINGER", 0.05)
    # Each by itself, not their number: idle threads of other tests leave when they like.
    before = set(threading.enumerate())

    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as line:
        line.sendall(b"NONSENSE\r\n\r\n")
        while line.recv(65_536):
            pass
        end = time.monotonic() + 10
        while set(threading.enumerate()) - before and time.monotonic() < end:
            time.sleep(0.01)

        assert set(threading.enumerate()) - before == set()


def test_a_silent_client_is_let_go(server: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that never comes ends with the connection, after the time-out."""
    monkeypatch.setattr(server.RequestHandlerClass, "timeout", 0.05)

    assert exchange(server, head("POST", FETCH, "Content-Length: 10"), b"{}") == b""


def test_a_client_that_goes_away_is_no_error(server: SandboxServer, caplog: pytest.LogCaptureFixture) -> None:
    """A connection broken by the client is not worth a line."""
    with caplog.at_level(logging.INFO, "django_moe_personalize"):
        try:
            raise ConnectionResetError
        except ConnectionResetError:
            server.handle_error(None, None)
        assert caplog.records == []
        try:
            raise RuntimeError("defect")
        except RuntimeError:
            server.handle_error(None, None)
    assert "defect" in caplog.text


def test_requests_are_logged_at_debug_only(way: HttpWay, caplog: pytest.LogCaptureFixture) -> None:
    """A line a request, without its body or headers."""
    with caplog.at_level(logging.DEBUG, "django_moe_personalize"):
        way(get_metadata())

    assert "GET /v1/experiences/metadata" in caplog.text
    assert caplog.records[0].levelno == logging.DEBUG


def test_an_unknown_attribute_of_a_handler_is_an_error(server: SandboxServer) -> None:
    """Only methods of HTTP are made up."""
    handler = server.RequestHandlerClass.__new__(server.RequestHandlerClass)

    assert callable(handler.do_ANYTHING)
    with pytest.raises(AttributeError, match="anything"):
        handler.anything  # noqa: B018


# -- faults on the line


def test_latency_and_drip_take_their_time(engine: Engine) -> None:
    """The head of the answer comes after the latency, its whole body after the drip."""
    with serving(engine, faults=Faults(latency=0.1, drip=0.1)) as server:
        way = HttpWay(server)
        began = time.monotonic()
        way.connection.request("GET", "/v1" + METADATA, headers=credentials())
        answer = way.connection.getresponse()
        headed = time.monotonic()
        body = answer.read()
        ended = time.monotonic()
        way.connection.close()

    assert json.loads(body)["metadata"]["count"] == 1
    assert headed - began >= 0.1
    assert ended - headed >= 0.05


def test_a_reset_breaks_the_connection(engine: Engine) -> None:
    """The client sees an RST, not an orderly end; the event was taken."""
    with serving(engine, faults=Faults(reset=1)) as server:
        way = HttpWay(server)
        with pytest.raises(ConnectionResetError):
            way(post(EVENTS, batch(element())))
        way.connection.close()

    assert len(engine.ledger.entries()) == 1


def test_a_malformed_body_keeps_the_line_in_order(engine: Engine) -> None:
    """Its length is right, its JSON is not."""
    with serving(engine, faults=Faults(malformed=1)) as server:
        way = HttpWay(server)
        for _ in range(2):
            with pytest.raises(json.JSONDecodeError):
                json.loads(way(get_metadata()).body)
        way.connection.close()


def test_many_connections_at_once_count_right(engine: Engine, server: SandboxServer) -> None:
    """Sixteen clients that send the same events leave each once."""
    sent = [post(EVENTS, batch(element(action()))) for _ in range(10)]

    def report() -> None:
        way = HttpWay(server)
        for request in sent:
            assert way(request).status == 200
        way.connection.close()

    threads = [threading.Thread(target=report) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(engine.ledger.entries()) == 10


def test_expect_100_continue_is_kept(server: SandboxServer) -> None:
    """A client that waits for leave to send its body gets it."""
    line: Any = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    line.putrequest("POST", "/v1" + FETCH)
    for name, value in {**credentials(), "Content-Length": "2", "Expect": "100-continue"}.items():
        line.putheader(name, value)
    line.endheaders()
    line.send(b"{}")

    assert line.getresponse().status == 200
    line.close()

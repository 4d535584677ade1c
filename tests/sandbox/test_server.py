"""The sandbox's HTTP server: connections, bodies and faults on the wire."""

import json
import logging
import socket
import threading
import time

import pytest

from django_moe_personalize.moengage.http1 import Request
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.faults import Faults
from django_moe_personalize.sandbox.server import MAX_READ, SandboxServer
from tests.processes import together
from tests.sandbox import ways
from tests.sandbox.schema import ERROR, assert_valid
from tests.sandbox.ways import (
    EVENTS,
    FETCH,
    METADATA,
    HttpWay,
    action,
    batch,
    credentials,
    element,
    get_metadata,
    post,
    read,
    serving,
)


def exchange(server: SandboxServer, *parts: bytes, end: bool = False) -> bytes:
    """Send bytes as they are and return all bytes until the server closes the connection."""
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
    """Assert one response with the vendor's envelope that announces the end of the connection."""
    start, _, body = received.partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 %d " % status), received
    assert b"connection: close" in start
    assert_valid(json.loads(body), ERROR)


@pytest.mark.parametrize(("host", "name"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_the_url_is_the_base_of_the_api(engine: Engine, host: str, name: str) -> None:
    """Port 0 binds a free port, which the URL names; an IPv6 address is in brackets."""
    with SandboxServer(engine, host) as server:
        assert server.url == f"http://{name}:{server.server_port}/v1"


def test_a_connection_is_kept_alive(api: HttpWay) -> None:
    """An error that doesn't break the connection doesn't close it. The Server header doesn't name Python."""
    api(get_metadata())
    line = api.connection.sock
    for request in (get_metadata(), post(FETCH, b"{"), Request("GET", "/nowhere"), post(FETCH, {})):
        assert api(request).headers["server"] == "moe-sandbox"
    assert line is api.connection.sock is not None


def test_the_response_to_head_has_no_body(server: SandboxServer) -> None:
    """The API has no HEAD; its 405 comes without a body."""
    received = exchange(server, head("HEAD", METADATA, "Connection: close"))
    assert received.startswith(b"HTTP/1.1 405 ")
    assert received.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/experiences/metadata", "/experiences/metadata", "http://x/v1/"])
def test_paths_outside_the_base_are_not_found(control: HttpWay, path: str) -> None:
    """Only the two prefixes have paths."""
    ways.assert_refused(control(Request("GET", path, headers=credentials())), 404, "Not Found")


def test_a_chunked_body_is_refused_with_411(server: SandboxServer) -> None:
    """The response arrives while the client is still sending."""
    chunks = b"2\r\n{}\r\n" * 1_000_000 + b"0\r\n\r\n"
    assert_refused(exchange(server, head("POST", FETCH, "Transfer-Encoding: chunked"), chunks), 411)


@pytest.mark.parametrize("lengths", [["-1"], ["x"], ["+2"], ["²"], ["9" * 4999], ["2", "3"], ["1, 2"]])
def test_a_bad_content_length_is_refused_with_400(server: SandboxServer, lengths: list[str]) -> None:
    """The server closes the connection, since it can't know where the next request begins."""
    sent = head("POST", FETCH, *(f"Content-Length: {length}" for length in lengths))
    assert_refused(exchange(server, sent, end=True), 400)


def test_a_repeated_content_length_is_accepted(server: SandboxServer) -> None:
    """Two equal headers count as one."""
    sent = head("POST", FETCH, "Content-Length: 2", "Content-Length: 2", "Connection: close")
    assert exchange(server, sent, b"{}").startswith(b"HTTP/1.1 200 ")


def test_a_body_shorter_than_its_content_length_is_refused(server: SandboxServer, engine: Engine) -> None:
    """The sandbox doesn't handle an incomplete body."""
    body = json.dumps(batch(element())).encode()
    received = exchange(server, head("POST", EVENTS, f"Content-Length: {len(body) + 1}"), body, end=True)
    assert_refused(received, 400)
    assert engine.ledger.entries() == []


def test_without_content_length_the_body_is_empty(server: SandboxServer) -> None:
    """The contract says how to answer an empty body."""
    assert b'"Malformed JSON"' in exchange(server, head("POST", FETCH, "Connection: close"))


def test_a_huge_body_gets_a_response_and_the_connection_closes(server: SandboxServer) -> None:
    """The 413 arrives although the server doesn't read the whole body."""
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
def test_an_invalid_request_gets_the_envelope(server: SandboxServer, sent: bytes, status: int) -> None:
    """The response is never a traceback or an HTML page."""
    assert_refused(exchange(server, sent, end=True), status)


def test_a_refused_client_does_not_hold_a_thread(server: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server stops reading soon if the client neither sends nor closes the connection."""
    monkeypatch.setattr("django_moe_personalize.sandbox.server.LINGER", 0.05)
    # Compare the threads, not their number: idle threads of other tests may end at any time.
    before = set(threading.enumerate())
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as line:
        line.sendall(b"NONSENSE\r\n\r\n")
        while line.recv(65_536):
            pass
        end = time.monotonic() + 10
        while set(threading.enumerate()) - before and time.monotonic() < end:
            time.sleep(0.01)
        assert set(threading.enumerate()) - before == set()


def test_a_silent_client_is_disconnected(server: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server closes the connection after the timeout if the rest of the body doesn't come."""
    monkeypatch.setattr(server.RequestHandlerClass, "timeout", 0.05)
    assert exchange(server, head("POST", FETCH, "Content-Length: 10"), b"{}") == b""


def test_only_unexpected_errors_are_logged(server: SandboxServer, caplog: pytest.LogCaptureFixture) -> None:
    """A client that disconnects is not an error."""
    caplog.set_level(logging.INFO, "django_moe_personalize")
    for error in (ConnectionResetError("left"), RuntimeError("defect")):
        try:
            raise error
        except (ConnectionResetError, RuntimeError):
            server.handle_error(None, None)
    assert "defect" in caplog.text
    assert len(caplog.records) == 1


def test_requests_are_logged_at_debug_only(api: HttpWay, caplog: pytest.LogCaptureFixture) -> None:
    """The log has one line for each request, without its body and headers."""
    with caplog.at_level(logging.DEBUG, "django_moe_personalize"):
        api(get_metadata())
    assert "GET /v1/experiences/metadata" in caplog.text
    assert caplog.records[0].levelno == logging.DEBUG


def test_an_unknown_attribute_of_a_handler_is_an_error(server: SandboxServer) -> None:
    """The handler invents only attributes for HTTP methods."""
    handler = server.RequestHandlerClass.__new__(server.RequestHandlerClass)
    assert callable(handler.do_ANYTHING)
    with pytest.raises(AttributeError, match="anything"):
        handler.anything  # noqa: B018


def test_expect_100_continue_is_supported(api: HttpWay) -> None:
    """A client that waits for permission to send its body gets it."""
    line = api.connection
    line.putrequest("POST", "/v1" + FETCH)
    for name, value in {**credentials(), "Content-Length": "2", "Expect": "100-continue"}.items():
        line.putheader(name, value)
    line.endheaders()
    line.send(b"{}")
    assert line.getresponse().status == 200


def test_concurrent_connections_count_each_event_once(engine: Engine, server: SandboxServer) -> None:
    """Sixteen clients send the same events; the ledger has each event once."""
    sent = [post(EVENTS, batch(element(action()))) for _ in range(10)]

    def report(index: int) -> None:
        with HttpWay(server) as way:
            for request in sent:
                way(request)

    together(16, report)
    assert len(engine.ledger.entries()) == 10


# -- faults on the wire


def test_latency_and_drip_take_their_time(engine: Engine) -> None:
    """The head of the response comes after the latency, its complete body after the drip."""
    with serving(engine, faults=Faults(latency=0.1, drip=0.1)) as server, HttpWay(server) as way:
        began = time.monotonic()
        way.connection.request("GET", "/v1" + METADATA, headers=credentials())
        answer = way.connection.getresponse()
        headed = time.monotonic()
        body = answer.read()
        ended = time.monotonic()
    assert json.loads(body)["metadata"]["count"] == 1
    assert headed - began >= 0.1
    assert ended - headed >= 0.05


def test_a_reset_breaks_the_connection(engine: Engine) -> None:
    """The client gets an RST instead of a response; the sandbox accepted the event."""
    with serving(engine, faults=Faults(reset=1)) as server, HttpWay(server) as way, pytest.raises(ConnectionResetError):
        way(post(EVENTS, batch(element())))
    assert len(engine.ledger.entries()) == 1


def test_a_malformed_body_does_not_break_the_connection(engine: Engine) -> None:
    """The length is correct, the JSON is not."""
    with serving(engine, faults=Faults(malformed=1)) as server, HttpWay(server) as way:
        for _ in range(2):
            with pytest.raises(json.JSONDecodeError):
                read(way(get_metadata()))

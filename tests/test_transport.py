"""RequestsTransport against a real server that misbehaves: on time, whole, and without a secret in its errors."""

from __future__ import annotations

import gzip
import logging
import re
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme

from django_moe_personalize.exceptions import DeadlineExceeded, InvalidResponseError, TransportError
from django_moe_personalize.moengage.answers import MAX_BYTES
from django_moe_personalize.moengage.messages import Request, Response
from django_moe_personalize.moengage.pools import TimedReader
from django_moe_personalize.moengage.transport import RequestsTransport, validate_base_url
from django_moe_personalize.resilience import Deadline
from tests.error_reports import describe_report
from tests.loopback import Exchange, Loopback, build_head

REPOSITORY = Path(__file__).parent.parent
SECRET = "Basic czNjcmV0"
FETCH = Request(
    "POST",
    "/experiences/fetch",
    headers={"Authorization": SECRET, "MOE-APPKEY": "WORK", "Content-Type": "application/json"},
    body=b'{"identifiers": {"customer_id": "Wanda"}}',
)
SOON = 0.25
"""Seconds of a deadline that is meant to pass."""

MARGIN = 0.75
"""Seconds by which a busy machine may be late."""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "requests_ca_bundle", "curl_ca_bundle", "netrc"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., Loopback]]:
    """Start servers that stop with the test."""
    servers: list[Loopback] = []

    def start(behave: Callable[[Exchange], None], **options: object) -> Loopback:
        servers.append(Loopback(behave, **options).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()


@pytest.fixture
def connect() -> Iterator[Callable[..., RequestsTransport]]:
    """Make transports that close with the test."""
    transports: list[RequestsTransport] = []

    def make(target: Loopback | str, **options: object) -> RequestsTransport:
        transports.append(RequestsTransport(target if isinstance(target, str) else target.url, **options))
        return transports[-1]

    yield make
    for transport in transports:
        transport.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority nobody trusts unless told to."""
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority) -> ssl.SSLContext:
    """The server side of TLS for 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def ca_file(authority, tmp_path) -> Path:
    """The authority's certificate in a file of its own."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def send(transport: RequestsTransport, request: Request = FETCH, *, seconds: float = 10.0) -> Response:
    """Send with a deadline from now."""
    return transport.send(request, deadline=Deadline(seconds))


def answer(exchange: Exchange) -> None:
    """Say who is served, as JSON."""
    exchange.reply(b'{"experiences": {}}')


def find_closed_port() -> int:
    """Return a port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def break_off(head: dict[str, str], body: bytes, end: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
    """Return a behaviour: send a head and some body, then end the connection."""
    return lambda exchange: (exchange.send(build_head("200 OK", head) + body), end(exchange))


def say(data: bytes, end: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
    """Return a behaviour: send bytes as they are, then end the connection."""
    return lambda exchange: (exchange.send(data), end(exchange))


# -- there and back


def test_a_request_arrives_as_it_was_given(serve, connect):
    """Method, path below the base URL, query, headers and body are those of the Request."""
    server = serve(answer)
    transport = connect(server)
    response = send(transport)
    assert (response.status, response.body) == (200, b'{"experiences": {}}')
    assert response.headers == {"content-length": "19", "content-type": "application/json"}
    send(transport, Request("GET", "/experiences/metadata", query="status=Active%2CPaused", headers={"X-A": "b"}))
    post, get = server.received
    assert (post.method, post.target, post.body) == ("POST", "/v1/experiences/fetch", FETCH.body)
    assert post.headers["authorization"] == SECRET
    assert post.headers["accept-encoding"] == "gzip"
    assert post.headers["content-length"] == str(len(FETCH.body))
    assert (get.method, get.target, get.body) == ("GET", "/v1/experiences/metadata?status=Active%2CPaused", b"")
    assert get.headers["x-a"] == "b"


@pytest.mark.parametrize("status", ["204 No Content", "301 Moved Permanently", "401 Unauthorized", "503 Busy"])
def test_any_status_is_an_answer(status, serve, connect):
    """The transport judges no status, and keeps the connection."""
    headers = {} if status.startswith("204") else {"Content-Length": "0"}
    server = serve(lambda exchange: exchange.send(build_head(status, headers | {"Retry-After": "5"})))
    transport = connect(server)
    for _ in range(2):
        response = send(transport)
        assert (response.status, response.body) == (int(status[:3]), b"")
        assert response.headers["retry-after"] == "5"
    assert server.connections == 1


def test_a_redirect_is_not_followed(serve, connect):
    """Credentials and visitors go nowhere but to the base URL."""
    other = serve(answer)
    server = serve(lambda exchange: exchange.reply(status="307 Temporary Redirect", headers={"Location": other.url}))
    assert send(connect(server)).status == 307
    assert other.received == []


@pytest.mark.parametrize(
    ("head", "body"),
    [
        pytest.param({"Transfer-Encoding": "chunked"}, b"3\r\n{} \r\n1\r\n \r\n0\r\n\r\n", id="chunked"),
        pytest.param({"Connection": "close"}, b"{}  ", id="until-the-end"),
        pytest.param({"Content-Length": "4", "Content-Encoding": "identity"}, b"{}  ", id="identity"),
    ],
)
def test_each_way_to_delimit_a_body_is_read(head, body, serve, connect):
    """Length, chunks or the end of the connection."""

    def behave(exchange: Exchange) -> None:
        exchange.send(build_head("200 OK", head) + body)
        if "Connection" in head:
            exchange.close()

    assert send(connect(serve(behave))).body == b"{}  "


def test_html_with_200_is_an_answer(serve, connect):
    """What is in the body is the reader's affair."""
    server = serve(lambda exchange: exchange.reply(b"<html>", headers={"Content-Type": "text/html"}))
    assert send(connect(server)).body == b"<html>"


def test_a_connection_is_kept(serve, connect):
    """Calls one after another share a connection."""
    server = serve(answer)
    transport = connect(server)
    for _ in range(5):
        send(transport)
    assert (server.connections, len(server.received)) == (1, 5)


def test_close_closes_and_the_transport_may_be_used_again(serve, connect):
    """The next call after close() makes a new connection; closing twice is fine."""
    server = serve(answer)
    transport = connect(server)
    transport.close()
    send(transport)
    transport.close()
    transport.close()
    assert send(transport).status == 200
    assert server.connections == 2


def test_threads_get_their_own_answers(serve, connect):
    """Many threads on one transport: each reads the answer to its own request, also while others close it."""
    server = serve(lambda exchange: exchange.reply(exchange.received.body))
    transport = connect(server, pool_maxsize=4)

    def ask(number: int) -> bool:
        if number % 50 == 0:
            transport.close()
        body = f"visitor {number}".encode() * 20
        return send(transport, Request("POST", "/echo", body=body)).body == body

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(400)))


def test_cookies_are_not_kept(serve, connect):
    """One visitor's Set-Cookie does not travel with another's request."""
    server = serve(lambda exchange: exchange.reply(headers={"Set-Cookie": "who=wanda; Path=/"}))
    transport = connect(server)
    send(transport)
    send(transport)
    assert "cookie" not in server.received[1].headers


# -- on time


@pytest.mark.parametrize(
    "behave",
    [
        pytest.param(Exchange.hang, id="never-answers"),
        pytest.param(lambda exchange: exchange.drip(b"HTTP/1.1 200 OK\r\n" * 99, every=0.02), id="drips-headers"),
        pytest.param(lambda exchange: exchange.drip(b"HTTP/1.1 100 Go on\r\n\r\n" * 99, every=0.01), id="drips-100s"),
        pytest.param(
            lambda exchange: exchange.drip(build_head("200 OK", {"Content-Length": "999"}) + b" " * 999, every=0.005),
            id="drips-body",
        ),
        pytest.param(break_off({"Content-Length": "9"}, b"", Exchange.hang), id="stops-before-the-body"),
        pytest.param(
            lambda exchange: (
                exchange.send(build_head("200 OK", {"Transfer-Encoding": "chunked"})),
                exchange.drip(b"1\r\n \r\n" * 999, every=0.01),
            ),
            id="drips-chunks",
        ),
    ],
)
@pytest.mark.parametrize("warm", [False, True], ids=["new-connection", "kept-connection"])
def test_no_answer_outlives_the_deadline(behave, warm, serve, connect):
    """Headers, body and silence end at the deadline, not at the last byte."""
    server = serve(lambda exchange: answer(exchange) if warm and exchange.turn == 1 else behave(exchange))
    transport = connect(server)
    if warm:
        send(transport)
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="did not answer in time"):
        send(transport, seconds=SOON)
    assert SOON <= time.monotonic() - start < SOON + MARGIN


def test_a_server_that_never_accepts_does_not_outlive_the_deadline(connect):
    """Connecting counts too: a full backlog answers no SYN."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            send(connect(f"http://127.0.0.1:{listener.getsockname()[1]}"), seconds=SOON)
        assert SOON <= time.monotonic() - start < SOON + MARGIN
        for one in waiting:
            one.close()


def test_a_moment_that_passed_between_two_reads_ends_the_answer():
    """Bytes that are there already are not read once the time is over."""
    left, right = socket.socketpair()
    with left, right:
        right.sendall(b"late")
        left.settimeout(1e-9)
        with TimedReader(left) as reader, pytest.raises(TimeoutError, match="took too long"):
            reader.read(4)


def test_a_tls_handshake_does_not_outlive_the_deadline(connect):
    """A server that accepts and says nothing is given up in time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            send(connect(f"https://127.0.0.1:{listener.getsockname()[1]}"), seconds=SOON)
        assert SOON <= time.monotonic() - start < SOON + MARGIN


def test_without_a_deadline_the_transports_own_timeout_holds(serve, connect):
    """No call waits for ever."""
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        connect(serve(Exchange.hang), timeout=SOON).send(FETCH, deadline=Deadline(None))
    assert SOON <= time.monotonic() - start < SOON + MARGIN


def test_a_past_deadline_asks_nothing(serve, connect):
    """Without time left there is no request."""
    server = serve(answer)
    with pytest.raises(DeadlineExceeded, match="no time was left"):
        send(connect(server), seconds=0.0)
    assert server.connections == 0


def test_an_answer_that_came_in_time_leaves_the_connection_usable(serve, connect):
    """The little that was left of one deadline is not the timeout of the next call."""
    server = serve(lambda exchange: (time.sleep(SOON / 2) if exchange.turn == 2 else None, answer(exchange)))
    transport = connect(server)
    send(transport, seconds=SOON / 4)
    assert send(transport).status == 200
    assert server.connections == 1


# -- broken


@pytest.mark.parametrize(
    ("behave", "name"),
    [
        pytest.param(Exchange.reset, "ConnectionResetError", id="reset"),
        pytest.param(Exchange.close, "RemoteDisconnected", id="closed"),
        pytest.param(Exchange.half_close, "RemoteDisconnected", id="half-closed"),
        pytest.param(say(b"HTTP/1.1 2", Exchange.reset), "", id="reset-in-the-status"),
        pytest.param(say(b"SSH-2.0-OpenSSH\r\n", Exchange.close), "", id="not-http"),
        pytest.param(say(b"HTTP/1.1 200 OK\r\n" + b"A" * 70_000, Exchange.close), "", id="endless-header"),
        pytest.param(break_off({"Content-Length": "9"}, b"{}", Exchange.close), "", id="truncated"),
        pytest.param(break_off({"Content-Length": "9"}, b"{}", Exchange.reset), "", id="reset-in-the-body"),
        pytest.param(break_off({"Transfer-Encoding": "chunked"}, b"9\r\n{}", Exchange.close), "", id="truncated-chunk"),
        pytest.param(
            lambda exchange: exchange.send(build_head("200 OK", {"Transfer-Encoding": "chunked"}) + b"xyz\r\n"),
            "",
            id="no-chunk-size",
        ),
    ],
)
@pytest.mark.parametrize("warm", [False, True], ids=["new-connection", "kept-connection"])
def test_half_an_answer_is_none(behave, name, warm, serve, connect):
    """What breaks off is a TransportError, promptly, and the next call works on a new connection."""
    first = 2 if warm else 1
    # A kept connection that ends without a byte is tried again once: then that one must break too.
    last = first + 1 if warm and name else first
    server = serve(lambda exchange: (behave if first <= len(server.received) <= last else answer)(exchange))
    transport = connect(server)
    if warm:
        send(transport)
    with pytest.raises(TransportError, match=f"no whole answer from MoEngage .{name}") as caught:
        send(transport)
    assert not isinstance(caught.value, DeadlineExceeded)
    assert len(server.received) == last
    assert send(transport).status == 200


@pytest.mark.parametrize("die", [Exchange.close, Exchange.reset, Exchange.half_close], ids=lambda die: die.__name__)
def test_a_kept_connection_that_died_idle_is_replaced_once(die, serve, connect):
    """The server gave up the connection as the request was on its way: the request is sent again, once."""
    server = serve(lambda exchange: die(exchange) if exchange.turn == 2 else answer(exchange))
    transport = connect(server)
    send(transport)
    assert send(transport).status == 200
    assert (server.connections, len(server.received)) == (2, 3)


def test_the_second_try_takes_a_new_connection(serve, connect):
    """When one idle connection is dead the others likely are: none of them is tried."""
    both = threading.Barrier(2)

    def behave(exchange: Exchange) -> None:
        number = len(server.received)
        if number > 3 and exchange.turn > 1:
            exchange.close()
            return
        if number in (2, 3):
            both.wait(10)
        answer(exchange)

    server = serve(behave)
    transport = connect(server)
    send(transport)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: send(transport), range(2)))
    assert send(transport).status == 200
    assert server.connections == 3


def test_closing_as_another_thread_sends_costs_no_call(serve, connect):
    """Closing forgets connections; what is under way ends as it would have."""
    server = serve(answer)
    transport = connect(server)

    def close_once(frame: object, _event: str, _argument: object) -> None:
        if frame.f_code.co_name == "urlopen":
            sys.setprofile(None)
            transport.close()

    sys.setprofile(close_once)
    assert send(transport).status == 200
    assert sys.getprofile() is None
    assert server.connections == 1


def test_a_restart_of_the_server_costs_no_call(serve, connect):
    """Every idle connection is dead at once: none of the next calls fails."""
    server = serve(answer)
    transport = connect(server)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: send(transport), range(8)))
        server.drop_connections()
        assert {response.status for response in pool.map(lambda _: send(transport), range(8))} == {200}


def test_a_refused_connection_is_a_transport_error(connect):
    """The system's own words are the cause; nothing else is chained."""
    with pytest.raises(TransportError, match=r"ConnectionRefusedError") as caught:
        send(connect(f"http://127.0.0.1:{find_closed_port()}"))
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert caught.value.retryable


def test_a_name_that_does_not_exist_is_a_transport_error(connect):
    """A failed lookup is no answer."""
    with pytest.raises(TransportError):
        send(connect("https://moengage.invalid"))


# -- size and compression


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_an_answer_of_exactly_the_limit_is_read(chunked, serve, connect):
    """1 MiB is allowed; the connection is kept."""
    body = b" " * MAX_BYTES
    head = {"Content-Length": str(MAX_BYTES)}
    if chunked:
        head, body = {"Transfer-Encoding": "chunked"}, b"%x\r\n%b\r\n0\r\n\r\n" % (MAX_BYTES, body)
    server = serve(lambda exchange: exchange.send(build_head("200 OK", head) + body))
    transport = connect(server)
    assert len(send(transport).body) == MAX_BYTES
    assert len(send(transport).body) == MAX_BYTES
    assert server.connections == 1


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param({"Content-Length": str(10**12)}, b" " * (MAX_BYTES + 1), id="announced"),
        pytest.param({"Connection": "close"}, b" " * (MAX_BYTES + 1), id="until-the-end"),
        pytest.param(
            {"Content-Encoding": "gzip", "Connection": "close"}, gzip.compress(b" " * (MAX_BYTES + 1)), id="gzip"
        ),
    ],
)
def test_an_answer_above_the_limit_is_refused(headers, body, serve, connect):
    """One byte more than 1 MiB, decompressed, is an InvalidResponseError; the connection is not kept."""

    def behave(exchange: Exchange) -> None:
        exchange.send(build_head("200 OK", headers) + body)
        if "Connection" in headers:
            exchange.close()

    server = serve(behave)
    transport = connect(server)
    for _ in range(2):
        with pytest.raises(InvalidResponseError, match="larger than 1048576 bytes"):
            send(transport)
    assert server.connections == 2


def test_a_gzip_bomb_is_not_inflated(serve, connect):
    """A quarter of a gigabyte of nothing costs a few megabytes of memory."""
    squeeze = zlib.compressobj(9, wbits=31)
    bomb = b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(256)) + squeeze.flush()
    assert len(bomb) < MAX_BYTES
    transport = connect(serve(lambda exchange: exchange.reply(bomb, headers={"Content-Encoding": "gzip"})))
    tracemalloc.start()
    with pytest.raises(InvalidResponseError, match="larger than"):
        send(transport)
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * MAX_BYTES


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", " GZip "])
def test_gzip_is_decompressed(encoding, serve, connect):
    """An answer compressed as asked for is read."""
    server = serve(lambda exchange: exchange.reply(gzip.compress(b"{}"), headers={"Content-Encoding": encoding}))
    assert send(connect(server)).body == b"{}"


def test_an_empty_body_needs_no_decompression(serve, connect):
    """A gateway names an encoding for nothing at all."""
    server = serve(lambda exchange: exchange.reply(b"", headers={"Content-Encoding": "gzip"}))
    assert send(connect(server)).body == b""


@pytest.mark.parametrize(
    ("encoding", "body", "problem"),
    [
        pytest.param("gzip", b"{}", "not one whole gzip stream", id="not-compressed"),
        pytest.param("gzip", gzip.compress(b"{}")[:-9], "not one whole gzip stream", id="cut-short"),
        pytest.param("gzip", gzip.compress(b"{}") * 2, "not one whole gzip stream", id="two"),
        pytest.param("deflate", zlib.compress(b"{}"), "not asked for", id="deflate"),
        pytest.param("br", b"{}", "not asked for", id="brotli"),
        pytest.param("gzip, gzip", b"{}", "not asked for", id="twice"),
    ],
)
def test_compression_that_was_not_asked_for_is_refused(encoding, body, problem, serve, connect):
    """Anything but one whole gzip stream is an InvalidResponseError."""
    server = serve(lambda exchange: exchange.reply(body, headers={"Content-Encoding": encoding}))
    with pytest.raises(InvalidResponseError, match=problem):
        send(connect(server))


# -- TLS


def test_tls_with_a_known_authority(tls, ca_file, serve, connect):
    """A certificate of the given authority is accepted; connections are kept."""
    server = serve(answer, tls=tls)
    transport = connect(server, verify=str(ca_file))
    assert [send(transport).status for _ in range(3)] == [200, 200, 200]
    assert server.connections == 1


def test_tls_with_a_folder_of_authorities(tls, ca_file, serve, connect):
    """A folder, hashed as OpenSSL wants it, serves as well."""
    command = ["openssl", "x509", "-hash", "-noout", "-in", str(ca_file)]
    name_hash = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    ca_file.rename(ca_file.parent / f"{name_hash}.0")
    assert send(connect(serve(answer, tls=tls), verify=str(ca_file.parent))).status == 200


def test_an_unknown_authority_is_refused(tls, serve, connect):
    """The message says why; no request was made."""
    server = serve(answer, tls=tls)
    with pytest.raises(TransportError, match=r"certificate was refused: .*(self.signed|local issuer)") as caught:
        send(connect(server))
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert server.received == []


def test_a_certificate_for_another_host_is_refused(authority, ca_file, serve, connect):
    """The name is checked too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("sdk-01.moengage.com").configure_cert(context)
    with pytest.raises(TransportError, match=r"certificate was refused: .*mismatch"):
        send(connect(serve(answer, tls=context), verify=str(ca_file)))


def test_verification_can_be_turned_off(tls, serve, connect):
    """``verify=False`` accepts any certificate, and urllib3 warns."""
    with pytest.warns(match="Unverified HTTPS request"):
        assert send(connect(serve(answer, tls=tls), verify=False)).status == 200


def test_tls_against_a_server_that_has_none(serve, connect):
    """Plain HTTP where TLS was asked for is no answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        call = pool.submit(send, connect(f"https://127.0.0.1:{listener.getsockname()[1]}"))
        connection, _address = listener.accept()
        with connection:
            connection.sendall(build_head("400 Bad Request", {}))
            with pytest.raises(TransportError, match="SSLError"):
                call.result()


def test_the_authorities_are_loaded_once(tls, ca_file, serve, connect):
    """New connections, a rebuilt pool and a second transport read no bundle again, not even the default one."""
    server = serve(answer, tls=tls)
    transport = connect(server, verify=str(ca_file))
    send(transport)
    ca_file.write_text("")
    transport.close()
    called: set[str] = set()
    sys.setprofile(lambda _frame, event, argument: called.add(argument.__name__) if event == "c_call" else None)
    assert send(transport).status == 200
    sys.setprofile(None)
    assert "do_handshake" in called
    assert not called & {"load_verify_locations", "set_default_verify_paths"}
    assert send(connect(server, verify=str(ca_file))).status == 200
    assert server.connections == 3


@pytest.mark.parametrize(
    ("url", "proxies", "loads"),
    [
        ("http://127.0.0.1:1/v1", {}, False),
        ("https://localhost:1/v1", {}, True),
        ("http://127.0.0.1:1/v1", {"http": "https://127.0.0.1:1"}, True),
    ],
    ids=["plain", "tls", "plain-through-tls-proxy"],
)
def test_authorities_are_loaded_where_there_is_tls(url, proxies, loads, tmp_path, ca_file):
    """It takes a site on loopback, which has none, no time; one with a proxy may need them on the way."""
    bundle = tmp_path / f"{loads}-{len(proxies)}.pem"
    bundle.write_bytes(ca_file.read_bytes())
    called: set[str] = set()
    sys.setprofile(lambda _frame, event, argument: called.add(argument.__name__) if event == "c_call" else None)
    RequestsTransport(url, proxies=proxies, verify=str(bundle))
    sys.setprofile(None)
    assert ("load_verify_locations" in called) is loads


def test_a_dripping_answer_over_tls_ends_on_time(tls, ca_file, serve, connect):
    """The deadline holds inside TLS as well."""
    server = serve(lambda exchange: exchange.drip(b"HTTP/1.1 200 OK\r\n" * 99, every=0.02), tls=tls)
    transport = connect(server, verify=str(ca_file))
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        send(transport, seconds=SOON)
    assert SOON <= time.monotonic() - start < SOON + MARGIN


def test_a_missing_ca_file_is_a_mistake():
    """A path that is not there is found when the transport is made."""
    with pytest.raises(ValueError, match="verify"):
        RequestsTransport("https://sdk-01.moengage.com/v1", verify="/nowhere/ca.pem")


# -- environment


def test_the_environment_is_not_asked(monkeypatch, tmp_path, serve, connect):
    """Proxies, bundles and netrc of the environment change nothing."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{find_closed_port()}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "nowhere.pem"))
    server = serve(answer)
    assert send(connect(server)).status == 200
    assert server.received[0].headers["authorization"] == SECRET


def test_a_trusted_environment_gives_the_proxy_and_never_the_credentials(monkeypatch, tmp_path, serve, connect):
    """With trust_env the call goes through HTTP_PROXY, and the Authorization header is still ours."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    proxy = serve(answer)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    port = find_closed_port()
    assert send(connect(f"http://127.0.0.1:{port}/v1", trust_env=True)).status == 200
    (received,) = proxy.received
    assert received.target == f"http://127.0.0.1:{port}/v1/experiences/fetch"
    assert received.headers["authorization"] == SECRET


def test_a_trusted_environment_may_exempt_hosts(monkeypatch, serve, connect):
    """NO_PROXY is honoured with the rest."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{find_closed_port()}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert send(connect(serve(answer), trust_env=True)).status == 200


def test_a_trusted_environment_gives_the_bundle(monkeypatch, tls, ca_file, serve, connect):
    """With trust_env REQUESTS_CA_BUNDLE names the authorities, unless verify does."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca_file))
    server = serve(answer, tls=tls)
    assert send(connect(server, trust_env=True)).status == 200
    with pytest.raises(TransportError, match="certificate was refused"):
        send(connect(server))


def test_a_given_proxy_is_used(serve, connect):
    """Calls go through the proxy, with its own credentials beside ours, and keep their deadline."""
    proxy = serve(lambda exchange: answer(exchange) if exchange.turn == 1 else exchange.hang())
    port = find_closed_port()
    transport = connect(f"http://127.0.0.1:{port}", proxies={"http": f"http://me:pw@127.0.0.1:{proxy.port}"})
    send(transport)
    (received,) = proxy.received
    assert received.target == f"http://127.0.0.1:{port}/experiences/fetch"
    assert received.headers["proxy-authorization"] == "Basic bWU6cHc="
    assert received.headers["authorization"] == SECRET
    with pytest.raises(DeadlineExceeded):
        send(transport, seconds=SOON)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "ftp://127.0.0.1"])
def test_a_proxy_of_another_kind_is_a_mistake(proxy):
    """SOCKS is refused rather than silently left out."""
    with pytest.raises(ValueError, match="a proxy must be"):
        RequestsTransport("http://127.0.0.1:9", proxies={"all": proxy})


# -- fork


FORKING = """
    import os, sys
    from django_moe_personalize.moengage.messages import Request
    from django_moe_personalize.moengage.transport import RequestsTransport
    from django_moe_personalize.resilience import Deadline

    url, ca_file = sys.argv[1], sys.argv[2]
    transport = RequestsTransport(url, verify=ca_file or True)

    def ask(name):
        body = name.encode()
        try:
            return transport.send(Request("POST", "/echo", body=body), deadline=Deadline(20)).body != body
        except Exception as error:
            print(name, repr(error), file=sys.stderr)
            return True

    failed = ask("warm")
    children = []
    for number in range(4):
        pid = os.fork()
        if not pid:
            os._exit(any([ask(f"child {number}, call {turn}") for turn in range(40)]))
        children.append(pid)
    failed |= any([ask(f"parent, call {turn}") for turn in range(40)])
    failed |= any([os.waitpid(pid, 0)[1] != 0 for pid in children])
    failed |= ask("parent, after its children ended")
    sys.exit(failed)
"""


@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
def test_nobody_gets_anothers_answer_after_a_fork(over_tls, tls, ca_file, serve):
    """Parent and children of a warm transport get 201 own answers; the parent keeps its connection."""
    server = serve(lambda exchange: exchange.reply(exchange.received.body), tls=tls if over_tls else None)
    program = [sys.executable, "-c", textwrap.dedent(FORKING), server.url, str(ca_file) if over_tls else ""]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(server.received) == 202
    assert server.connections == 5


# -- secrets


@pytest.mark.parametrize(
    "behave",
    [
        pytest.param(Exchange.reset, id="reset"),
        pytest.param(Exchange.hang, id="hang"),
        pytest.param(break_off({"Content-Length": "9"}, b"Wanda", Exchange.close), id="truncated"),
        pytest.param(lambda exchange: exchange.reply(b"Wanda" * MAX_BYTES), id="oversize"),
        pytest.param(say(b"Wanda\r\n\r\n", Exchange.close), id="not-http"),
    ],
)
def test_an_error_report_shows_no_secret_and_nobody(behave, serve, connect):
    """Along the whole chain, messages and locals hold neither the key nor the visitor nor the answer."""
    transport = connect(serve(behave), proxies={"ftp": "http://me:pw@127.0.0.1"})
    with pytest.raises((TransportError, InvalidResponseError)) as caught:
        send(transport, seconds=SOON)
    shown = describe_report(caught.value)
    assert "request = Request(method='POST'" in shown
    assert not [secret for secret in (SECRET, "czNjcmV0", "Wanda", "me:pw") if secret in shown]


def test_the_log_shows_no_secret_and_nobody(caplog, serve, connect):
    """Not even at DEBUG do the layers below log a header or a body."""
    caplog.set_level(logging.DEBUG)
    send(connect(serve(lambda exchange: exchange.reply(b"Wanda"))))
    assert "/v1/experiences/fetch" in caplog.text
    assert not [secret for secret in (SECRET, "Wanda") if secret in caplog.text]


def test_an_abort_in_the_layers_below_shows_no_secret_and_nobody(serve, connect):
    """What is no failure of a call, as a server's abort of its worker, passes frames that hide headers and body."""

    def abort(*_args: object) -> None:
        raise SystemExit(1)

    before = signal.signal(signal.SIGALRM, abort)
    signal.setitimer(signal.ITIMER_REAL, SOON)
    with pytest.raises(SystemExit) as caught:
        send(connect(serve(Exchange.hang)))
    signal.signal(signal.SIGALRM, before)
    shown = describe_report(caught.value)
    assert "headers = <headers>" in shown
    assert "body = <body>" in shown
    assert not [secret for secret in (SECRET, "Wanda") if secret in shown]


def test_reprs_show_the_base_url_alone():
    """A transport, a request and a response can be logged."""
    transport = RequestsTransport("http://LOCALHOST:8000/v1/", proxies={"http": "http://me:pw@127.0.0.1:1"})
    assert repr(transport) == "<RequestsTransport http://localhost:8000/v1>"
    assert repr(FETCH) == "Request(method='POST', path='/experiences/fetch', query='')"
    assert repr(Response(200, {"set-cookie": "x"}, b"Wanda")) == "Response(status=200)"


# -- base URL


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://sdk-01.moengage.com/v1", "https://sdk-01.moengage.com/v1"),
        ("HTTPS://SDK-01.MoEngage.com/v1//", "https://sdk-01.moengage.com/v1"),
        ("https://proxy.example:8443", "https://proxy.example:8443"),
        ("https://[2001:db8::1]/V1/", "https://[2001:db8::1]/V1"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://127.8.9.1", "http://127.8.9.1"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_a_base_url_is_normalised(url, expected):
    """Scheme and host in lower case, no slash at the end; doing it again changes nothing."""
    assert validate_base_url(url) == expected
    assert validate_base_url(expected) == expected


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "must be like"),
        ("https://", "must be like"),
        ("https:///v1", "must be like"),
        ("sdk-01.moengage.com/v1", "must be like"),
        ("https://host:port", "must be like"),
        ("https://host:0", "must be like"),
        ("https://host:99999", "must be like"),
        ("https://[::1", "must be like"),
        ("https://[v1.x]/", "must be like"),
        ("https://ho st/", "must be like"),
        ("https://host/\nv1", "must be like"),
        ("https://host\\@evil.example/", "must be like"),
        ("https://höst/", "must be like"),
        ("https://-host/", "must be like"),
        ("ftp://host/", "must start with https"),
        ("//host/v1", "must start with https"),
        ("https://me:hunter2@host/", "user name or password"),
        ("https://host/?key=hunter2", "query or fragment"),
        ("https://host/?", "query or fragment"),
        ("https://host/#hunter2", "query or fragment"),
        ("http://sdk-01.moengage.com/v1", "loopback alone"),
        ("http://10.0.0.1/", "loopback alone"),
        ("http://0.0.0.0/", "loopback alone"),
        ("http://localhost.evil.example/", "loopback alone"),
    ],
)
def test_a_base_url_that_is_not_safe_is_refused(url, problem):
    """The message names the rule and repeats nothing of the URL."""
    with pytest.raises(ValueError, match=problem) as caught:
        validate_base_url(url)
    assert not re.search("hunter2|evil", str(caught.value))
    with pytest.raises(ValueError, match=problem):
        RequestsTransport(url)


def test_headers_that_are_cut_short_are_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    """Half a header is no answer, and nothing of what the vendor wrote is in the site's log."""

    def cut(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nada@example.com is")
        exchange.close()

    with caplog.at_level(logging.DEBUG, logger="urllib3"), Loopback(cut) as server:
        transport = RequestsTransport(server.url)
        with pytest.raises(TransportError, match="no whole answer"):
            transport.send(Request("POST", "/experiences/fetch", body=b"{}"), deadline=Deadline(10.0))
    assert "ada@example.com" not in caplog.text

"""How connections are opened: certificates, proxies, the environment, and several addresses."""

import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from django_moe_personalize.exceptions import DeadlineExceeded, ProxyError, TransportError
from django_moe_personalize.moengage.connections import get_tls_context
from django_moe_personalize.moengage.http1 import Request, Response
from django_moe_personalize.moengage.transport import RequestsTransport
from django_moe_personalize.resilience import Deadline
from tests.error_reports import describe_report
from tests.loopback import Exchange, Loopback, build_head
from tests.wire import FETCH, LONG, SECRET, break_off, echo, receive

SOON = 0.25
PROMPTLY = LONG / 2
FORBIDDEN = build_head("407 Proxy Authentication Required", {"Content-Length": "2"})


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "requests_ca_bundle", "curl_ca_bundle", "netrc"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., Loopback]]:
    """Start servers that stop with the test."""
    with ExitStack() as stack:
        yield lambda behave, **options: stack.enter_context(Loopback(behave, **options))


def send(url: str, request: Request = FETCH, *, seconds: float = LONG, **options: object) -> Response:
    """Send one request over a new transport."""
    with closing(RequestsTransport(url, **options)) as transport:
        return transport.send(request, deadline=Deadline(seconds))


def find_closed_port() -> int:
    """Return a port that no server listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def tunnel(exchange: Exchange) -> None:
    """Open the tunnel that CONNECT asks for, as a proxy does."""
    host, _, port = exchange.received.target.rpartition(":")
    with socket.create_connection((host, int(port))) as target:
        exchange.send(b"HTTP/1.0 200 Connection established\r\n\r\n")
        ends = {exchange.connection: target, target: exchange.connection}
        while exchange.is_open:
            for end in select.select(list(ends), [], [])[0]:
                data = end.recv(65_536)
                exchange.is_open = exchange.is_open and bool(data)
                ends[end].sendall(data)


@contextmanager
def watch_calls() -> Iterator[set[str]]:
    """Give a list that gets the names of all C functions that are called."""
    called: set[str] = set()

    def watch(_frame: object, event: str, argument: Any) -> None:
        if event == "c_call":
            called.add(argument.__name__)

    # Threads that start from now on connect.
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        yield called
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


# -- certificates


def test_folder_of_authorities(tls_ends, tmp_path, serve):
    """``verify`` can be a CA file, or a folder with the file names that OpenSSL needs."""
    command = ["openssl", "x509", "-hash", "-noout", "-in", str(tls_ends.ca_file)]
    name_hash = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / f"{name_hash}.0").write_bytes(tls_ends.ca_file.read_bytes())
    assert send(serve(echo, tls=tls_ends.context).url, verify=str(tmp_path)).status == 200


def test_unknown_authority_is_refused(tls_ends, serve):
    """The message has the reason, and no request arrives."""
    server = serve(echo, tls=tls_ends.context)
    with pytest.raises(
        TransportError, match=r"MoEngage's certificate was refused: .*(self.signed|local issuer)"
    ) as caught:
        send(server.url)
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert server.received == []


def test_certificate_for_another_host_is_refused(tls_ends, serve):
    """A certificate for another host name is refused."""
    server = serve(echo, tls=tls_ends.build_context("sdk-01.moengage.com"))
    with pytest.raises(TransportError, match=r"certificate was refused: .*mismatch"):
        send(server.url, verify=str(tls_ends.ca_file))


def test_verification_can_be_turned_off(tls_ends, serve):
    """``verify=False`` accepts any certificate, and urllib3 warns. With ``-W error`` the caller gets the warning."""
    url = serve(echo, tls=tls_ends.context).url
    with pytest.warns(match="Unverified HTTPS request"):
        assert send(url, verify=False).status == 200
    with pytest.raises(Warning, match="Unverified HTTPS request"):
        send(url, verify=False)


def test_server_without_tls():
    """A server without TLS can't respond to an https call."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        call = pool.submit(send, f"https://127.0.0.1:{listener.getsockname()[1]}")
        connection, _address = listener.accept()
        with connection:
            connection.sendall(build_head("400 Bad Request", {}))
            with pytest.raises(TransportError, match="SSLError"):
                call.result()


def test_authorities_are_loaded_once(tls_ends, tmp_path, serve):
    """New connections and a second transport don't load a CA bundle again, not even the default bundle."""
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(tls_ends.ca_file.read_bytes())
    server = serve(echo, tls=tls_ends.context)
    with closing(RequestsTransport(server.url, verify=str(bundle))) as transport:
        bundle.write_text("")
        with watch_calls() as called:
            assert transport.send(FETCH, deadline=Deadline(LONG)).status == 200
            transport.close()
            assert transport.send(FETCH, deadline=Deadline(LONG)).status == 200
        assert "do_handshake" in called
        assert not called & {"load_verify_locations", "set_default_verify_paths"}
    assert send(server.url, verify=str(bundle)).status == 200
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
def test_authorities_are_loaded_where_there_is_tls(url, proxies, loads, tls_ends, tmp_path):
    """Plain HTTP loads no CA bundle, unless the transport uses a proxy."""
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(tls_ends.ca_file.read_bytes())
    with watch_calls() as called:
        RequestsTransport(url, proxies=proxies, verify=str(bundle))
    assert ("load_verify_locations" in called) is loads


def sessions_of(bundle: Path) -> dict[str, ssl.SSLSession]:
    """Return the TLS sessions that a new connection may resume, by host."""
    return get_tls_context(str(bundle)).sslsocket_class.sessions


def test_session_is_resumed(tls_ends, tmp_path, serve):
    """A new connection resumes the session of an earlier connection. A refused certificate stores no session.

    A server that doesn't know the session must have a certificate that the client accepts.
    """
    bundles = [tmp_path / "right.pem", tmp_path / "wrong.pem"]
    for bundle, authority in zip(bundles, [tls_ends.authority, trustme.CA()], strict=True):
        authority.cert_pem.write_to_path(bundle)
    server, sessions = serve(echo, tls=tls_ends.context), []
    with closing(RequestsTransport(server.url, verify=str(bundles[0]))) as transport:
        for is_resumed in (False, True, True):
            transport.send(FETCH, deadline=Deadline(LONG))
            (connection,) = transport._pool.idle
            assert connection.sock.session_reused == is_resumed
            transport.close()
            sessions.append(sessions_of(bundles[0])["127.0.0.1"])
    # Only a new session is read, since that takes time.
    assert sessions[0] is sessions[2]
    with pytest.raises(TransportError, match="certificate was refused"):
        send(server.url, verify=str(bundles[1]))
    assert sessions_of(bundles[1]) == {}
    impostor = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(impostor)
    with pytest.raises(TransportError, match="certificate was refused"):
        send(serve(echo, tls=impostor).url, verify=str(bundles[0]))


@pytest.mark.parametrize("option", [{"verify": "/nowhere/ca.pem"}, {"cert": "/nowhere.pem"}, {"cert": [__file__] * 3}])
def test_missing_file_is_refused(option):
    """The constructor of the transport raises ValueError if a path doesn't exist."""
    with pytest.raises(ValueError, match=next(iter(option))):
        RequestsTransport("https://sdk-01.moengage.com/v1", **option)


# -- the environment


def test_environment_is_not_asked(monkeypatch, tmp_path, serve):
    """Without trust_env, the transport ignores the proxies and CA bundles in the environment."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{find_closed_port()}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "nowhere.pem"))
    assert send(serve(echo).url).status == 200


def test_trusted_environment_gives_the_proxy_and_never_the_credentials(monkeypatch, tmp_path, serve):
    """With trust_env, the call uses HTTP_PROXY. The Authorization header doesn't come from netrc."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    proxy = serve(echo)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    url = f"http://127.0.0.1:{find_closed_port()}/v1"
    assert send(url, trust_env=True).status == 200
    (received,) = proxy.received
    assert received.target == f"{url}/experiences/fetch"
    assert received.headers["authorization"] == SECRET


def test_trusted_environment_may_exempt_hosts(monkeypatch, serve):
    """With trust_env, a host in NO_PROXY needs no proxy."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{find_closed_port()}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert send(serve(echo).url, trust_env=True).status == 200


def test_trusted_environment_gives_the_bundle(monkeypatch, tls_ends, serve):
    """With trust_env, REQUESTS_CA_BUNDLE is the CA bundle, unless ``verify`` is a path."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls_ends.ca_file))
    server = serve(echo, tls=tls_ends.context)
    assert send(server.url, trust_env=True).status == 200
    with pytest.raises(TransportError, match="certificate was refused"):
        send(server.url)


# -- proxies


def test_plain_request_is_forwarded(serve):
    """Both ways to send give the proxy the complete URL, its credentials and the client's headers."""
    proxy = serve(echo)
    url = f"http://127.0.0.1:{find_closed_port()}/v1"
    with closing(RequestsTransport(url, proxies={"http": f"http://me:pw@127.0.0.1:{proxy.port}"})) as transport:
        transport.send(FETCH, deadline=Deadline(LONG))
        receive(transport.start(FETCH))
    first, second = proxy.received
    assert first.target == f"{url}/experiences/fetch"
    assert first.headers["proxy-authorization"] == "Basic bWU6cHc="
    assert first.headers["authorization"] == SECRET
    assert second == first
    assert proxy.connections == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_tls_goes_through_a_tunnel(scheme, tls_ends, serve):
    """The proxy sees only the host and its own credentials. Both ways to send use the tunnel."""
    server = serve(echo, tls=tls_ends.context)
    proxy = serve(tunnel, tls=tls_ends.context if scheme == "https" else None)
    proxies = {"https": f"{scheme}://me:pw@127.0.0.1:{proxy.port}"}
    body = b" " * 250_000
    with closing(RequestsTransport(server.url, proxies=proxies, verify=str(tls_ends.ca_file))) as transport:
        assert transport.send(FETCH, deadline=Deadline(LONG)).body == FETCH.body
        exchange = transport.start(Request("POST", "/echo", body=b"two"))
        assert receive(exchange).body == b"two"
        assert transport.send(Request("POST", "/echo", body=body), deadline=Deadline(LONG)).body == body
    (connect,) = proxy.received
    authority = f"127.0.0.1:{server.port}"
    assert (connect.method, connect.target, connect.headers["host"]) == ("CONNECT", authority, authority)
    assert connect.headers["proxy-authorization"] == "Basic bWU6cHc="
    assert "proxy-authorization" not in server.received[0].headers
    assert server.connections == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_tunnel_that_ends(scheme, tls_ends, serve):
    """Behind a tunnel, an incomplete response and a silent server give the usual errors."""
    ends = iter([Exchange.close, Exchange.hang])
    server = serve(lambda exchange: next(ends)(exchange), tls=tls_ends.context)
    proxy = serve(tunnel, tls=tls_ends.context if scheme == "https" else None)
    options = {"proxies": {"all": f"{scheme}://127.0.0.1:{proxy.port}"}, "verify": str(tls_ends.ca_file)}
    with pytest.raises(TransportError, match="no whole response from MoEngage"):
        send(server.url, **options)
    with pytest.raises(DeadlineExceeded, match=r"MoEngage (through .* )?did not answer in time"):
        send(server.url, seconds=SOON, **options)


@pytest.mark.parametrize(
    ("behave", "problem"),
    [
        (break_off(FORBIDDEN, Exchange.hang), "opened no tunnel: it answered 407"),
        (break_off(b"SSH-2.0-OpenSSH\r\n", Exchange.hang), "opened no tunnel: the response is not valid HTTP/1.1"),
        (Exchange.close, r"opened no tunnel: no whole response from the proxy .* \(ConnectionResetError\)"),
    ],
    ids=["refuses", "not-http", "closes"],
)
def test_proxy_that_opens_no_tunnel(behave, problem, serve):
    """The error contains the proxy and its status, but no password."""
    proxy = serve(behave)
    proxies = {"all": f"http://me:hunter2@127.0.0.1:{proxy.port}"}
    with pytest.raises(ProxyError, match=f"the proxy 127.0.0.1:{proxy.port} {problem}") as caught:
        send("https://[2001:db8::1]/v1", proxies=proxies)
    assert "hunter2" not in describe_report(caught.value)
    assert proxy.received[0].target == "[2001:db8::1]:443"


@pytest.mark.parametrize(
    "behave", [Exchange.hang, lambda exchange: exchange.drip(b"HTTP/1.1 200 OK\r\n" * 99, every=0.02)]
)
@pytest.mark.parametrize("limit", [{"seconds": SOON}, {"connect_timeout": SOON}], ids=str)
def test_slow_proxy_does_not_outlive_the_deadline(behave, limit, serve):
    """The time to open the tunnel is a part of the deadline, and of the time to connect."""
    proxies = {"all": f"http://127.0.0.1:{serve(behave).port}"}
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"the proxy 127\.0\.0\.1:\d+ did not answer in time"):
        send("https://sdk-01.moengage.com/v1", proxies=proxies, **limit)
    assert SOON <= time.monotonic() - start < PROMPTLY


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "https://sdk-01.moengage.com/v1"], ids=["plain", "tls"])
def test_proxy_that_is_down(url):
    """The error names the proxy, because no request reached MoEngage."""
    port = find_closed_port()
    with pytest.raises(ProxyError, match=rf"from the proxy 127.0.0.1:{port} \(ConnectionRefusedError") as caught:
        send(url, proxies={"all": f"127.0.0.1:{port}"})
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_certificates_are_checked_on_both_ends_of_a_tunnel(tls_ends, serve):
    """The error says whether the certificate of MoEngage or of the proxy was refused."""
    server, proxy = serve(echo, tls=tls_ends.context), serve(tunnel)
    with pytest.raises(TransportError, match="MoEngage's certificate was refused"):
        send(server.url, proxies={"all": f"http://127.0.0.1:{proxy.port}"})
    proxy = serve(tunnel, tls=tls_ends.context)
    with pytest.raises(ProxyError, match=f"the proxy 127.0.0.1:{proxy.port}'s certificate was refused"):
        send(server.url, proxies={"all": f"https://127.0.0.1:{proxy.port}"})


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "ftp://127.0.0.1", "http://", "http://me:hunter2@[::1"])
def test_proxy_of_another_kind_is_refused(proxy):
    """The constructor raises ValueError, and the message doesn't contain the password."""
    with pytest.raises(ValueError, match="a proxy must be an http:// or https:// URL") as caught:
        RequestsTransport("http://127.0.0.1:9", proxies={"all": proxy})
    assert "hunter2" not in str(caught.value)

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
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import trustme

from django_moe_personalize.exceptions import DeadlineExceeded, TransportError
from django_moe_personalize.moengage import connections
from django_moe_personalize.moengage.connections import ProxyError, get_tls_context
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
    """A new connection resumes the session of an earlier connection. A refused certificate stores no session."""
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


def test_missing_ca_file_is_refused():
    """The constructor of the transport raises ValueError if the path doesn't exist."""
    with pytest.raises(ValueError, match="verify"):
        RequestsTransport("https://sdk-01.moengage.com/v1", verify="/nowhere/ca.pem")


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
    with pytest.raises(DeadlineExceeded, match="MoEngage did not answer in time"):
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
def test_slow_proxy_does_not_outlive_the_deadline(behave, serve):
    """The time to open the tunnel is a part of the deadline."""
    proxies = {"all": f"http://127.0.0.1:{serve(behave).port}"}
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"the proxy 127\.0\.0\.1:\d+ did not answer in time"):
        send("https://sdk-01.moengage.com/v1", proxies=proxies, seconds=SOON)
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


# -- addresses


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
    """Return a function that sets the addresses of localhost. The list that it returns gets each address that is tried."""
    look_up, connect = socket.getaddrinfo, connections.create_connection
    tried: list[str] = []

    def try_address(address: tuple[str, int], seconds: float, **options: object) -> socket.socket:
        tried.append(address[0])
        return connect(address, seconds, **options)

    def resolve(*addresses: str) -> list[str]:
        def find(host: str, *args: object, **options: object) -> list[object]:
            hosts = addresses if host == "localhost" else [host]
            return [row for host in hosts for row in look_up(host, *args, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", find)
        return tried

    monkeypatch.setattr(connections, "create_connection", try_address)
    return resolve


@pytest.mark.parametrize("bad", [["silent"], ["silent-in-tls"], ["refused"], ["no-route"], ["silent", "refused"], [*BAD]])
def test_bad_address_costs_one_page(bad, resolve, tls_ends, serve):
    """The next address is tried soon, and from then on first. The order of the addresses in DNS doesn't matter."""
    server = serve(echo, tls=tls_ends.build_context("localhost"))
    addresses = [BAD[kind][0] for kind in bad]
    tried = resolve(*addresses, "127.0.0.1")
    with ExitStack() as stack:
        for kind in bad:
            host, start = BAD[kind]
            stack.enter_context(start(host, server.port))
        options = {"verify": str(tls_ends.ca_file), "connect_timeout": LONG}
        transport = stack.enter_context(closing(RequestsTransport(f"https://localhost:{server.port}", **options)))
        assert transport.send(FETCH, deadline=Deadline(LONG)).status == 200
        assert {*tried} == {*addresses, "127.0.0.1"}
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
    assert connector.look_up() == ["2001:db8::1", "127.0.0.2", "2001:db8::2", "127.0.0.1"]


def test_address_that_falls_silent(resolve, serve):
    """After a call without a response, the next call tries another address first, and after two no old connection."""
    good, port = serve(echo), 0
    port = good.port
    bad = Loopback(lambda exchange: exchange.reply(b"") if exchange.received.method == "GET" else exchange.hang())
    bad._listener.close()
    bad._listener = socket.create_server(("127.0.0.2", port))
    bad._host = "127.0.0.2"
    tried = resolve("127.0.0.2", "127.0.0.1")
    with bad, closing(RequestsTransport(f"http://localhost:{port}")) as transport:
        started = []
        for _ in range(4):
            connection = transport._pool.wait(LONG, is_new=True)
            started.append(connection)
        for connection in started:
            transport._pool.give_back(connection, transport._pool.idle, is_reusable=True)
        assert tried == ["127.0.0.2"] * 4
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                transport.send(FETCH, deadline=Deadline(SOON))
        assert transport.send(FETCH, deadline=Deadline(LONG)).body == FETCH.body
        assert tried[4:] == ["127.0.0.1"]

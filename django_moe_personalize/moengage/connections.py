"""Open connections to MoEngage with urllib3, configured by ``requests``.

``requests`` only chooses the proxy and the CA bundle: docs/architecture.md says why the package uses no Session.
"""

from __future__ import annotations

import functools
import os
import socket
import ssl
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies, select_proxy
from urllib3 import PoolManager, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from django_moe_personalize.exceptions import APIError, DeadlineExceeded, ProxyError, ProxyTimeout, TransportError
from django_moe_personalize.moengage.http1 import HTTPExchange, describe_failure, write_head
from django_moe_personalize.resilience import monotonic

Address = tuple[int, tuple[Any, ...]]
"""The family of an address, and the address as ``socket`` takes it."""


def choose_proxy(base_url: str, proxies: Mapping[str, str] | None, *, trust_env: bool) -> str:
    """Return the URL of the proxy for ``base_url``, or ``""``. Raises ValueError if the URL isn't http:// or https://."""
    proxy = select_proxy(base_url, dict(proxies or {}))
    if proxy is None and trust_env:
        proxy = select_proxy(base_url, get_environ_proxies(base_url, no_proxy=None))
    if not proxy:
        return ""
    with suppress(ValueError):
        parts = parse_url(proxy if "://" in proxy else f"http://{proxy}")
        # TimedHTTPConnection doesn't support SOCKS: the call would bypass a SOCKS proxy.
        if parts.scheme in ("http", "https") and parts.host:
            return parts.url
    # A new error, because the error of parse_url() quotes the URL, which may contain a password.
    raise ValueError("a proxy must be an http:// or https:// URL")


def choose_verify(verify: bool | str, *, trust_env: bool) -> bool | str:
    """Return ``verify``, or the CA bundle in the environment. Raises ValueError if the file or folder doesn't exist."""
    if verify is True and trust_env:
        verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    if isinstance(verify, str) and not os.path.exists(verify):
        raise ValueError("verify must be True, False or the path of an existing CA file or folder")
    return verify


def choose_cert(cert: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the files of the client certificate and its key. Raises ValueError if a file doesn't exist."""
    files = (cert,) if isinstance(cert, str) else tuple(cert or ())
    if len(files) > 2 or not all(isinstance(file, str) and os.path.isfile(file) for file in files):
        raise ValueError("cert must be the path of an existing PEM file, or the paths of a certificate and its key")
    return files


class _ResumingSocket(ssl.SSLSocket):
    """A TLS socket that resumes an earlier session with the same host, which saves 25 % of the time to connect."""

    sessions: ClassVar[dict[str | None, ssl.SSLSession]]
    _is_verified = False

    def do_handshake(self, block: bool = False) -> None:
        """Do the TLS handshake. Resume the last session with this server, if there is one."""
        if (session := self.sessions.get(self.server_hostname)) is not None:
            self.session = session
        super().do_handshake(block)
        self._is_verified = True

    def close(self) -> None:
        """Store the TLS session for the next connection, and close the socket."""
        # Not after the handshake, because the ticket of the session arrives later. A resumed session is stored
        # already, and to read ``self.session`` takes 150 µs. A session with a refused certificate is never stored.
        if self._is_verified and not self.session_reused and (session := self.session) is not None:
            self.sessions[self.server_hostname] = session
        super().close()


@functools.cache
def get_tls_context(verify: bool | str, *cert: str) -> ssl.SSLContext:
    """Return the TLS context for a CA bundle and a client certificate. Raises ValueError for an unusable certificate.

    One context for each process, because to load the bundle takes 13 ms.
    """
    path = DEFAULT_CA_BUNDLE_PATH if verify is True else verify or None
    is_folder = path is not None and os.path.isdir(path)
    context = ssl.create_default_context(cafile=None if is_folder else path, capath=path if is_folder else None)
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if cert:
        try:
            # Without the password, OpenSSL would ask for one on the terminal, and the process would hang.
            context.load_cert_chain(cert[0], cert[-1], password="")
        except (ssl.SSLError, ValueError):
            raise ValueError("cert must be a PEM certificate with its key, and the key must have no password") from None
    # A new class for each context, because a session works only with its own context.
    context.sslsocket_class = type("ResumingSocket", (_ResumingSocket,), {"sessions": {}})
    return context


class Connector:
    """Opens connections to one base URL, directly or through a proxy. Works after a fork, because it keeps no socket.

    For an https base URL, the proxy opens a tunnel and can't read the requests. For an http base URL, the proxy
    forwards each request (``is_forwarded``). A forwarded request needs the complete URL and ``proxy_headers``.
    """

    def __init__(
        self,
        base_url: str,
        proxy: str,
        context: ssl.SSLContext | None = None,
        proxy_context: ssl.SSLContext | None = None,
    ) -> None:
        manager = PoolManager(ssl_context=context)
        if proxy:
            headers = HTTPAdapter().proxy_headers(proxy)
            manager = ProxyManager(proxy, proxy_headers=headers, proxy_ssl_context=proxy_context, ssl_context=context)
        pool: Any = manager.connection_from_url(base_url)
        pool.ConnectionCls = TimedHTTPSConnection if pool.scheme == "https" else TimedHTTPConnection
        self._pool = pool
        self.proxy = f"the proxy {pool.proxy.host}:{pool.proxy.port}" if proxy else ""
        """The name of the proxy in messages, or ``""``."""
        self.peer = f"MoEngage through {self.proxy}" if proxy else "MoEngage"
        self.is_forwarded = bool(proxy) and base_url.startswith("http:")
        self.proxy_headers: Mapping[str, str] = pool.proxy_headers if self.is_forwarded else {}

    def look_up(self) -> list[Address]:
        """Return the addresses of the host or the proxy, IPv6 and IPv4 in turn (RFC 8305 §4). Raises TransportError."""
        end = self._pool.proxy or self._pool
        try:
            rows = socket.getaddrinfo(end.host.strip("[]"), end.port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            failure = self._explain(error)
        else:
            # The number of each address within its family.
            counts: Counter[int] = Counter()
            numbers: dict[Address, int] = {}
            for family, *_, address in rows:
                numbers.setdefault((family, address), counts[family])
                counts[family] += 1
            return sorted(numbers, key=numbers.__getitem__)
        raise failure

    def connect(self, address: Address, seconds: float) -> TimedHTTPConnection:
        """Return a new connection to an address of the host. ``seconds`` limits all steps. Raises TransportError."""
        # These are the first steps of urllib3's urlopen(). urllib3 has no public function for them.
        pool = self._pool
        connection: TimedHTTPConnection = pool._new_conn()
        connection.address, connection.timeout = address, seconds
        try:
            if pool.proxy and not self.is_forwarded:
                pool._prepare_proxy(connection)
            else:
                connection.connect()
            # Here urllib3 warns if ``verify`` is false.
            pool._validate_conn(connection)
            return connection
        except BaseException as error:
            try:
                failure = self._explain(error, connection.has_connected_to_proxy)
            finally:
                connection.close()
        raise failure

    def _explain(self, error: BaseException, has_connected_to_proxy: bool = False) -> APIError:
        """Return the APIError for ``error``. If the connection didn't cause ``error``, raise ``error`` unchanged."""
        if not isinstance(error, APIError | OSError | ValueError | HTTPError):
            raise error
        if isinstance(error, TransportError) and not isinstance(error, DeadlineExceeded):
            # Only _tunnel() raises a TransportError.
            return ProxyError(f"{self.proxy} opened no tunnel: {error}", status=getattr(error, "status", None))
        if not self.proxy or (has_connected_to_proxy and not isinstance(error, DeadlineExceeded)):
            return describe_failure(error, "MoEngage")
        return describe_failure(error, self.proxy, ProxyError, ProxyTimeout)


class TimedHTTPConnection(HTTPConnection):
    """A connection to one address. Its ``timeout`` limits all steps to connect together: TCP, the tunnel and TLS."""

    address: Address
    is_used = False
    """Whether the connection has carried a request."""

    _until = 0.0

    @property
    def is_connected(self) -> bool:
        """Whether the server has neither closed the connection nor sent anything unasked, except session tickets."""
        self.sock.settimeout(0.0)
        try:
            # TLS 1.3 sends tickets after the handshake, and recv() doesn't return them.
            self.sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
        return False

    def _left(self) -> float:
        # At least 1 ms, because a timeout of 0.0 makes a socket non-blocking.
        return max(0.001, self._until - monotonic())

    def _new_conn(self) -> socket.socket:
        self._until = monotonic() + (self.timeout or 0.0)
        family, address = self.address
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            for option in self.default_socket_options:
                sock.setsockopt(*option)
            sock.settimeout(self._left())
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        sock.settimeout(self._left())
        return sock

    def _tunnel(self) -> None:
        """Ask the proxy for a tunnel (RFC 9110 §9.3.6). Raises TransportError if the proxy doesn't open a tunnel."""
        # On Python 3.13, http.client strips the brackets of an IPv6 address.
        host = str(self._tunnel_host).strip("[]")
        authority = f"[{host}]:{self._tunnel_port}" if ":" in host else f"{host}:{self._tunnel_port}"
        fields: Mapping[str, str] = self._tunnel_headers  # type: ignore[attr-defined]
        peer = f"the proxy {self.host}:{self.port}"
        exchange = HTTPExchange(self.sock, lambda is_reusable: None, peer=peer, has_body=False)
        head = write_head("", {"Host": authority, **fields}, "CONNECT", authority)
        exchange.send(memoryview(head + b"\r\n"), self._left())
        response = exchange.receive(self._left())
        if response is None:
            raise ProxyTimeout(f"{peer} did not answer in time")
        if not 200 <= response.status < 300:
            reason = " (wrong user or password)" if response.status == 407 else ""
            raise ProxyError(f"it answered {response.status}{reason}", status=response.status)
        self.sock.settimeout(self._left())


class TimedHTTPSConnection(TimedHTTPConnection, HTTPSConnection):
    """See TimedHTTPConnection."""

"""Open connections to MoEngage with urllib3, configured by ``requests``.

``requests`` knows proxies, the environment and CA bundles. A Session would follow redirects, keep cookies,
read netrc, and load the CA bundle for each new connection, which takes 14 ms. Requests and responses don't
travel through ``requests``, because its timeouts limit each read and not the whole call.
"""

from __future__ import annotations

import functools
import os
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar

from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies, select_proxy
from urllib3 import PoolManager, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url
from urllib3.util.connection import create_connection

from django_moe_personalize.exceptions import APIError, DeadlineExceeded, TransportError
from django_moe_personalize.moengage.http1 import HTTPExchange, describe_failure, write_request


class ProxyError(TransportError):
    """The proxy can't be reached or opens no tunnel. The message names the proxy, never its password."""


def choose_proxy(base_url: str, proxies: Mapping[str, str] | None, *, trust_env: bool) -> str:
    """Return the URL of the proxy for ``base_url``, ``""`` for none. Raises ValueError for one that is not HTTP(S)."""
    proxy = select_proxy(base_url, dict(proxies or {}))
    if proxy is None and trust_env:
        proxy = select_proxy(base_url, get_environ_proxies(base_url, no_proxy=None))
    if not proxy:
        return ""
    with suppress(ValueError):
        parts = parse_url(proxy if "://" in proxy else f"http://{proxy}")
        # SOCKS needs its own kind of connection: with ours the call would bypass the proxy.
        if parts.scheme in ("http", "https") and parts.host:
            return parts.url
    # Raised here, because the error of parse_url() quotes the URL, which may contain a password.
    raise ValueError("a proxy must be an http:// or https:// URL")


def choose_verify(verify: bool | str, *, trust_env: bool) -> bool | str:
    """Return ``verify``, or the environment's CA bundle. Raises ValueError for a file or folder that doesn't exist."""
    if verify is True and trust_env:
        verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    if isinstance(verify, str) and not os.path.exists(verify):
        raise ValueError("verify must be True, False or the path of an existing CA file or folder")
    return verify


class _ResumingSocket(ssl.SSLSocket):
    """A TLS connection that resumes an earlier session with its host. That saves a quarter of the time to connect."""

    sessions: ClassVar[dict[str | None, ssl.SSLSession]]
    _is_verified = False

    def do_handshake(self, block: bool = False) -> None:
        """See ssl.SSLSocket."""
        if (session := self.sessions.get(self.server_hostname)) is not None:
            self.session = session
        super().do_handshake(block)
        self._is_verified = True

    def close(self) -> None:
        """See ssl.SSLSocket."""
        # The session is complete only now: its ticket arrives after the handshake. A resumed session is known
        # already, and reading it takes 150 µs. A session whose certificate was refused must never be resumed.
        if self._is_verified and not self.session_reused and (session := self.session) is not None:
            self.sessions[self.server_hostname] = session
        super().close()


@functools.cache
def get_tls_context(verify: bool | str) -> ssl.SSLContext:
    """Return the process's one context for a CA bundle, which takes 13 ms to load."""
    path = DEFAULT_CA_BUNDLE_PATH if verify is True else verify or None
    is_folder = path is not None and os.path.isdir(path)
    context = ssl.create_default_context(cafile=None if is_folder else path, capath=path if is_folder else None)
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    # A class for each context, because a session belongs to one context.
    context.sslsocket_class = type("ResumingSocket", (_ResumingSocket,), {"sessions": {}})
    return context


class Connector:
    """Opens connections to one base URL, directly or through a proxy. It holds no socket, so it survives a fork.

    Without TLS a proxy forwards each request (``is_forwarded``). Then each request needs the complete
    URL and ``proxy_headers``. With TLS the proxy opens a tunnel and sees no request.
    """

    def __init__(self, base_url: str, proxy: str, context: ssl.SSLContext | None) -> None:
        manager = PoolManager(ssl_context=context)
        if proxy:
            headers = HTTPAdapter().proxy_headers(proxy)
            manager = ProxyManager(proxy, proxy_headers=headers, proxy_ssl_context=context, ssl_context=context)
        pool: Any = manager.connection_from_url(base_url)
        pool.ConnectionCls = TimedHTTPSConnection if pool.scheme == "https" else TimedHTTPConnection
        self._pool = pool
        self.is_forwarded = bool(proxy) and base_url.startswith("http:")
        self.proxy_headers: Mapping[str, str] = pool.proxy_headers if self.is_forwarded else {}

    def connect(self, seconds: float) -> TimedHTTPConnection:
        """Return a new connection, opened within ``seconds`` apart from the DNS lookup. Raises TransportError."""
        # The first steps of urllib3's urlopen(), which has no public way to stop before the request.
        pool = self._pool
        connection: TimedHTTPConnection = pool._new_conn()
        connection.timeout = seconds
        try:
            if pool.proxy and not self.is_forwarded:
                pool._prepare_proxy(connection)
            else:
                connection.connect()
            # urllib3 warns here about a certificate that it didn't verify.
            pool._validate_conn(connection)
            return connection
        except BaseException as error:
            try:
                failure = self._explain(error, connection)
            finally:
                connection.close()
        raise failure

    def _explain(self, error: BaseException, connection: TimedHTTPConnection) -> APIError:
        """Return the error for the caller. Raises any error again that doesn't come from connecting."""
        if not isinstance(error, APIError | OSError | ValueError | HTTPError):
            raise error
        if (proxy := self._pool.proxy) is None:
            return describe_failure(error, "MoEngage")
        name = f"the proxy {proxy.host}:{proxy.port}"
        if isinstance(error, TransportError) and not isinstance(error, DeadlineExceeded):
            # Only _tunnel() raises it.
            return ProxyError(f"{name} opened no tunnel: {error}")
        if connection.has_connected_to_proxy:
            return describe_failure(error, "MoEngage")
        return describe_failure(error, name, ProxyError)


class TimedHTTPConnection(HTTPConnection):
    """A connection whose ``timeout`` limits all of connecting: every address, the proxy's tunnel and TLS."""

    _until = 0.0

    def _left(self) -> float:
        # A socket with a timeout of 0.0 doesn't wait at all.
        return max(0.001, self._until - time.monotonic())

    def _new_conn(self) -> socket.socket:
        """Connect to the first address that answers. The addresses share the time, because one may never answer."""
        self._until = time.monotonic() + (self.timeout or 0.0)
        addresses = socket.getaddrinfo(self._dns_host.strip("[]"), self.port, type=socket.SOCK_STREAM)
        while True:
            *_, address = addresses.pop(0)
            share = self._left() / (len(addresses) + 1)
            try:
                sock = create_connection(
                    (str(address[0]), self.port), share, socket_options=self.default_socket_options
                )
            except OSError:
                if not addresses:
                    raise
            else:
                sock.settimeout(self._left())
                return sock

    def _tunnel(self) -> None:
        """Ask the proxy for a tunnel (RFC 9110 §9.3.6). Raises TransportError when the proxy opens none."""
        authority = f"{self._tunnel_host}:{self._tunnel_port}"
        fields: Mapping[str, str] = self._tunnel_headers  # type: ignore[attr-defined]
        peer = f"the proxy {self.host}:{self.port}"
        exchange = HTTPExchange(self.sock, lambda is_reusable: None, peer=peer, has_body=False)
        exchange.send(memoryview(write_request("CONNECT", authority, {"Host": authority, **fields})), self._left())
        response = exchange.receive(self._left())
        if response is None:
            raise DeadlineExceeded(f"{peer} did not answer in time")
        if not 200 <= response.status < 300:
            raise TransportError(f"it answered {response.status}")
        self.sock.settimeout(self._left())


class TimedHTTPSConnection(TimedHTTPConnection, HTTPSConnection):
    """See TimedHTTPConnection."""

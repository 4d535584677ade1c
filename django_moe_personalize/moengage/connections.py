"""Open connections to MoEngage. ``requests`` chooses the proxy and the CA bundle.

docs/architecture.md says why the package uses no Session.
"""

from __future__ import annotations

import functools
import os
import socket
import ssl
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any, ClassVar
from urllib.parse import urlsplit

from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies, select_proxy
from urllib3.exceptions import InsecureRequestWarning
from urllib3.util import parse_url
from urllib3.util.ssltransport import SSLTransport

from django_moe_personalize.exceptions import APIError, DeadlineExceeded, ProxyError, ProxyTimeout, TransportError
from django_moe_personalize.moengage.http1 import HTTPExchange, describe_failure, write_head
from django_moe_personalize.resilience import monotonic

Address = tuple[int, tuple[Any, ...]]
"""The family of an address, and the address as ``socket`` takes it."""

_PORTS = {"http": 80, "https": 443}


def choose_proxy(base_url: str, proxies: Mapping[str, str] | None, *, trust_env: bool) -> str:
    """Return the URL of the proxy for ``base_url``, or ``""``. Raises ValueError if the URL isn't http:// or https://."""
    proxy = select_proxy(base_url, dict(proxies or {}))
    if proxy is None and trust_env:
        proxy = select_proxy(base_url, get_environ_proxies(base_url, no_proxy=None))
    if not proxy:
        return ""
    with suppress(ValueError):
        parts = parse_url(proxy if "://" in proxy else f"http://{proxy}")
        # Connector doesn't support SOCKS: the call would bypass a SOCKS proxy.
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
    context.set_alpn_protocols(["http/1.1"])
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
        url = urlsplit(base_url)
        self._target = self._end = url.hostname or "", url.port or _PORTS[url.scheme]
        self._context = context if url.scheme == "https" else None
        self._proxy_context: ssl.SSLContext | None = None
        self.proxy = ""
        """The name of the proxy in messages, or ``""``."""
        self.proxy_headers: Mapping[str, str] = {}
        if proxy:
            end = parse_url(proxy)
            self._end = str(end.host).strip("[]"), end.port or _PORTS[str(end.scheme)]
            self._proxy_context = proxy_context if end.scheme == "https" else None
            self.proxy = f"the proxy {end.host}:{self._end[1]}"
            self.proxy_headers = HTTPAdapter().proxy_headers(proxy)
        self.is_forwarded = bool(proxy) and url.scheme == "http"
        self.peer = f"MoEngage through {self.proxy}" if proxy else "MoEngage"

    def look_up(self) -> list[Address]:
        """Return the addresses of the host or the proxy, IPv6 and IPv4 in turn (RFC 8305 §4). Raises TransportError."""
        try:
            rows = socket.getaddrinfo(*self._end, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            failure = self._explain(error)
        else:
            families: dict[int, dict[Address, None]] = {}
            for family, *_, address in rows:
                families.setdefault(family, {})[family, address] = None
            return [address for turn in zip_longest(*families.values()) for address in turn if address]
        raise failure

    def connect(self, address: Address, seconds: float) -> socket.socket:
        """Return the socket of a new connection. ``seconds`` limits all steps together. Raises TransportError."""
        until, is_at_proxy = monotonic() + seconds, False
        sock: Any = socket.socket(address[0], socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(_left(until))
            sock.connect(address[1])
            if self._proxy_context is not None:
                sock = _start_tls(sock, self._proxy_context, self._end[0], until)
            is_at_proxy = True
            if self._context is not None:
                if self.proxy:
                    self._tunnel(sock, until)
                sock = _start_tls(sock, self._context, self._target[0], until)
            return sock  # type: ignore[no-any-return]
        except BaseException as error:
            sock.close()
            failure = self._explain(error, is_at_proxy)
        raise failure

    def _tunnel(self, sock: socket.socket, until: float) -> None:
        """Ask the proxy for a tunnel (RFC 9110 §9.3.6). Raises TransportError if the proxy doesn't open a tunnel."""
        host, port = self._target
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        exchange = HTTPExchange(sock, lambda is_reusable: None, peer=self.proxy, has_body=False)
        head = write_head("", {"Host": authority, **self.proxy_headers}, "CONNECT", authority)
        exchange.send(memoryview(head + b"\r\n"), _left(until))
        response = exchange.receive(_left(until))
        if response is None:
            raise ProxyTimeout(f"{self.proxy} did not answer in time")
        if not 200 <= response.status < 300:
            reason = " (wrong user or password)" if response.status == 407 else ""
            raise ProxyError(f"it answered {response.status}{reason}", status=response.status)

    def _explain(self, error: BaseException, is_at_proxy: bool = False) -> APIError:
        """Return the APIError for ``error``. If the connection didn't cause ``error``, raise ``error`` unchanged."""
        if not isinstance(error, APIError | OSError | ValueError):
            raise error
        if isinstance(error, TransportError) and not isinstance(error, DeadlineExceeded):
            # Only _tunnel() raises a TransportError.
            return ProxyError(f"{self.proxy} opened no tunnel: {error}", status=getattr(error, "status", None))
        if not self.proxy or (is_at_proxy and not isinstance(error, DeadlineExceeded)):
            return describe_failure(error, "MoEngage")
        return describe_failure(error, self.proxy, ProxyError, ProxyTimeout)


def _left(until: float) -> float:
    # At least 1 ms, because a timeout of 0.0 makes a socket non-blocking.
    return max(0.001, until - monotonic())


def _start_tls(sock: Any, context: ssl.SSLContext, host: str, until: float) -> Any:
    if context.verify_mode == ssl.CERT_NONE:
        message = f"Unverified HTTPS request is being made to host '{host}'."
        warnings.warn(message, InsecureRequestWarning, stacklevel=2)
    sock.settimeout(_left(until))
    # The certificate has the name without the dot that may end the name of a host.
    if isinstance(sock, ssl.SSLSocket):
        # TLS inside the TLS of the proxy.
        return SSLTransport(sock, context, host.rstrip("."))
    return context.wrap_socket(sock, server_hostname=host.rstrip("."))

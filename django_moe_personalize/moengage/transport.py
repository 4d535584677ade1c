"""RequestsTransport: sends requests to MoEngage over HTTP, on connections that are kept open."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

from urllib3.util.connection import is_connection_dropped

from django_moe_personalize.exceptions import DeadlineExceeded, TransportError
from django_moe_personalize.moengage.base_url import validate_base_url
from django_moe_personalize.moengage.connections import Connector, choose_proxy, choose_verify, get_tls_context
from django_moe_personalize.moengage.http1 import HTTPExchange, NotTakenError, Request, Response, write_request

if TYPE_CHECKING:
    from urllib3.connection import HTTPConnection

    from django_moe_personalize.resilience import Deadline

_SEND_SECONDS: Final = 0.05
"""How long start() may take. A request fits into the socket's buffer, unless the server has stopped reading."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class RequestsTransport:
    """Send requests over HTTP, on connections that stay open. Thread-safe.

    - ``base_url``: https, or http on loopback
    - ``connect_timeout``: the most seconds that it takes to connect, with all addresses, a proxy and TLS
    - ``timeout``: the most seconds of a call that has a longer deadline or none
    - ``pool_maxsize``: how many idle connections stay open
    - ``proxies``: as in ``requests``, such as ``{"https": "http://proxy:3128"}``, but without SOCKS
    - ``trust_env``: take proxies and, if ``verify`` is ``True``, the CA bundle from the environment
    - ``verify``: ``True`` for the CA bundle of ``requests``, a CA file or folder, ``False`` for any certificate

    A call ends on time, however slowly a response drips. Only the system's DNS lookup has no timeout, so
    a page calls from a thread that it can abandon. The transport follows no redirect, reads no netrc and
    keeps no cookie: a visitor's cookie must not travel with another visitor's request. After a fork the
    child opens its own connections. Raises ValueError for a base URL, proxy or CA path that can't be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout: float = 3.0,
        timeout: float = 30.0,
        pool_maxsize: int = 128,
        proxies: Mapping[str, str] | None = None,
        trust_env: bool = False,
        verify: bool | str = True,
    ) -> None:
        self._pid = os.getpid()
        self._idle: deque[HTTPConnection] = deque()
        self.base_url = validate_base_url(base_url)
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._pool_maxsize = pool_maxsize
        proxy = choose_proxy(self.base_url, proxies, trust_env=trust_env)
        verify = choose_verify(verify, trust_env=trust_env)
        # Plain HTTP has no certificates, but the way to a proxy may.
        is_plain = self.base_url.startswith("http:") and not proxy
        self._connector = Connector(self.base_url, proxy, None if is_plain else get_tls_context(verify))
        parts = urlsplit(self.base_url)
        self._prefix = self.base_url if self._connector.is_forwarded else parts.path
        self._fields = {"Accept-Encoding": "gzip", **self._connector.proxy_headers}
        self._host = parts.netloc.removesuffix(f":{_DEFAULT_PORTS[parts.scheme]}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.base_url}>"

    def __del__(self) -> None:
        self.close()

    def send(self, request: Request, *, deadline: Deadline) -> Response:
        """Return the response, whatever its status; redirects too.

        Raises DeadlineExceeded, TransportError for no whole response, InvalidResponseError for a body
        above 1 MiB or compressed in another way than gzip. The request is sent again once when an
        idle connection turns out to be dead.
        """
        left = deadline.remaining()
        if left == 0.0:
            raise DeadlineExceeded("no time was left to ask MoEngage")
        until = time.monotonic() + (self._timeout if left is None else min(left, self._timeout))
        data = self._write(request)
        try:
            return self._attempt(data, until, self._take())
        except NotTakenError:
            pass
        # On a new connection, because the other idle connections are probably dead, too.
        return self._attempt(data, until, None)

    def start(self, request: Request) -> HTTPExchange | None:
        """Send on an open connection and return at once; ``None`` when there is none, or it turned out dead."""
        data = self._write(request)
        if (connection := self._take()) is None:
            return None
        exchange = self._lend(connection, was_idle=True)
        try:
            exchange.send(data, _SEND_SECONDS)
        except TransportError:
            return None
        return exchange

    def close(self) -> None:
        """Close the idle connections. The transport may be used again. A child process closes only its own copies."""
        idle, self._idle = self._idle, deque()
        # Another thread may have taken the last connection.
        with suppress(IndexError):
            while idle:
                idle.popleft().close()

    def _attempt(self, data: memoryview, until: float, connection: HTTPConnection | None) -> Response:
        was_idle = connection is not None
        if connection is None:
            connection = self._connector.connect(min(self._connect_timeout, until - time.monotonic()))
        exchange = self._lend(connection, was_idle=was_idle)
        exchange.send(data, until - time.monotonic())
        response = exchange.receive(until - time.monotonic())
        if response is None:
            exchange.release()
            raise DeadlineExceeded("MoEngage did not answer in time")
        return response

    def _write(self, request: Request) -> memoryview:
        """Return the request as bytes, in a view that hides them: an error report prints the locals of every frame."""
        query = f"?{request.query}" if request.query else ""
        length = {"Content-Length": str(len(request.body))} if request.method != "GET" else {}
        return memoryview(
            write_request(
                request.method,
                f"{self._prefix}{request.path}{query}",
                {"Host": self._host, **request.headers, **self._fields, **length},
                request.body,
            )
        )

    def _take(self) -> HTTPConnection | None:
        """Return the idle connection that was used last, or ``None``. Drops connections that the server has closed.

        urllib3's own queue takes 200 bytecodes more for each call, and logs a warning when it is full.
        """
        # Two processes on one connection would read each other's responses. No lock, because a lock that is
        # held during a fork stays locked in the child. Two threads that both get here lose one connection.
        if self._pid != os.getpid():
            self.close()
            self._pid = os.getpid()
        idle = self._idle
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                return None
            if not is_connection_dropped(connection):
                return connection
            connection.close()

    def _lend(self, connection: HTTPConnection, *, was_idle: bool) -> HTTPExchange:
        """Return an exchange on a connection. A reusable connection becomes idle afterwards."""
        sock = cast(socket.socket, connection.sock)
        return HTTPExchange(sock, partial(self._take_back, connection, self._idle), was_idle=was_idle)

    def _take_back(self, connection: HTTPConnection, idle: deque[HTTPConnection], is_reusable: bool) -> None:
        # Another ``idle`` means that the transport was closed meanwhile.
        if not is_reusable or idle is not self._idle:
            connection.close()
            return
        idle.append(connection)
        if len(idle) > self._pool_maxsize:
            # Another thread may have taken the last connection.
            with suppress(IndexError):
                idle.popleft().close()

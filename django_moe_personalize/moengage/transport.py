"""RequestsTransport: sends requests to MoEngage over HTTP, on connections that stay open."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Final, cast
from urllib.parse import urlsplit

from urllib3.connection import HTTPConnection
from urllib3.util.connection import is_connection_dropped

from django_moe_personalize.exceptions import DeadlineExceeded, TransportError
from django_moe_personalize.moengage.base_url import validate_base_url
from django_moe_personalize.moengage.connections import Connector, choose_proxy, choose_verify, get_tls_context
from django_moe_personalize.moengage.http1 import HTTPExchange, NotTakenError, Request, Response, write_request
from django_moe_personalize.resilience import Deadline

_SEND_SECONDS: Final = 0.05
"""The most seconds of start(). The request fits into the socket's buffer, unless the server has stopped reading."""


class RequestsTransport:
    """Send requests over HTTP, on connections that stay open. Thread-safe.

    - ``base_url``: https, or http on loopback
    - ``connect_timeout``: the most seconds to connect, including all addresses, the proxy and TLS
    - ``timeout``: the most seconds of a call without a deadline, or with a longer deadline
    - ``pool_maxsize``: how many idle connections stay open
    - ``proxies``: as in ``requests``, such as ``{"https": "http://proxy:3128"}``, but without SOCKS
    - ``trust_env``: read the proxies and, if ``verify`` is ``True``, the CA bundle from the environment
    - ``verify``: ``True`` for the CA bundle of ``requests``, the path of a CA file or folder, or ``False`` to accept
      any certificate

    A slow response can't make a call longer than its deadline. Only the system's DNS lookup has no timeout, so a page
    connects in a worker thread and doesn't wait for a thread that hangs. The transport doesn't follow redirects, read
    ``.netrc`` or keep cookies: a visitor's cookie must not travel with another visitor's request. After a fork, the
    child process opens its own connections. Raises ValueError for an invalid base URL, proxy or CA path.
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
        # Plain HTTP needs no TLS context, unless the URL of a proxy is https.
        is_plain = self.base_url.startswith("http:") and not proxy
        self._connector = Connector(self.base_url, proxy, None if is_plain else get_tls_context(verify))
        parts = urlsplit(self.base_url)
        self._prefix = self.base_url if self._connector.is_forwarded else parts.path
        self._fields = {"Accept-Encoding": "gzip", **self._connector.proxy_headers}
        self._host = parts.netloc.removesuffix(":443" if parts.scheme == "https" else ":80")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.base_url}>"

    def __del__(self) -> None:
        self.close()

    def send(self, request: Request, *, deadline: Deadline) -> Response:
        """Return the response, also with an error status or a redirect.

        If the server has closed an idle connection, the transport sends the request once more on a new connection.
        Raises DeadlineExceeded, TransportError if no complete response arrives, and InvalidResponseError for a body
        above 1 MiB or with a compression other than gzip.
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
        # On a new connection, because the server has probably closed the other idle connections too.
        return self._attempt(data, until, None)

    def start(self, request: Request) -> HTTPExchange | None:
        """Send on an idle connection and return immediately. Returns ``None`` if no idle connection works."""
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
        """Close the idle connections. The transport stays usable. A child process closes only its own copies."""
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
        """Return the request as bytes, in a memoryview, whose repr hides the content from error reports."""
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
        """Return the most recently used idle connection, or ``None``. Drops connections that the server has closed.

        urllib3's own queue takes 200 bytecodes more for each call, and logs a warning when the queue is full.
        """
        # After a fork: two processes on one connection would read each other's responses. This code uses no lock,
        # because a lock that a thread holds during the fork stays locked in the child. Two threads at this point at
        # the same time lose one connection at most.
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
        """Return an exchange on a connection. After the exchange, a reusable connection becomes idle."""
        sock = cast(socket.socket, connection.sock)
        return HTTPExchange(sock, partial(self._take_back, connection, self._idle), was_idle=was_idle)

    def _take_back(self, connection: HTTPConnection, idle: deque[HTTPConnection], is_reusable: bool) -> None:
        # A different ``idle`` means that close() ran in the meantime.
        if not is_reusable or idle is not self._idle:
            connection.close()
            return
        idle.append(connection)
        if len(idle) > self._pool_maxsize:
            # Another thread may have taken the last connection.
            with suppress(IndexError):
                idle.popleft().close()

"""RequestsTransport: sends requests to MoEngage over HTTP, on connections that stay open.

If the site uses OpenTelemetry or Sentry, each call has a span. This module imports neither of them. A span belongs to
the current span of the caller, such as a page. Without a current span, as in a thread that sends the events of many
visitors, a call gets no span: each call would be a trace of its own.

Calls have no trace headers (``traceparent``, ``sentry-trace``, ``baggage``). MoEngage doesn't continue traces, and
could use the id of a trace to connect calls that the package sends without the visitor's id.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Final
from urllib.parse import urlsplit

from django_moe_personalize.exceptions import DeadlineExceeded, TransportError
from django_moe_personalize.moengage.base_url import validate_base_url
from django_moe_personalize.moengage.connection_pool import Connection, ConnectionPool
from django_moe_personalize.moengage.connections import (
    Connector,
    choose_cert,
    choose_proxy,
    choose_verify,
    get_tls_context,
)
from django_moe_personalize.moengage.http1 import HTTPExchange, NotTakenError, Request, Response, write_head
from django_moe_personalize.resilience import Deadline, monotonic

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
    - ``verify``: ``True`` (the CA bundle of ``requests``), the path of a CA file or folder, or ``False`` (no check)
    - ``cert``: the client certificate, as in ``requests``: the path of a PEM file, or the paths of a certificate and
      its key. The key must have no password.

    A slow response or connection can't make a call longer than its deadline: threads in the background connect. The
    transport doesn't follow redirects, read ``.netrc`` or keep cookies: a visitor's cookie must not travel with another
    visitor's request. After a fork, the child process opens its own connections. Raises ValueError for an invalid base
    URL, proxy, CA path or certificate.
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
        cert: str | Sequence[str] | None = None,
    ) -> None:
        self.base_url = validate_base_url(base_url)
        self._timeout = timeout
        proxy = choose_proxy(self.base_url, proxies, trust_env=trust_env)
        verify, files = choose_verify(verify, trust_env=trust_env), choose_cert(cert)
        # Plain HTTP needs no TLS context, unless the URL of a proxy is https.
        is_plain = self.base_url.startswith("http:") and not proxy
        context = None if is_plain else get_tls_context(verify, *files)
        # As in requests, the proxy doesn't get the client certificate.
        connector = Connector(self.base_url, proxy, context, get_tls_context(verify) if proxy else None)
        self._pool = ConnectionPool(connector, connect_timeout=connect_timeout, max_idle=pool_maxsize)
        self.proxy = connector.proxy
        """The name of the proxy in messages, without its password, or ``""``."""
        parts = urlsplit(self.base_url)
        prefix = self.base_url if connector.is_forwarded else parts.path
        host = parts.netloc.removesuffix(":443" if parts.scheme == "https" else ":80")
        fields = {
            "Host": host,
            "Accept-Encoding": "gzip",
            **(connector.proxy_headers if connector.is_forwarded else {}),
        }
        # All fetches have the same head but for its length.
        self._write_head = lru_cache(maxsize=64)(partial(write_head, prefix, fields))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.base_url}>"

    def send(self, request: Request, *, deadline: Deadline) -> Response:
        """Return the response, also with an error status or a redirect.

        If the server has closed an idle connection, the transport sends the request once more on a new connection.
        Raises DeadlineExceeded, StillConnecting if a new connection takes too long, TransportError if no complete
        response arrives, and InvalidResponseError for a body above MAX_BYTES or with a compression other than gzip.
        """
        end_span = start_span(request, self.base_url) or repr
        try:
            response = self._send(self._write(request), self._find_end(deadline))
        except Exception as error:
            end_span(type(error).__name__)
            raise
        end_span(response.status)
        return response

    def _send(self, data: memoryview, until: float) -> Response:
        if (idle := self._pool.take()) is not None:
            try:
                return self._exchange(data, until, idle, was_idle=True)
            except NotTakenError:
                pass
        # A new connection, because the server has probably closed the other idle connections too.
        connection = self._pool.wait(until - monotonic(), is_new=idle is not None)
        return self._exchange(data, until, connection, was_idle=False)

    def start(self, request: Request) -> HTTPExchange | None:
        """Send on an idle connection and return immediately. Returns ``None`` if no idle connection works."""
        data = self._write(request)
        if (connection := self._pool.take()) is None:
            return None
        exchange = self._lend(connection, was_idle=True)
        try:
            exchange.send(data, _SEND_SECONDS)
        except TransportError:
            return None
        exchange.end_span = start_span(request, self.base_url)
        return exchange

    def connect(self, *, deadline: Deadline) -> None:
        """Open a connection and keep it idle, unless one is idle. Raises the same errors as send()."""
        until = self._find_end(deadline)
        connection = self._pool.take() or self._pool.wait(until - monotonic())
        self._pool.give_back(connection, self._pool.idle, is_reusable=True)

    def close(self) -> None:
        """Close the idle connections. The transport stays usable. A child process closes only its own copies."""
        self._pool.close()

    def _find_end(self, deadline: Deadline) -> float:
        left = deadline.remaining()
        if left == 0.0:
            raise DeadlineExceeded("no time was left to ask MoEngage")
        return monotonic() + (self._timeout if left is None else min(left, self._timeout))

    def _exchange(self, data: memoryview, until: float, connection: Connection, *, was_idle: bool) -> Response:
        exchange = self._lend(connection, was_idle=was_idle)
        exchange.send(data, until - monotonic())
        response = exchange.receive(until - monotonic())
        if response is None:
            exchange.abandon()
            raise DeadlineExceeded("MoEngage did not answer in time")
        return response

    def _write(self, request: Request) -> memoryview:
        """Return the request as bytes, in a memoryview, whose repr hides the content from error reports."""
        path = f"{request.path}?{request.query}" if request.query else request.path
        head = self._write_head(request.method, path, *request.headers.items())
        length = b"" if request.method == "GET" else b"Content-Length: %d\r\n" % len(request.body)
        return memoryview(b"%b%b\r\n%b" % (head, length, request.body))

    def _lend(self, connection: Connection, *, was_idle: bool) -> HTTPExchange:
        """Return an exchange on a connection. After the exchange, a reusable connection becomes idle."""
        connection.is_used = True
        end = partial(self._pool.give_back, connection, self._pool.idle)
        return HTTPExchange(connection.sock, end, was_idle=was_idle)


End = Callable[[int | str], None]
"""End a span. Takes the status of the response, or the name of the error."""


def start_span(request: Request, base_url: str) -> End | None:
    """Start a span for a call that begins now. Return ``None`` if no tracing tool has a current span."""
    modules = sys.modules
    otel, sentry = modules.get("opentelemetry.trace"), modules.get("sentry_sdk")
    if otel is None and sentry is None:
        return None
    ends: list[End] = []
    # A tracing tool may fail, but the page must not.
    with suppress(Exception):
        if otel is not None and otel.get_current_span().is_recording():
            ends.append(_start_otel(otel, request, base_url))
    with suppress(Exception):
        if sentry is not None and (parent := sentry.get_current_span()) is not None:
            ends.append(_start_sentry(parent, request, base_url))

    def end(outcome: int | str) -> None:
        for one in ends:
            with suppress(Exception):
                one(outcome)

    return end if ends else None


def _start_otel(otel: Any, request: Request, base_url: str) -> End:
    """Start a span with the attributes of OpenTelemetry's conventions for HTTP clients."""
    attributes = {"http.request.method": request.method, "url.full": base_url + request.path}
    tracer = otel.get_tracer("django_moe_personalize")
    span = tracer.start_span(f"{request.method} {request.path}", kind=otel.SpanKind.CLIENT, attributes=attributes)

    def end(outcome: int | str) -> None:
        is_status = isinstance(outcome, int)
        span.set_attribute("http.response.status_code" if is_status else "error.type", outcome)
        if not is_status or int(outcome) >= 400:
            span.set_status(otel.StatusCode.ERROR)
        span.end()

    return end


def _start_sentry(parent: Any, request: Request, base_url: str) -> End:
    span = parent.start_child(op="http.client", name=f"{request.method} {base_url}{request.path}")

    def end(outcome: int | str) -> None:
        if isinstance(outcome, int):
            span.set_http_status(outcome)
        else:
            span.set_status("deadline_exceeded" if outcome == "DeadlineExceeded" else "unknown_error")
        span.finish()

    return end

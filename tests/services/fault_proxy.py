"""A proxy between a site and the sandbox's process that fails on demand, in one way at a time.

with FaultProxy(sandbox_port) as proxy, proxy.failing(FAULTS["reset before headers"]):
    ...
"""

import contextlib
import gzip
import http.client
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from benchmarks import hostile
from tests.loopback import Exchange, Loopback, Received, build_head

WELL = {"Content-Type": "application/json"}
BIG = 2 * 1024 * 1024
SLOW = 3.0
"""Seconds of a response that comes after every page's deadline, but before a test's end."""

Behavior = Callable[[Exchange, Received], None]


@dataclass(frozen=True)
class Fault:
    """One way to fail: ``behave`` answers requests, ``listener`` says how connections fail before a request."""

    name: str
    behave: Behavior | None = None
    listener: Literal["", "refuse", "never accept", "never read", "hung names"] = ""

    def __str__(self) -> str:
        return self.name


class FaultProxy(Loopback):
    """Pass every request on to ``upstream_port``, except while it is ``failing``. Its port stays the same."""

    def __init__(self, upstream_port: int) -> None:
        super().__init__(self._act)
        self._upstream = threading.local()
        self._upstream_port = upstream_port
        self._fault: Fault | None = None
        self._fault_over = threading.Event()
        # Bound and never listening, so that no other program gets this port.
        self._guard = _bind(0)
        self._listener.close()
        self._listen()
        self.met = 0
        """How many requests or connections met the current fault."""

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        self._guard.close()

    @property
    def port(self) -> int:
        """The port, also while nothing listens on it."""
        return self._guard.getsockname()[1]

    @contextlib.contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Fail in this way while the context lasts, also on connections that are open already."""
        self.met = 0
        self._fault_over = threading.Event()
        with contextlib.ExitStack() as stack:
            stack.callback(self._recover)
            self._fault = fault
            if fault.listener in ("refuse", "never accept"):
                self._stop_listening()
                stack.callback(self._listen_again)
                if fault.listener == "never accept":
                    stack.enter_context(_fill_backlog(self.port))
            if fault.listener:
                self.drop_connections()
            yield

    def _recover(self) -> None:
        self._fault = None
        self._fault_over.set()

    def _listen(self) -> None:
        self._listener = _bind(self.port)
        self._listener.listen(128)

    def _listen_again(self) -> None:
        self._listen()
        self._start(self._accept)

    def _stop_listening(self) -> None:
        # shutdown() wakes a thread that waits in accept(). close() alone doesn't.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            super()._accept()

    def _serve(self, connection: socket.socket) -> None:
        try:
            super()._serve(connection)
        finally:
            if (upstream := getattr(self._upstream, "connection", None)) is not None:
                upstream.close()

    def _converse(self, connection: socket.socket) -> None:
        if self._fault is not None and self._fault.listener == "never read":
            self.met += 1
            self._fault_over.wait()
        else:
            super()._converse(connection)

    def _act(self, exchange: Exchange) -> None:
        fault = self._fault
        if fault is None or fault.behave is None:
            self._pass_on(exchange, exchange.received)
            return
        self.met += 1
        # A behavior that hangs ends with the fault.
        exchange.stopped = self._fault_over
        fault.behave(exchange, exchange.received)
        if self._fault_over.is_set():
            exchange.close()

    def _pass_on(self, exchange: Exchange, received: Received) -> None:
        status, headers, body = self.ask(received)
        exchange.reply(body, status=status, headers=headers)

    def ask(self, received: Received) -> tuple[str, dict[str, str], bytes]:
        """Return the sandbox's response."""
        upstream = getattr(self._upstream, "connection", None)
        if upstream is None:
            # Each thread serves one connection and has its own one to the sandbox.
            upstream = self._upstream.connection = http.client.HTTPConnection("127.0.0.1", self._upstream_port)
        upstream.request(received.method, received.target, received.body or None, received.headers)
        answer = upstream.getresponse()
        kept = {name: answer.headers[name] for name in ("Content-Type", "Retry-After") if name in answer.headers}
        return f"{answer.status} {answer.reason}", kept, answer.read()


def _bind(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


@contextlib.contextmanager
def _fill_backlog(port: int) -> Iterator[None]:
    """Listen and accept no connection. The queue is full, so connecting hangs."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_bind(port))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        probe = stack.enter_context(socket.socket())
        probe.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            probe.connect(("127.0.0.1", port))
            raise AssertionError("this system connects although nothing accepts the connection")
        yield


# The behaviors of a vendor on a bad day. Each gets the exchange and the request.


def _build_answer(body: bytes = b"", *, status: str = "200 OK", length: int | None = None, **headers: str) -> bytes:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return build_head(status, {**WELL, "Content-Length": str(len(body) if length is None else length), **given}) + body


def _reply(body: bytes = b"{}", *, status: str = "200 OK", **headers: str) -> Behavior:
    return lambda exchange, _: exchange.send(_build_answer(body, status=status, **headers))


def _then(end: Callable[[Exchange], None], data: bytes = b"") -> Behavior:
    def behave(exchange: Exchange, _: Received) -> None:
        exchange.send(data)
        end(exchange)

    return behave


def _drip(data: bytes, *, every: float = 0.02) -> Behavior:
    """Send the start of ``data`` at once and the rest byte by byte."""
    return lambda exchange, _: exchange.drip(data, every=every)


def _drip_body(exchange: Exchange, _: Received) -> None:
    exchange.send(_build_answer(length=BIG))
    exchange.drip(b" " * BIG, every=0.02)


def _endless(part: bytes, head: bytes = b"") -> Behavior:
    """Send ``part`` again and again until the client leaves."""

    def behave(exchange: Exchange, _: Received) -> None:
        exchange.send(head)
        while not exchange.stopped.wait(0.001):
            exchange.send(part)

    return behave


def _late(exchange: Exchange, _: Received) -> None:
    exchange.stopped.wait(SLOW)
    exchange.reply(b'{"experiences": {}}')


def _redirect(exchange: Exchange, received: Received) -> None:
    host = received.headers["host"]
    exchange.reply(status="307 Temporary Redirect", headers={"Location": f"http://{host}{received.target}?again"})


def _hostile(exchange: Exchange, _: Received) -> None:
    """Send one hostile body after the other. The page must show its defaults, so no body has a usable experience."""
    name = next(_hostile_names)
    exchange.reply(hostile.build(name, "other" if name in hostile.SMALL else "hero"))


_hostile_names = itertools.cycle(hostile.BUILDERS)
_HTML = b"<!doctype html><title>We will be back</title>"
_CHUNKED = build_head("200 OK", {**WELL, "Transfer-Encoding": "chunked"})
_CHUNK = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
_BOMB = gzip.compress(b" " * (64 * 1024 * 1024))
_ANSWER = _build_answer(b'{"experiences": {}}')

_BEHAVIORS: dict[str, Behavior] = {
    "latency above the deadline": _late,
    "drip headers": _drip(_ANSWER),
    "drip body": _drip_body,
    "drip chunks": lambda exchange, _: (exchange.send(_CHUNKED), exchange.drip(b"1\r\n \r\n" * BIG, every=0.02)),
    "reset before headers": _then(Exchange.reset),
    "reset after headers": _then(Exchange.reset, _build_answer(length=1000)),
    "reset mid-body": _then(Exchange.reset, _build_answer(b'{"experiences": {', length=1000)),
    "close before headers": _then(Exchange.close),
    "half-close before headers": _then(Exchange.half_close),
    "half-close mid-body": _then(Exchange.half_close, _build_answer(b'{"experiences": {', length=1000)),
    "hang before headers": _then(Exchange.hang),
    "hang after headers": _then(Exchange.hang, _build_answer(length=1000)),
    "truncated body": _then(Exchange.close, _build_answer(b'{"experiences": {', length=1000)),
    "truncated chunk": _then(Exchange.close, _CHUNKED + _CHUNK[:1000]),
    "endless body": _endless(_CHUNK, _CHUNKED),
    "endless headers": _endless(b"X-Filler: 0123456789\r\n", b"HTTP/1.1 200 OK\r\n"),
    "endless 100 Continue": _endless(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "oversize": _reply(b" " * BIG),
    "429 with Retry-After": _reply(status="429 Too Many Requests", Retry_After="1"),
    "429 without Retry-After": _reply(status="429 Too Many Requests"),
    "500": _reply(_HTML, status="500 Internal Server Error"),
    "503": _reply(status="503 Service Unavailable"),
    "401": _reply(status="401 Unauthorized"),
    "403": _reply(status="403 Forbidden"),
    "307 to itself": _redirect,
    "HTML with 200": _reply(_HTML, Content_Type="text/html"),
    "malformed JSON": _reply(b'{"experiences": {"hero": }'),
    "JSON of another shape": _reply(b'["experiences"]'),
    "deeply nested JSON": _reply(b'{"experiences":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "hostile bodies": _hostile,
    "gzip bomb": _reply(_BOMB, Content_Encoding="gzip"),
    "gzip that is none": _reply(b'{"experiences": {}}', Content_Encoding="gzip"),
    "unknown content encoding": _reply(b'{"experiences": {}}', Content_Encoding="br"),
    "empty 200": _reply(b""),
    "not HTTP": _then(Exchange.close, b"SSH-2.0-OpenSSH_9.2\r\n"),
}

FAULTS: dict[str, Fault] = {name: Fault(name, behave) for name, behave in _BEHAVIORS.items()} | {
    "refuse": Fault("refuse", listener="refuse"),
    "never accept": Fault("never accept", listener="never accept"),
    "accept and never read": Fault("accept and never read", listener="never read"),
    "hung DNS": Fault("hung DNS", listener="hung names"),
}

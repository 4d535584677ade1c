"""A real HTTP(S) server on loopback that misbehaves to order, on raw sockets.

    with Loopback(lambda exchange: exchange.reply(b"{}")) as server:
        RequestsTransport(server.url).send(...)

What happens to each request is a function of one ``Exchange``. A connection is kept for the next
request unless the function closed or reset it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Received:
    """One request as it came over the wire; header names are lower-case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Exchange:
    """One request, and the connection to answer it on; ``turn`` counts the connection's requests from 1."""

    received: Received
    turn: int
    connection: socket.socket
    stopped: threading.Event
    is_open: bool = field(default=True)

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def reply(self, body: bytes = b"", *, status: str = "200 OK", headers: dict[str, str] | None = None) -> None:
        """Write a whole answer with its length."""
        head = {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}
        self.send(build_head(status, head) + body)

    def drip(self, data: bytes, *, every: float) -> None:
        """Write a byte at a time, until the client has gone or the server stops."""
        with contextlib.suppress(OSError):
            for byte in data:
                self.send(bytes([byte]))
                if self.stopped.wait(every):
                    return

    def hang(self) -> None:
        """Answer nothing until the server stops."""
        self.stopped.wait()

    def close(self) -> None:
        """End the connection in order."""
        self.is_open = False
        self.connection.close()

    def half_close(self) -> None:
        """Stop sending, and keep the other direction open until the server stops."""
        self.is_open = False
        self.connection.shutdown(socket.SHUT_WR)
        self.hang()

    def reset(self) -> None:
        """End the connection with a RST."""
        self.is_open = False
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def build_head(status: str, headers: dict[str, str]) -> bytes:
    """Return a status line and headers, up to the empty line."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


class Loopback:
    """Serve on a free port of ``host`` while in its ``with`` block, with a thread for each connection."""

    def __init__(
        self, behave: Callable[[Exchange], None], *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        self._behave = behave
        self._tls = tls
        self._host = host
        self._stopped = threading.Event()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=64)
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.received: list[Received] = []
        self.connections = 0

    @property
    def port(self) -> int:
        return self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}/v1"

    def __enter__(self) -> Loopback:
        self._start(self._accept)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._stopped.set()
        # A connection of our own wakes accept(), which closing alone does not everywhere.
        with contextlib.suppress(OSError):
            socket.create_connection((self._host, self.port), timeout=1).close()
        self.drop_connections()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def drop_connections(self) -> None:
        """Close every connection, as a server does with idle ones."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                # SSLSocket.shutdown() would also end TLS: the thread that serves would then read encrypted bytes.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            connection, _address = self._listener.accept()
            if self._stopped.is_set():
                connection.close()
                return
            self.connections += 1
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.add(connection)
            self._converse(connection)
        self._open.discard(connection)
        connection.close()

    def _converse(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as reader:
            turn, is_open = 0, True
            while is_open and (received := _receive(reader)) is not None:
                turn += 1
                self.received.append(received)
                # The reader shares the socket: close() would wait for it.
                exchange = Exchange(received, turn, connection, self._stopped)
                self._behave(exchange)
                is_open = exchange.is_open


def _receive(reader: object) -> Received | None:
    line = reader.readline().decode("latin-1").split()
    if not line:
        return None
    headers = {}
    while (field_line := reader.readline().decode("latin-1").strip()) != "":
        name, _, value = field_line.partition(":")
        headers[name.lower()] = value.strip()
    return Received(line[0], line[1], headers, reader.read(int(headers.get("content-length", 0))))

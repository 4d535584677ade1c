"""The sandbox as an HTTP server. MoEngage's API is under ``/v1``, the control paths are under ``/_sandbox``."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import socketserver
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from django_moe_personalize.moengage.http1 import Request, Response
from django_moe_personalize.sandbox.control import CONTROL_PATH, Control, is_control_allowed
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.faults import Answer, FaultInjector, Faults
from django_moe_personalize.sandbox.responses import RefusedError
from django_moe_personalize.sandbox.validation import MAX_BODY

BASE_PATH = "/v1"
IDLE_TIMEOUT = 30.0
"""The seconds for which a connection may be silent, between requests or inside a request."""

MAX_READ = 8 * MAX_BODY
"""The largest body that the server reads, in bytes. After a larger body it closes the connection."""

LINGER = 1.0
"""The seconds for which the server still reads from a connection before it closes the connection."""

DRIP_STEPS = 20

logger = logging.getLogger("django_moe_personalize")


class SandboxServer(ThreadingHTTPServer):
    """A server for one engine, bound to the address ``host`` and to ``port`` (0 for any free port).

    Call ``serve_forever()`` to run the server. Each connection has a daemon thread. Raises OSError if the address can't
    be bound. ``pages``, if set, answers all paths other than those of the API and the control paths. It gets only
    requests from this machine.
    """

    daemon_threads = True
    request_queue_size = 128
    pages: Callable[[Request], Response] | None = None

    def __init__(self, engine: Engine, host: str = "127.0.0.1", port: int = 0, *, faults: Faults | None = None) -> None:
        self.engine = engine
        self.injector = FaultInjector(faults)
        self.control = Control(engine, self.injector)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind the address. HTTPServer would also look up the host's name, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        """The base URL for clients, such as ``http://127.0.0.1:8899/v1``."""
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{host}:{self.server_port}{BASE_PATH}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an unexpected error of a connection in one line. Ignore a client that disconnects."""
        error = sys.exception()
        if not isinstance(error, ConnectionError):
            logger.error("The sandbox's server failed to answer a request: %r", error)

    def answer(self, request: Request, client_host: str, host_header: str) -> Answer:
        """Return the answer to a request. ``request.path`` still begins with ``/v1`` or ``/_sandbox``."""
        if request.path.startswith(f"{BASE_PATH}/"):
            path = request.path.removeprefix(BASE_PATH)
            below = Request(request.method, path, request.query, request.headers, request.body)
            return self.injector.answer(self.engine.handle, below)
        handle = self.control.handle if request.path.startswith(f"{CONTROL_PATH}/") else self.pages
        if handle is not None and not is_control_allowed(client_host, host_header):
            description = "This path is only for this machine. Use localhost or 127.0.0.1 in the URL."
            return Answer(RefusedError(403, "Forbidden", description).response)
        # Without pages, the control paths answer each other path with a 404.
        return Answer((handle or self.control.handle)(request))


class _Handler(BaseHTTPRequestHandler):
    """Read requests and write responses. The response to a broken request is an error in MoEngage's format."""

    server: SandboxServer
    protocol_version = "HTTP/1.1"
    # For requests without a readable version. The base class assumes HTTP/0.9, and then sends no status line.
    default_request_version = "HTTP/1.0"
    timeout = IDLE_TIMEOUT
    disable_nagle_algorithm = True
    wbufsize = -1

    def __getattr__(self, name: str) -> Any:
        # The base class looks for do_<METHOD>. The engine decides which methods exist.
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def version_string(self) -> str:
        """Return the value of the Server header, without Python's version."""
        return "moe-sandbox"

    def date_time_string(self, timestamp: float | None = None) -> str:
        """Return the value of the Date header, by the clock that also dates the events."""
        return super().date_time_string(self.server.engine.clock() if timestamp is None else timestamp)

    def log_message(self, format: str, *args: Any) -> None:
        """Log a request at the level DEBUG."""
        logger.debug("Sandbox: " + format, *args)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that the server can't read with an error in MoEngage's format. Close the connection."""
        self.close_connection = True
        title = HTTPStatus(code).phrase
        self._write(Answer(RefusedError(code, title, message or f"{title}.").response))
        self._linger()

    def _serve(self) -> None:
        try:
            body = self._read_body()
        except RefusedError as refused:
            self.send_error(refused.status, refused.description)
            return
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, path, query, headers, body)
        answer = self.server.answer(request, self.client_address[0], headers.get("host", ""))
        if answer.latency:
            time.sleep(answer.latency)
        if answer.reset:
            self._reset()
        else:
            self._write(answer)
            if self.close_connection:
                self._linger()

    def _read_body(self) -> bytes:
        if "transfer-encoding" in self.headers:
            raise RefusedError(411, "Length Required", "The sandbox accepts no chunked body. Send Content-Length.")
        lengths = set(self.headers.get_all("content-length", ["0"]))
        text = lengths.pop()
        if lengths or not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise RefusedError(400, "Bad Request", "Content-Length is not a single number.")
        length = int(text)
        if length > MAX_READ:
            self.close_connection = True
        body = self.rfile.read(min(length, MAX_READ))
        if len(body) < min(length, MAX_READ):
            raise RefusedError(400, "Bad Request", "The body is shorter than its Content-Length.")
        return body

    def _write(self, answer: Answer) -> None:
        response = answer.response
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(response.body)))
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        self._write_body(response, answer.drip)

    def _write_body(self, response: Response, drip: float) -> None:
        if not drip:
            self.wfile.write(response.body)
            return
        self.wfile.flush()
        step = len(response.body) // DRIP_STEPS + 1
        for start in range(0, len(response.body), step):
            time.sleep(drip / DRIP_STEPS)
            self.wfile.write(response.body[start : start + step])
            self.wfile.flush()

    def _linger(self) -> None:
        """Read the rest of the client's data. A close with unread data resets the connection and loses the response."""
        end = time.monotonic() + LINGER
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER)
            while time.monotonic() < end and self.connection.recv(65_536):
                pass

    def _reset(self) -> None:
        """Reset the connection: with a linger time of 0, close() sends an RST."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        os.close(self.connection.detach())

"""A call in two steps on a kept connection: the request is written now, the answer read when it is wanted.

Between the two nothing waits, neither a thread nor an event loop. What arrives is collected until
``http.client`` finds a whole answer in it.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from typing import cast

from django_moe_personalize.exceptions import APIError, InvalidResponseError
from django_moe_personalize.moengage.answers import MAX_BYTES, build_failure, build_response, refuse_size
from django_moe_personalize.moengage.messages import Request, Response
from django_moe_personalize.moengage.pools import CheckedResponse, DiedIdleError, TimedHTTPConnection, TimedHTTPPool

_CHUNK = 64 * 1024
_MAX_HEAD = _CHUNK
_MAX_RECEIVED = MAX_BYTES + _MAX_HEAD
_NOT_YET = (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_SEND_SECONDS = 0.05
"""What sending may take: some kilobytes go into the socket's buffer at once, or the connection is of no use."""


class WarmExchange:
    """One request and its answer on a ``connection`` of ``pool``, which gets it back; see messages.Exchange.

    ``base_path`` is the path of the base URL.
    """

    __slots__ = (
        "_answer",
        "_arrived",
        "_base_path",
        "_body",
        "_connection",
        "_method",
        "_pool",
        "_sock",
    )

    def __init__(self, pool: TimedHTTPPool, connection: TimedHTTPConnection, base_path: str) -> None:
        self._pool = pool
        self._connection: TimedHTTPConnection | None = connection
        self._sock = cast(socket.socket, connection.sock)
        self._base_path = base_path
        self._method = ""
        self._arrived = _Arrived()
        self._answer: http.client.HTTPResponse | None = None
        self._body = bytearray()

    @property
    def has_begun(self) -> bool:
        """Whether some of the answer was received."""
        return self._arrived.size > 0

    def fileno(self) -> int:
        """Return what an event loop watches for the answer."""
        return self._sock.fileno()

    def send(self, request: Request) -> bool:
        """Write the request and return True; False when the connection turned out to be dead."""
        self._method = request.method
        try:
            self._sock.settimeout(_SEND_SECONDS)
            self._sock.sendall(self._write(request))
        except OSError:
            self._give_back(alive=False)
            return False
        return True

    def _write(self, request: Request) -> bytes:
        target = self._base_path + request.path + (f"?{request.query}" if request.query else "")
        fields = {"Host": self._pool.authority, **request.headers, "Accept-Encoding": "gzip"}
        if request.body:
            fields["Content-Length"] = str(len(request.body))
        lines = "\r\n".join([f"{name}: {value}" for name, value in fields.items()])
        return f"{request.method} {target} HTTP/1.1\r\n{lines}\r\n\r\n".encode("latin-1") + request.body

    def receive(self, seconds: float = 0.0) -> Response | None:
        """Return the answer once all of it is there, waiting at most ``seconds``; ``None`` when it is not yet.

        May be called again after ``None``. Raises NotTakenError when the connection had died idle,
        TransportError for half an answer, InvalidResponseError for one above 1 MiB or compressed
        in another way than asked for.
        """
        outcome = self._attempt(seconds)
        # Raised anew: the frames below hold the visitor's answer.
        if isinstance(outcome, APIError):
            raise outcome
        return outcome

    def release(self) -> None:
        """Close the connection if an answer may still come on it; nobody else may read that."""
        self._give_back(alive=not self._method)

    def _attempt(self, seconds: float) -> Response | APIError | None:
        until = time.monotonic() + seconds
        try:
            while (response := self._parse()) is None:
                if not self._pull(max(0.0, until - time.monotonic())):
                    return None
            return response
        except InvalidResponseError as error:
            failure: APIError = InvalidResponseError(str(error))
        except (http.client.HTTPException, OSError) as error:
            failure = build_failure(error)
        self._give_back(alive=False)
        return failure

    def _pull(self, seconds: float) -> bool:
        """Collect what has come, or what comes within ``seconds``; return False when that is nothing."""
        self._sock.settimeout(seconds)
        try:
            data = self._sock.recv(_CHUNK)
        except _NOT_YET:
            return False
        except ConnectionResetError:
            if self._arrived.size:
                raise
            raise DiedIdleError from None
        self._arrived.feed(data)
        if self._arrived.size > _MAX_RECEIVED:
            raise refuse_size()
        return True

    def _parse(self) -> Response | None:
        """Return the answer if what has arrived is all of it. Raises HTTPException when no more will come."""
        arrived = self._arrived
        if not arrived.size:
            if arrived.ended:
                raise DiedIdleError
            return None
        try:
            answer = self._answer = self._answer or self._read_head()
            self._read_body(answer)
        except _NotYetError:
            if self._answer is None and arrived.size > _MAX_HEAD:
                raise http.client.HTTPException("the answer does not begin") from None
            return None
        # Whatever came beyond the answer is nobody's.
        self._give_back(alive=not answer.will_close and arrived.tell() == arrived.size)
        return build_response(answer.status, answer.headers.items(), bytes(self._body))

    def _read_head(self) -> http.client.HTTPResponse:
        answer = CheckedResponse(cast(socket.socket, self._arrived), method=self._method)
        answer.begin()
        if (answer.length or 0) > MAX_BYTES:
            raise refuse_size()
        self._arrived.keep()
        return answer

    def _read_body(self, answer: http.client.HTTPResponse) -> None:
        # Chunks as they come: to read all of them again with each would take the square of the time.
        read = answer.read1 if answer.chunked else answer.read
        while piece := read():
            self._body += piece
            if len(self._body) > MAX_BYTES:
                raise refuse_size()

    def _give_back(self, *, alive: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if not alive:
                connection.close()
            self._pool.give_back(connection)


class _NotYetError(Exception):
    """What has arrived ends before what was to be read of it."""


class _Arrived(io.BytesIO):
    """What has arrived, as the file that ``http.client`` makes of a socket.

    Reading beyond it raises _NotYetError and goes back to where ``keep`` was called last, so that
    the same can be read again when there is more of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self.ended = False
        self._kept = 0

    def feed(self, data: bytes) -> None:
        """Add what has come; nothing is the end."""
        at = self.tell()
        self.seek(self.size)
        self.size += self.write(data)
        self.seek(at)
        self.ended = not data

    def keep(self) -> None:
        """Take what was read so far as read."""
        self._kept = self.tell()

    def makefile(self, _mode: str) -> _Arrived:
        """Return itself."""
        return self

    def readline(self, size: int | None = -1) -> bytes:
        """Return a whole line, or as much of a longer one as ``size`` allows."""
        line = super().readline(size)
        self._check(line.endswith(b"\n") or len(line) == size)
        return line

    def read(self, size: int | None = -1) -> bytes:
        """Return ``size`` bytes, or all until the end."""
        self._check(size is not None and 0 <= size <= self.size - self.tell())
        return super().read(size)

    def read1(self, size: int | None = -1) -> bytes:
        """Return some bytes, at most ``size``, and keep what was read: ``http.client`` knows how far it is."""
        data = super().read1(size)
        self.keep()
        self._check(bool(data))
        return data

    def close(self) -> None:
        """Stay open, so that ``tell`` says afterwards how much was read."""

    def _check(self, is_there: bool) -> None:
        if not is_there and not self.ended:
            self.seek(self._kept)
            raise _NotYetError

"""The urllib3 connections under ``RequestsTransport``: they end on time, and know when they died idle.

A socket's timeout bounds one read, so an answer that drips a byte at a time outlives it without
end. Here the timeout a connection is given for its answer is a moment, for headers and body.
"""

from __future__ import annotations

import http.client
import io
import queue
import socket
import time
from typing import Any, cast

from urllib3 import HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection, port_by_scheme
from urllib3.util.connection import is_connection_dropped


class DiedIdleError(ConnectionResetError):
    """A kept connection turned out to be dead before one byte of the answer: safe to ask again."""


class TimedReader(io.RawIOBase):
    """Read a socket until the moment its timeout, at the time of making, names."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._raw = cast(io.RawIOBase, sock.makefile("rb", buffering=0))
        self._until = time.monotonic() + (sock.gettimeout() or 0.0)
        self._begun = False

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read what has come, or wait for more. Raises TimeoutError once the moment is over."""
        left = self._until - time.monotonic()
        if left <= 0.0:
            raise TimeoutError("the answer took too long")
        self._sock.settimeout(left)
        try:
            count = self._raw.readinto(buffer)
        except ConnectionResetError:
            if self._begun:
                raise ConnectionAbortedError("reset in the middle of an answer") from None
            raise
        self._begun = True
        return count

    def close(self) -> None:
        """Close the file; the socket stays as long as its connection wants it."""
        self._raw.close()
        super().close()

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return the buffered file that ``http.client`` asks a socket for."""
        return io.BufferedReader(self)


class CheckedResponse(http.client.HTTPResponse):
    """An answer whose headers are whole."""

    def begin(self) -> None:
        """Read status and headers. Raises HTTPException for headers that are cut short or garbled.

        urllib3 would go on with what it understood, and put the rest, in the vendor's words, into
        the site's log.
        """
        super().begin()
        # http.client passes over 100 alone: the answer would be left for the connection's next visitor.
        while self.status < 200:
            self.headers = cast(http.client.HTTPMessage, None)
            super().begin()
        if self.headers.defects:
            raise http.client.HTTPException("the headers of the answer cannot be read")


class TimedResponse(CheckedResponse):
    """An answer read through a TimedReader."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(cast(socket.socket, TimedReader(sock)), *args, **kwargs)


class TimedHTTPConnection(HTTPConnection):
    """A connection whose answers end on time and which knows whether it has answered before."""

    response_class = TimedResponse
    _has_answered = False

    def connect(self) -> None:
        """Connect anew: nothing has been answered on this socket."""
        self._has_answered = False
        super().connect()

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3's own does
        """Return the answer. Raises DiedIdleError when a kept connection closed without one."""
        try:
            response = super().getresponse()
        except ConnectionResetError as error:
            if self._has_answered:
                raise DiedIdleError(*error.args) from error
            raise
        self._has_answered = True
        return response


class TimedHTTPSConnection(TimedHTTPConnection, HTTPSConnection):
    """See TimedHTTPConnection."""


class TimedHTTPPool(HTTPConnectionPool):
    """A pool of TimedHTTPConnection."""

    ConnectionCls = TimedHTTPConnection

    def take_warm(self) -> TimedHTTPConnection | None:
        """Return a kept connection that is alive; ``None`` when one would have to be made, which may block."""
        # Once: another thread may close the pool meanwhile.
        kept = self.pool
        try:
            # The one put back last; below it are places for connections that were never made.
            connection = kept.get_nowait() if kept is not None else None
        except queue.Empty:
            return None
        if connection is not None and not is_connection_dropped(connection):
            return cast(TimedHTTPConnection, connection)
        self.give_back(connection)
        return None

    def give_back(self, connection: TimedHTTPConnection | None) -> None:
        """Keep a connection, or the place of one, for who comes next."""
        self._put_conn(connection)

    def _put_conn(self, conn: Any) -> None:
        """See urllib3, which warns of a connection that is one too many; after a rush of pages that is no news."""
        kept = self.pool
        try:
            if kept is not None:
                kept.put(conn, block=False)
                return
        except queue.Full:
            pass
        if conn is not None:
            conn.close()

    @property
    def authority(self) -> str:
        """The ``Host`` header of its requests."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port in (None, port_by_scheme[self.scheme]) else f"{host}:{self.port}"


class TimedHTTPSPool(TimedHTTPPool, HTTPSConnectionPool):
    """A pool of TimedHTTPSConnection."""

    ConnectionCls = TimedHTTPSConnection


TIMED_POOLS = {"http": TimedHTTPPool, "https": TimedHTTPSPool}

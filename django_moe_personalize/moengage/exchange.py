"""One request in flight: written at once, and its response read when the caller wants it.

No thread and no event loop waits in between. A socket's own timeout limits one read, so a dripping
response outlasts it. An exchange limits each read to the rest of the caller's time.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

from django_moe_personalize.exceptions import APIError, DeadlineExceeded, TransportError
from django_moe_personalize.moengage.http1 import decompress, read_response
from django_moe_personalize.moengage.messages import NotTakenError, Response

_CHUNK: Final = 64 * 1024
_NOT_YET: Final = (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class HTTPExchange:
    """A request in flight on ``sock``, whose response is read later. Not thread-safe.

    The exchange calls ``end(is_reusable)`` once, when it no longer needs the connection; a reusable
    connection may serve another request. ``was_idle``: the connection has served a request before.
    ``peer`` names the other end in error messages. ``has_body`` is false for the response to CONNECT.
    """

    __slots__ = ("_end", "_peer", "_received", "_sock", "_steps", "_was_idle")

    def __init__(
        self,
        sock: socket.socket,
        end: Callable[[bool], object],
        *,
        was_idle: bool = False,
        peer: str = "MoEngage",
        has_body: bool = True,
    ) -> None:
        self._sock = sock
        self._end: Callable[[bool], object] | None = end
        self._was_idle = was_idle
        self._peer = peer
        self._received = bytearray()
        self._steps = read_response(self._received, has_body=has_body)
        next(self._steps)

    @property
    def has_begun(self) -> bool:
        """Whether a part of the response has been received."""
        return bool(self._received)

    def fileno(self) -> int:
        """Return the file descriptor that becomes readable when more of the response arrives."""
        return self._sock.fileno()

    def release(self, *, is_reusable: bool = False) -> None:
        """Close the connection, or give it back; a no-op once the response was received."""
        end, self._end = self._end, None
        if end is not None:
            end(is_reusable)

    def send(self, data: memoryview, seconds: float) -> None:
        """Write the request within ``seconds``. On an error, closes the connection and raises TransportError."""
        until = time.monotonic() + seconds
        failure = None
        try:
            while data:
                self._sock.settimeout(max(0.0, until - time.monotonic()))
                data = data[self._sock.send(data) :]
        except BrokenPipeError:
            # The server may have answered before it read the whole request, for example with a 413.
            pass
        except BaseException as error:
            failure = self._fail(error)
        if failure is not None:
            raise failure

    def receive(self, seconds: float) -> Response | None:
        """Return the response, or ``None`` when it isn't whole after ``seconds``; then it may be called again.

        Raises NotTakenError when the connection had died before the request reached the server,
        TransportError when no whole response will come, InvalidResponseError for one that is too large,
        RuntimeError after the exchange has ended.
        """
        if self._end is None:
            # The next bytes on the connection may be another visitor's response.
            raise RuntimeError("this exchange has ended")
        outcome = self._receive(time.monotonic() + seconds)
        # Raised here, because an error report prints the frames below, which hold the response.
        if isinstance(outcome, APIError):
            raise outcome
        return outcome

    def _receive(self, until: float) -> Response | APIError | None:
        outcome = None
        try:
            while outcome is None:
                self._sock.settimeout(max(0.0, until - time.monotonic()))
                before = len(self._received)
                # urllib3's TLS inside TLS returns the number 0 when the connection has ended.
                self._received += self._sock.recv(_CHUNK) or b""
                if not self._received:
                    raise ConnectionResetError("closed without a response")
                outcome = self._steps.send(len(self._received) == before)
            response, is_reusable = outcome
            self.release(is_reusable=is_reusable)
            if encoding := response.headers.get("content-encoding"):
                response.body = decompress(response.body, encoding)
            return response
        except _NOT_YET:
            return None
        except BaseException as error:
            return self._fail(error)

    def _fail(self, error: BaseException) -> APIError:
        """Close the connection and return the error for the caller. Raises any error again that isn't the call's."""
        self.release()
        if not isinstance(error, APIError | OSError):
            raise error
        if self._was_idle and not self._received and isinstance(error, ConnectionError):
            return NotTakenError("MoEngage closed an idle connection")
        return describe_failure(error, self._peer)


def describe_failure(error: Exception, peer: str, kind: type[TransportError] = TransportError) -> APIError:
    """Return the caller's error for one of the socket, of TLS or of urllib3.

    ``peer`` names the other end. The cause is the operating system's or OpenSSL's error, without its
    frames: error reports print them, and they hold secrets.
    """
    if isinstance(error, APIError):
        return error.with_traceback(None)
    if isinstance(error, _NOT_YET):
        failure: TransportError = DeadlineExceeded(f"{peer} did not answer in time")
    elif isinstance(error, ssl.SSLCertVerificationError):
        failure = kind(f"{peer}'s certificate was refused: {error.verify_message}")
    else:
        failure = kind(f"no whole response from {peer} ({type(error).__name__})")
    if isinstance(error, OSError):
        error.__context__ = error.__cause__ = None
        failure.__cause__ = error.with_traceback(None)
    return failure

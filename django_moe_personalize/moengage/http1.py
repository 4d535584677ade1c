"""HTTP/1.1: requests and responses, and one request in flight on a socket (RFC 9112).

The package doesn't use ``http.client``: ``http.client`` reads only from a blocking file and accepts malformed
heads, and it needs 3,400 bytecodes for a head. This module needs 300.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Generator, Mapping
from types import MappingProxyType
from typing import Final, TypeVar

from django_moe_personalize.exceptions import APIError, DeadlineExceeded, InvalidResponseError, TransportError

MAX_BYTES = 1024 * 1024
"""The largest body that a response may have, before and after decompression."""

MAX_HEAD = 64 * 1024
"""The most bytes that the heads of a response may have, and its trailers."""

MAX_FIELDS = 100
"""The most header fields of a response, as in ``http.client``."""

MAX_CHUNKS = 4096
"""The most chunks that a body may have. A million chunks of one byte would take two seconds, 4096 take 8 ms."""

_FIELD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++:[^\r\n\0]*+\r?\n"
_HEAD = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n\0]*+)?\r?\n((?:" + _FIELD + rb")*+)\r?\n")
_FIELD_PARTS = re.compile(r"([^:]++):([^\r\n]*+)\r?\n")
_BLANK_LINE = re.compile(rb"\n\r?\n")
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*+(?:;[^\r\n\0]*+)?\r\n")
_MAX_CHUNK_SIZE = 256
_TRAILERS = re.compile(rb"(?:" + _FIELD + rb")*+\r?\n")

T = TypeVar("T")
_Steps = Generator[None, bool, T]

_CHUNK: Final = 64 * 1024
_NOT_YET: Final = (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class Request:
    """A GET or POST of ``path``, which starts with ``/`` and is below the base URL; ``query`` is encoded already.

    Headers and body hold the key and the visitor, so the repr leaves them out.
    """

    # Not a named tuple: many error reporters print the items of a tuple, whatever its repr says.
    __slots__ = ("body", "headers", "method", "path", "query")

    def __init__(
        self, method: str, path: str, query: str = "", headers: Mapping[str, str] = _NO_HEADERS, body: bytes = b""
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"Request(method={self.method!r}, path={self.path!r}, query={self.query!r})"


class Response:
    """One whole response. Header names are in lower case; the body is decompressed."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str] = _NO_HEADERS, body: bytes = b"") -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"Response(status={self.status!r})"


class NotTakenError(TransportError):
    """The server closed an idle connection and answered nothing: the request may safely be sent again."""


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


def write_request(method: str, target: str, fields: Mapping[str, str], body: bytes = b"") -> bytes:
    """Return a request as bytes. Raises ValueError for a line break in the target or in a header field."""
    lines = [f"{method} {target} HTTP/1.1", *map(": ".join, fields.items()), "", ""]
    head = "\r\n".join(lines)
    if head.count("\r") + head.count("\n") == 2 * (len(fields) + 2):
        return head.encode("latin-1") + body
    # An error report prints the locals of each frame.
    del target, fields, body, lines, head
    raise ValueError("a request must not have a line break in its path, query or header fields")


def read_response(received: bytearray, *, has_body: bool = True) -> Generator[tuple[Response, bool] | None, bool, None]:
    """Read the final response out of ``received``, to which the caller adds the bytes that arrive.

    Start it with ``next()``. Then resume it with ``send(False)`` when bytes have arrived and with
    ``send(True)`` when the server has closed the connection. It yields ``None`` until the response is
    whole, then the response, its body still compressed, and whether the connection may serve another
    request. ``has_body`` is false for the response to CONNECT. Raises TransportError for half a
    response or one that is not valid HTTP, InvalidResponseError for a body above MAX_BYTES.
    """
    status = end = 0
    while status < 200:
        # Interim responses may come first (RFC 9110 §15.2).
        is_old, status, fields, end = yield from _read_head(received, end)
    is_reusable = not is_old and "close" not in fields.get("connection", "").lower()
    start, body = end, b""
    if not has_body or status in (204, 304):
        pass
    elif "transfer-encoding" in fields:
        # Two readers could find different ends: request smuggling starts like that (RFC 9112 §6.1).
        if is_old or "content-length" in fields or fields["transfer-encoding"].lower() != "chunked":
            raise _refuse("its length is ambiguous")
        body, end = yield from _read_chunks(received, start)
    elif "content-length" in fields:
        if not _LENGTH.fullmatch(length := fields["content-length"]):
            raise _refuse("its length is ambiguous")
        if int(length) > MAX_BYTES:
            raise _refuse_size()
        end += int(length)
        while len(received) < end:
            yield from _wait()
        body = bytes(received[start:end])
    else:
        body = yield from _read_to_end(received, start)
        end, is_reusable = len(received), False
    # Extra bytes would become the beginning of the next visitor's response.
    yield Response(status, fields, body), is_reusable and end == len(received)


def decompress(body: bytes, encoding: str) -> bytes:
    """Return a body decompressed. Raises InvalidResponseError unless it is one whole gzip stream within MAX_BYTES."""
    encoding = encoding.lower()
    if not body or encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip"):
        raise InvalidResponseError("the response is compressed in a way that the request did not offer")
    inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(body, MAX_BYTES + 1)
    except zlib.error:
        plain = b""
    if len(plain) > MAX_BYTES:
        raise _refuse_size()
    if not inflater.eof or inflater.unused_data:
        raise InvalidResponseError("the response is not one whole gzip stream")
    return plain


def _wait() -> _Steps[None]:
    if (yield):
        raise TransportError("the connection was closed in the middle of the response")


def _read_head(received: bytearray, start: int) -> _Steps[tuple[bool, int, dict[str, str], int]]:
    """Return whether this is HTTP/1.0, the status, the fields and where the head ends."""
    while len(received) < start + 7:
        yield from _wait()
    # Checked before the head is complete, because another protocol may never send an empty line.
    if not received.startswith(b"HTTP/1.", start):
        raise _refuse("it does not begin with HTTP/1")
    end = yield from _find_blank_line(received, start, MAX_HEAD)
    head = _HEAD.fullmatch(received, start, end)
    if head is None:
        raise _refuse("its status line or a header field is garbled")
    minor, status, block = head.groups()
    parts = _FIELD_PARTS.findall(block.decode("latin-1"))
    if len(parts) > MAX_FIELDS:
        raise _refuse(f"it has more than {MAX_FIELDS} header fields")
    fields: dict[str, str] = {}
    for name, value in parts:
        name, value = name.lower(), value.strip(" \t")
        # RFC 9110 §5.3. Two lengths become "2, 3", which is not a number, so the response is refused.
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return minor == b"0", int(status), fields, end


def _find_blank_line(received: bytearray, start: int, most: int) -> _Steps[int]:
    """Return where the next empty line ends, which must not be after ``most``. Searches each byte once."""
    scanned = start
    while True:
        found = _BLANK_LINE.search(received, scanned)
        if (found.end() if found else len(received)) > most:
            raise _refuse(f"it has more than {MAX_HEAD} bytes of header fields")
        if found:
            return found.end()
        scanned = max(start, len(received) - 2)
        yield from _wait()


def _read_chunks(received: bytearray, at: int) -> _Steps[tuple[bytes, int]]:
    """Return a chunked body, and where its trailers end."""
    body = bytearray()
    for _ in range(MAX_CHUNKS):
        while not (line := _CHUNK_SIZE.match(received, at, at + _MAX_CHUNK_SIZE)):
            if len(received) - at >= _MAX_CHUNK_SIZE or b"\n" in received[at:]:
                raise _refuse("a chunk has no size")
            yield from _wait()
        start = line.end()
        size = int(line[1], 16)
        if not size:
            break
        if len(body) + size > MAX_BYTES:
            raise _refuse_size()
        at = start + size + 2
        while len(received) < at:
            yield from _wait()
        if not received.endswith(b"\r\n", start, at):
            raise _refuse("a chunk is longer than its size")
        body += received[start : at - 2]
    else:
        raise _refuse(f"it has more than {MAX_CHUNKS} chunks")
    # The empty line begins with the newline after the last chunk's size, unless trailers come before it.
    end = yield from _find_blank_line(received, start - 1, start + MAX_HEAD)
    if not _TRAILERS.fullmatch(received, start, end):
        raise _refuse("a trailer is garbled")
    return bytes(body), end


def _read_to_end(received: bytearray, start: int) -> _Steps[bytes]:
    while len(received) - start <= MAX_BYTES:
        if (yield):
            return bytes(received[start:])
    raise _refuse_size()


def _refuse(problem: str) -> TransportError:
    return TransportError(f"the response is not valid HTTP/1.1: {problem}")


def _refuse_size() -> InvalidResponseError:
    return InvalidResponseError(f"the response is larger than {MAX_BYTES} bytes")

"""HTTP/1.1: requests and responses, and one request in flight on a socket (RFC 9112).

This module replaces ``http.client``, which reads only from a blocking file and accepts malformed heads. To read a
head, ``http.client`` needs 3,400 bytecodes. This module needs 300.
"""

from __future__ import annotations

import copy
import re
import socket
import ssl
import zlib
from collections.abc import Callable, Generator, Mapping
from operator import itemgetter
from types import MappingProxyType
from typing import Final, TypeVar

from django_moe_personalize.exceptions import APIError, DeadlineExceeded, InvalidResponseError, TransportError
from django_moe_personalize.moengage.json_values import MAX_LIGHT_VALUES
from django_moe_personalize.resilience import monotonic

MAX_BYTES = 256 * 1024
"""The largest body of a response, before and after decompression. MoEngage limits the bodies that it accepts to 128 KB
(contract §7). A full fetch of 25 experiences may have 10 KB each."""

MAX_HEAD = 64 * 1024
"""The most bytes that all heads of a response may have together. The same limit applies to its trailers."""

MAX_FIELDS = 100
"""The most header fields that a response may have. ``http.client`` has the same limit."""

MAX_CHUNKS = 1024
"""The most chunks that a body may have. A million chunks of one byte would take 2 s to read. 1024 chunks take 2 ms."""

_FIELD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++:[^\r\n\0]*+\r?\n"
_HEAD = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n\0]*+)?\r?\n((?:" + _FIELD + rb")*+)\r?\n")
_FIELD_PARTS = re.compile(r"([^:]++):[ \t]*+((?:[^ \t\r\n]++|[ \t]++(?=[^ \t\r\n]))*+)[ \t]*+\r?\n")
_BLANK_LINE = re.compile(rb"\n\r?\n")
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*+(?:;[^\r\n\0]*+)?\r\n")
_MAX_CHUNK_SIZE = 256
_TRAILERS = re.compile(rb"(?:" + _FIELD + rb")*+\r?\n")

T = TypeVar("T")
_Steps = Generator[None, bool | None, T]

_CHUNK: Final = 64 * 1024
_NOT_YET: Final = (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_get_name, _get_value = itemgetter(0), itemgetter(1)
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class Request:
    """A GET or POST request. ``path`` starts with ``/`` and is relative to the base URL. ``query`` is URL-encoded.

    The repr leaves out the headers and the body, because they contain the API key and the visitor's data.
    """

    # Not a named tuple, because many error reporters print the items of a tuple instead of its repr.
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
    """A complete response. Header names are in lower case. The body is decompressed."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str] = _NO_HEADERS, body: bytes = b"") -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"Response(status={self.status!r})"


def is_light(body: bytes) -> bool:
    """Return whether a page's own thread or event loop may build the values of a body."""
    return body.count(b",") + body.count(b"[") + body.count(b"{") <= MAX_LIGHT_VALUES


class NotTakenError(TransportError):
    """The server closed an idle connection without a response. Sending the same request again is safe."""


class HTTPExchange:
    """One request on the socket ``sock``. The caller sends the request now and reads the response later.

    The exchange calls ``end(is_reusable)`` once: when it no longer needs the socket, which may carry another request.
    abandon() calls ``end(False, late)``: ``late`` is the rest of the exchange. ``was_idle``: the socket has carried a
    request before. ``peer`` is the server in messages. The response to CONNECT has no body. Not thread-safe.
    """

    __slots__ = ("_end", "_peer", "_received", "_sock", "_steps", "_was_idle", "end_span")

    def __init__(
        self,
        sock: socket.socket,
        end: Callable[..., object],
        *,
        was_idle: bool = False,
        peer: str = "MoEngage",
        has_body: bool = True,
    ) -> None:
        self._sock = sock
        self._end: Callable[..., object] | None = end
        self._was_idle = was_idle
        self.end_span: Callable[[int | str], None] | None = None
        """See ``transport.End``."""
        self._peer = peer
        self._received = bytearray()
        self._steps = read_response(self._received, has_body=has_body)

    @property
    def has_begun(self) -> bool:
        """Whether a part of the response has arrived."""
        return bool(self._received)

    def fileno(self) -> int:
        """Return the socket's file descriptor. The descriptor becomes readable when a part of the response arrives."""
        return self._sock.fileno()

    def release(self, *, is_reusable: bool = False, outcome: int | str = "released") -> None:
        """Close the connection, or make it idle again, once. ``outcome`` is a status, or the name of an error."""
        end, self._end = self._end, None
        if end is not None:
            if self.end_span is not None:
                self.end_span(outcome)
            end(is_reusable)

    def abandon(self) -> None:
        """Let ``end`` read the rest of a late response, so that the connection may stay open. Ends the exchange."""
        if (end := self._end) is not None:
            late, self._end = copy.copy(self), lambda is_reusable: None
            late.end_span = None
            self.release(outcome="DeadlineExceeded")
            end(False, late)

    def send(self, data: memoryview, seconds: float) -> None:
        """Write the request within ``seconds``. After an error, closes the connection and raises TransportError."""
        until = monotonic() + seconds
        failure = None
        try:
            while data:
                self._sock.settimeout(max(0.0, until - monotonic()))
                data = data[self._sock.send(data) :]
        except BrokenPipeError:
            # The server may have responded before it read the complete request, for example with status 413.
            pass
        except BaseException as error:
            failure = self._fail(error)
        if failure is not None:
            raise failure

    def receive(self, seconds: float) -> Response | None:
        """Return the response, or ``None`` if the response isn't complete after ``seconds``: call it again.

        Raises NotTakenError if the server closed the connection before the request arrived, TransportError if no
        complete response will arrive, InvalidResponseError if the response is too large or wrongly compressed,
        and RuntimeError after the end of the exchange.
        """
        if self._end is None:
            # The next bytes on the connection may belong to another visitor's response.
            raise RuntimeError("this exchange has ended")
        outcome = self._receive(seconds)
        # Raised here and not in _receive(): error reports print the local variables of that frame with the response.
        if isinstance(outcome, APIError):
            raise outcome
        return outcome

    def _receive(self, seconds: float) -> Response | APIError | None:
        until = monotonic() + seconds
        try:
            while True:
                self._sock.settimeout(seconds)
                before = len(self._received)
                # At the end of the connection, urllib3's TLS inside TLS returns the number 0 instead of bytes.
                self._received += self._sock.recv(_CHUNK) or b""
                if not self._received:
                    raise ConnectionResetError("closed without a response")
                if outcome := self._steps.send(True if len(self._received) == before else None):
                    break
                seconds = max(0.0, until - monotonic())
            response, is_reusable = outcome
            self.release(is_reusable=is_reusable, outcome=response.status)
            if encoding := response.headers.get("content-encoding"):
                response.body = decompress(response.body, encoding)
            return response
        except _NOT_YET:
            return None
        except BaseException as error:
            return self._fail(error)

    def _fail(self, error: BaseException) -> APIError:
        """Close the connection and return the error for the caller. Raises an ``error`` that has another origin."""
        self.release(outcome=type(error).__name__)
        if not isinstance(error, APIError | OSError):
            raise error
        if self._was_idle and not self._received and isinstance(error, ConnectionError):
            return NotTakenError("MoEngage closed an idle connection")
        return describe_failure(error, self._peer)


def describe_failure(
    error: Exception,
    peer: str,
    kind: type[TransportError] = TransportError,
    late: type[TransportError] = DeadlineExceeded,
) -> APIError:
    """Return this package's error for an error of the socket, of TLS or of urllib3.

    The error is a ``late`` for a timeout, and a ``kind`` for the rest. ``peer`` names the server or the proxy. An
    OSError becomes the cause, without its traceback: error reports print the local variables in the traceback, and
    these variables contain secrets.
    """
    if isinstance(error, APIError):
        return error.with_traceback(None)
    if isinstance(error, _NOT_YET):
        failure = late(f"{peer} did not answer in time")
    elif isinstance(error, ssl.SSLCertVerificationError):
        failure = kind(f"{peer}'s certificate was refused: {error.verify_message}")
    else:
        failure = kind(f"no whole response from {peer} ({type(error).__name__})")
    if isinstance(error, OSError):
        error.__context__ = error.__cause__ = None
        failure.__cause__ = error.with_traceback(None)
    return failure


def write_head(prefix: str, fields: Mapping[str, str], method: str, path: str, *more: tuple[str, str]) -> bytes:
    """Return the lines of a request's head as bytes, without the empty line. The target is ``prefix`` and ``path``.

    Raises ValueError if the target or a header field contains a line break.
    """
    lines = [f"{method} {prefix}{path} HTTP/1.1", *map(": ".join, (*fields.items(), *more)), ""]
    head = "\r\n".join(lines)
    if head.count("\r") + head.count("\n") == 2 * (len(lines) - 1):
        return head.encode("latin-1")
    # Error reports print local variables.
    del prefix, fields, path, more, lines, head
    raise ValueError("a request must not have a line break in its path, query or header fields")


def read_response(
    received: bytearray, *, has_body: bool = True
) -> Generator[tuple[Response, bool] | None, bool | None, None]:
    """Read the final response from ``received``, to which the caller appends the bytes that arrive.

    Call ``send(None)`` when bytes have arrived, and ``send(True)`` when the server has closed the connection. The
    generator yields ``None`` until the response is complete. Then the generator yields the response, with its body
    still compressed, and whether the connection is reusable. ``has_body`` is false for the response to CONNECT.
    Raises TransportError if the response is cut short or isn't valid HTTP, and InvalidResponseError if the body is
    larger than MAX_BYTES.
    """
    status = end = 0
    while status < 200:
        # Interim responses with a status below 200 may come first (RFC 9110 §15.2).
        head = _HEAD.match(received, end, MAX_HEAD) or (yield from _wait_for_head(received, end))
        status, end = int(head[2]), head.end()
    is_old, fields, start, body = head[1] == b"0", _read_fields(head[3].decode("latin-1")), end, b""
    is_reusable = not is_old and "close" not in fields.get("connection", "").lower()
    if not has_body or status in (204, 304):
        pass
    elif "transfer-encoding" in fields:
        # Two programs could disagree about the end of this body. Request smuggling uses this (RFC 9112 §6.1).
        if is_old or "content-length" in fields or fields["transfer-encoding"].lower() != "chunked":
            raise _refuse("its length is ambiguous")
        body, end = yield from _read_chunks(received, start)
    elif "content-length" in fields:
        if not _LENGTH.fullmatch(length := fields["content-length"]):
            raise _refuse("its length is ambiguous")
        if (size := int(length)) > MAX_BYTES:
            raise _refuse_size()
        end += size
        while len(received) < end:
            yield from _wait()
        body = bytes(received[start:end])
    else:
        body = yield from _read_to_end(received, start)
        end, is_reusable = len(received), False
    # With extra bytes, the connection isn't reusable: they would become the start of the next visitor's response.
    yield Response(status, fields, body), is_reusable and end == len(received)


def decompress(body: bytes, encoding: str) -> bytes:
    """Return the decompressed body. Raises InvalidResponseError for anything but one gzip stream within MAX_BYTES."""
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


def _wait_for_head(received: bytearray, start: int) -> _Steps[re.Match[bytes]]:
    while len(received) < start + 7:
        yield from _wait()
    # Checked before the head is complete, because a server of another protocol may never send an empty line.
    if not received.startswith(b"HTTP/1.", start):
        raise _refuse("it does not begin with HTTP/1")
    end = yield from _find_blank_line(received, start, MAX_HEAD)
    if (head := _HEAD.fullmatch(received, start, end)) is None:
        raise _refuse("its status line or a header field is garbled")
    return head


def _read_fields(block: str) -> dict[str, str]:
    parts = _FIELD_PARTS.findall(block)
    if len(parts) > MAX_FIELDS:
        raise _refuse(f"it has more than {MAX_FIELDS} header fields")
    fields = dict(zip(map(str.lower, map(_get_name, parts)), map(_get_value, parts), strict=True))
    if len(fields) < len(parts):
        # Join repeated fields (RFC 9110 §5.3). Two Content-Lengths become "2, 3": read_response() refuses that.
        for repeated in fields:
            fields[repeated] = ", ".join([value for name, value in parts if name.lower() == repeated])
    return fields


def _find_blank_line(received: bytearray, start: int, most: int) -> _Steps[int]:
    """Return the index after the next empty line. Raises TransportError if the index is above ``most``."""
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
    """Return a chunked body, and the index after its trailers."""
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
    # Without trailers, the newline after the size of the last chunk is the start of the empty line.
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

"""HTTP/1.1 as bytes: the reader accepts each valid response in any pieces, and refuses anything else (RFC 9112)."""

import gzip
import http.client
import io
import itertools
import tracemalloc
import zlib
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize.exceptions import InvalidResponseError, TransportError
from django_moe_personalize.moengage.http1 import (
    MAX_BYTES,
    MAX_CHUNKS,
    MAX_HEAD,
    Response,
    decompress,
    read_response,
    write_head,
)
from tests.anything import patiently
from tests.error_reports import describe_report
from tests.loopback import build_head

OK = "HTTP/1.1 200 OK\r\n"
LENGTH = build_head("200 OK", {"Content-Length": "8"})
CHUNKED = build_head("200 OK", {"Transfer-Encoding": "chunked"})
SMALL = build_head("200 OK", {"Content-Length": "2"}) + b"{}"

RESPONSES = {
    "length": (LENGTH + b'{"a": 1}', 200, b'{"a": 1}', True),
    "other-case": (b'HTTP/1.1 200 OK\r\ncontent-LENGTH:8\r\n\r\n{"a": 1}', 200, b'{"a": 1}', True),
    "no-reason": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}", True),
    "bare-newlines": (b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}", 200, b"{}", True),
    "nothing": (build_head("503 Busy", {"Content-Length": "0", "Retry-After": "5"}), 503, b"", True),
    "no-content": (build_head("204 No Content", {}), 204, b"", True),
    "not-modified": (build_head("304 Not Modified", {"Content-Length": "999"}), 304, b"", True),
    "chunked": (CHUNKED + b'3\r\n{"a\r\n5 ;x=y\r\n": 1}\r\n0\r\n\r\n', 200, b'{"a": 1}', True),
    "trailers": (CHUNKED + b"2\r\n{}\r\n00;x\r\nA: b\r\nC: d\r\n\r\n", 200, b"{}", True),
    "no-chunks": (CHUNKED + b"0\r\n\r\n", 200, b"", True),
    "hex-size": (CHUNKED + b"0aA\r\n" + b"x" * 170 + b"\r\n0\r\n\r\n", 200, b"x" * 170, True),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n" + SMALL, 200, b"{}", True),
    "hints": (b"HTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Go\r\n\r\n" + SMALL, 200, b"{}", True),
    "last": (build_head("200 OK", {"Connection": "Close", "Content-Length": "2"}) + b"{}", 200, b"{}", False),
    "http-1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}", False),
}
"""Responses with a known end: the bytes, the status, the body, and whether the connection is reusable."""

UNUSABLE = {
    "not-http": "SSH-2.0-OpenSSH\r\n",
    "another-version": "HTTP/2.0 200 OK\r\n",
    "another-minor-version": "HTTP/1.2 200 OK\r\n\r\n",
    "two-digits": "HTTP/1.1 20 OK\r\n\r\n",
    "four-digits": "HTTP/1.1 2000 OK\r\n\r\n",
    "leading-zero": "HTTP/1.1 099 OK\r\n\r\n",
    "no-colon": OK + "Wanda\r\n\r\n",
    "no-name": OK + ": Wanda\r\n\r\n",
    "space-in-a-name": OK + "A B: c\r\n\r\n",
    "space-before-the-colon": OK + "Content-Length : 2\r\n\r\n{}",
    "folded": OK + "A: b\r\n c\r\nContent-Length: 2\r\n\r\n{}",
    "folded-at-once": OK + " A: b\r\n\r\n",
    "zero-byte": OK + "A: b\0c\r\n\r\n",
    "bare-return": OK + "A: b\rC: d\r\n\r\n",
    "return-in-the-reason": "HTTP/1.1 200 O\rK\r\n\r\n",
    "two-lengths": OK + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "the-same-length-twice": OK + "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "list-of-lengths": OK + "Content-Length: 2, 2\r\n\r\n{}",
    "signed-length": OK + "Content-Length: +2\r\n\r\n{}",
    "negative-length": OK + "Content-Length: -2\r\n\r\n{}",
    "underscored-length": OK + "Content-Length: 1_0\r\n\r\n{}",
    "length-with-a-vertical-tab": OK + "Content-Length: 2\x0b\r\n\r\n{}",
    "no-length": OK + "Content-Length:\r\n\r\n{}",
    "superscript-length": OK + "Content-Length: \xb2\r\n\r\n{}",
    "absurd-length": OK + f"Content-Length: {'9' * 5000}\r\n\r\n",
    "length-and-chunks": OK + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks-in-http-1.0": "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another-coding": OK + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked-twice": OK + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "no-coding": OK + "Transfer-Encoding: identity\r\n\r\n{}",
    "many-fields": OK + "".join(f"A{number}: b\r\n" for number in range(101)) + "\r\n",
    "endless-field": OK + "A" * MAX_HEAD,
    "endless-fields": OK + "A: b\r\n" * 20_000,
    "endless-status": "HTTP/1.1 200 " + "A" * MAX_HEAD,
    "endless-interim": "HTTP/1.1 100 Continue\r\n\r\n" * 5000,
}
"""Heads that the reader refuses at once, even while the connection stays open."""

UNUSABLE_CHUNKS = {
    "no-size": b"xyz\r\n",
    "empty-size": b"\r\n",
    "signed-size": b"+2\r\n{}\r\n",
    "prefixed-size": b"0x2\r\n{}\r\n",
    "bare-newline": b"2\n{}\r\n",
    "garbled-extension": b"2;a\rb\r\n{}\r\n",
    "longer-than-its-size": b"1\r\n{}\r\n",
    "without-an-end": b"2\r\n{}0\r\n\r\n",
    "with-another-end": b"2\r\n{}xx0\r\n\r\n",
    "size-that-never-ends": b"1" * 256,
    "extension-that-never-ends": b"1;" + b"x" * 254,
    "too-many": b"1\r\nx\r\n" * MAX_CHUNKS,
    "garbled-trailer": b"0\r\nWanda\r\n\r\n",
    "trailers-that-never-end": b"0\r\n" + b"A: b\r\n" * 20_000,
}


def read(pieces: Iterable[bytes], *, ends: bool = False, has_body: bool = True) -> tuple[Response, bool] | None:
    """Return the response in bytes that arrive in pieces, and whether the connection is reusable."""
    received = bytearray()
    steps = read_response(received, has_body=has_body)
    for piece in pieces:
        received += piece
        if (outcome := steps.send(None)) is not None:
            return outcome
    return steps.send(True) if ends else None


def cut(data: bytes, size: int = 1) -> list[bytes]:
    """Return bytes in pieces of one size."""
    return [data[at : at + size] for at in range(0, len(data), size)]


# -- responses that are read


@pytest.mark.parametrize(("data", "status", "body", "is_reusable"), RESPONSES.values(), ids=RESPONSES)
def test_response_is_read_however_it_is_cut(data, status, body, is_reusable):
    """The last byte completes a response, in any pieces. A connection that ends before is an error."""
    for pieces in ([data], cut(data), *([data[:at], data[at:]] for at in range(1, len(data)))):
        assert read([*pieces[:-1], pieces[-1][:-1]]) is None
        response, reusable = read(pieces)
        assert (response.status, response.body, reusable) == (status, body, is_reusable)
    # An extra byte would start the next visitor's response.
    response, reusable = read([data + b"\n"])
    assert (response.status, response.body, reusable) == (status, body, False)
    for at in range(len(data)):
        with pytest.raises(TransportError, match="in the middle"):
            read([data[:at]], ends=True)


@pytest.mark.parametrize("body", [b"", b"{", b'{"a": 1}' * 20_000], ids=len)
def test_response_may_end_with_its_connection(body):
    """Without a length and chunks, the end of the connection is the end of the body."""
    data = build_head("200 OK", {}) + body
    assert read(cut(data, 1000)) is None
    response, is_reusable = read(cut(data, 1000), ends=True)
    assert (response.body, is_reusable) == (body, False)


def test_response_to_connect_has_no_body():
    """A response to CONNECT ends after the head, even if the head has a length (RFC 9110 §9.3.6)."""
    response, is_reusable = read([LENGTH], has_body=False)
    assert (response.status, response.body, is_reusable) == (200, b"", True)


def test_fields_are_joined_and_trimmed():
    """Names are in lower case. Values of one name are joined, without outer spaces (RFC 9110 §5.3, §5.5)."""
    data = b"HTTP/1.1 204 x\r\nA:\t b c \r\nVia: one\r\nX: \xe9:\r\nEmpty:\r\nVIA:two\r\n\r\n"
    assert read([data])[0].headers == {"a": "b c", "via": "one, two", "x": "\xe9:", "empty": ""}


# -- responses that are refused


@pytest.mark.parametrize("head", UNUSABLE.values(), ids=UNUSABLE)
def test_garbled_head_is_refused(head):
    """The reader raises at once, and the message contains no word of the head."""
    for size in (len(head), 1000):
        with pytest.raises(TransportError, match=r"not valid HTTP/1\.1") as caught:
            read(cut(head.encode("latin-1"), size))
        assert "Wanda" not in str(caught.value)


@pytest.mark.parametrize("data", UNUSABLE_CHUNKS.values(), ids=UNUSABLE_CHUNKS)
def test_garbled_chunks_are_refused(data):
    """The reader raises at once, because it can't find the end of the body."""
    for size in (len(data), 1000):
        with pytest.raises(TransportError, match=r"not valid HTTP/1\.1"):
            read([CHUNKED, *cut(data, size)])


@pytest.mark.parametrize("size", [MAX_BYTES, MAX_BYTES + 1])
@pytest.mark.parametrize("framing", ["length", "chunk", "chunks", "end"])
def test_body_is_bounded(framing, size):
    """The reader accepts MAX_BYTES and refuses one byte more, at once if the head has the length."""
    body, last = b" " * size, size - MAX_BYTES
    data = {
        "length": build_head("200 OK", {"Content-Length": str(size)}) + body[: None if not last else 0],
        "chunk": CHUNKED + b"%x\r\n" % size + (b"" if last else body + b"\r\n0\r\n\r\n"),
        "chunks": CHUNKED + b"400\r\n%b\r\n" % body[:1024] * 256 + b"%x\r\n" % last + (b"" if last else b"\r\n"),
        "end": build_head("200 OK", {}) + body,
    }[framing]
    if not last:
        assert len(read(cut(data, 65536), ends=framing == "end")[0].body) == MAX_BYTES
        return
    with pytest.raises(InvalidResponseError, match=f"larger than {MAX_BYTES} bytes"):
        read(cut(data, 65536))


# -- against http.client

tokens = st.text("abcXYZ019-_!~", min_size=1, max_size=8).map("x-".__add__)
texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f\x85"), max_size=20)
fields = st.lists(st.tuples(tokens, texts), max_size=5)


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    """Build a valid response."""
    body = draw(st.binary(max_size=60))
    head = [f"HTTP/1.{draw(st.sampled_from('01'))} {draw(st.sampled_from([200, 206, 404, 429, 599]))} {draw(texts)}"]
    head += [f"{name}:{value}" for name, value in draw(fields)]
    framing = draw(st.sampled_from(["length", "chunks", "end"]))
    if framing == "chunks":
        head[0] = head[0].replace("1.0", "1.1", 1)
        chunks = [piece for piece in cut(body, draw(st.integers(1, 60))) if piece]
        end = "".join(f"{name}: {value}\r\n" for name, value in draw(fields)).encode("latin-1")
        body = b"".join(b"%X;a=b\r\n%b\r\n" % (len(piece), piece) for piece in chunks) + b"0\r\n%b\r\n" % end
        head.append("Transfer-Encoding: Chunked")
    elif framing == "length":
        head.append(f"Content-Length:  {len(body)}\t")
    interim = b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n" * draw(st.integers(0, 2))
    return interim + "\r\n".join([*head, "", ""]).encode("latin-1") + body


def read_with_http_client(data: bytes) -> tuple[int, bytes, list[str]]:
    """Return status, body and field names as http.client reads them, without interim responses."""
    file = io.BytesIO(data)
    sock = type("Socket", (), {"makefile": lambda *_args: file})()
    readers: list[http.client.HTTPResponse] = []
    while not readers or readers[-1].status < 200:
        readers.append(http.client.HTTPResponse(sock))
        readers[-1].begin()
    reader = readers[-1]
    return reader.status, reader.read(), sorted({name.lower() for name in reader.headers})


def read_in_pieces(data: bytes, places: list[int]) -> tuple[int, bytes, list[str]] | type[Exception]:
    """Return the same values from our reader, or the type of its error."""
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    pieces = [data[start:end] for start, end in itertools.pairwise(places)]
    try:
        response, _is_reusable = read(pieces, ends=True)
    except (TransportError, InvalidResponseError) as error:
        return type(error)
    return response.status, response.body, sorted(response.headers)


@patiently
@given(data=responses(), places=st.lists(st.integers(0, 500), max_size=8))
def test_valid_response_is_read_as_http_client_reads_it(data, places):
    """Our reader and http.client agree about status, body and fields of a valid response."""
    assert read_in_pieces(data, places) == read_with_http_client(data)


@patiently
@given(data=responses(), at=st.integers(0, 400), new=st.binary(max_size=3), places=st.lists(st.integers(0, 500)))
def test_damaged_response_is_read_alike_or_refused(data, at, new, places):
    """Pieces don't change the result, and http.client reads each accepted response in the same way."""
    data = data[:at] + new + data[at + len(new) :]
    ours = read_in_pieces(data, places)
    assert ours == read_in_pieces(data, [])
    # http.client reads the chunks of a 204, which has none (RFC 9110 §6.4.1).
    if isinstance(ours, tuple) and ours[0] not in (204, 304):
        assert read_with_http_client(data)[:2] == ours[:2]


# -- compression


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZip"])
def test_gzip_is_decompressed(encoding):
    """decompress() reads gzip, the only encoding that a request offers."""
    assert decompress(gzip.compress(b"{}"), encoding) == b"{}"


@pytest.mark.parametrize(("body", "encoding"), [(b"{}", ""), (b"{}", "Identity"), (b"", "gzip")])
def test_plain_body_stays_as_it_is(body, encoding):
    """A gateway may name an encoding for an empty body."""
    assert decompress(body, encoding) == body


@pytest.mark.parametrize(
    ("encoding", "body", "problem"),
    [
        pytest.param("gzip", b"{}", "not one whole gzip stream", id="not-compressed"),
        pytest.param("gzip", gzip.compress(b"{}")[:-9], "not one whole gzip stream", id="cut-short"),
        pytest.param("gzip", gzip.compress(b"{}") * 2, "not one whole gzip stream", id="two"),
        pytest.param("gzip", gzip.compress(b" " * (MAX_BYTES + 1)), "larger than", id="too-large"),
        pytest.param("deflate", zlib.compress(b"{}"), "did not offer", id="deflate"),
        pytest.param("br", b"{}", "did not offer", id="brotli"),
        pytest.param("gzip, gzip", b"{}", "did not offer", id="twice"),
    ],
)
def test_other_compression_is_refused(encoding, body, problem):
    """Anything but one whole gzip stream within the limit is an InvalidResponseError."""
    with pytest.raises(InvalidResponseError, match=problem):
        decompress(body, encoding)


def test_gzip_bomb_is_not_inflated():
    """A quarter of a gigabyte of zeros takes a few megabytes of memory."""
    squeeze = zlib.compressobj(9, wbits=31)
    bomb = b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(256)) + squeeze.flush()
    tracemalloc.start()
    with pytest.raises(InvalidResponseError, match="larger than"):
        decompress(bomb, "gzip")
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * MAX_BYTES


# -- requests


def test_request_is_written_in_order():
    """The head of a request has a request line and fields."""
    data = write_head("/v1", {"Host": "h"}, "POST", "/a?b=c", ("X-A", "\xe9"))
    assert data == b"POST /v1/a?b=c HTTP/1.1\r\nHost: h\r\nX-A: \xe9\r\n"


@pytest.mark.parametrize("ending", ["\r\n", "\n", "\r"], ids=repr)
@pytest.mark.parametrize("place", ["target", "name", "value"])
def test_line_break_in_a_request_is_refused(place, ending):
    """A line break raises ValueError, and no local variable contains a field."""
    target, name, value = (f"a{ending}Evil: b" if part == place else "a" for part in ("target", "name", "value"))
    with pytest.raises(ValueError, match="line break") as caught:
        write_head("", {"Authorization": "Wanda"}, "GET", target, (name, value))
    assert "Wanda" not in describe_report(caught.value)

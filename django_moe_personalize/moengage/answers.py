"""From the bytes of an answer to a ``Response``, and from the errors of the layers below to ours."""

from __future__ import annotations

import ssl
import zlib
from collections.abc import Iterable, Iterator

from urllib3.exceptions import ReadTimeoutError

from django_moe_personalize.exceptions import DeadlineExceeded, InvalidResponseError, TransportError
from django_moe_personalize.moengage.messages import NotTakenError, Response
from django_moe_personalize.moengage.pools import DiedIdleError

MAX_BYTES = 1024 * 1024
"""Bytes of an answer's body, decompressed; a larger one is refused unread."""


def build_response(status: int, headers: Iterable[tuple[str, str]], body: bytes) -> Response:
    """Return the answer with its body decompressed; raises InvalidResponseError when that cannot be."""
    fields = {name.lower(): value for name, value in headers}
    return Response(status, fields, _decompress(body, fields.get("content-encoding", "identity")))


def refuse_size() -> InvalidResponseError:
    """Return the error of a body above MAX_BYTES."""
    return InvalidResponseError(f"MoEngage's answer is larger than {MAX_BYTES} bytes")


def _decompress(body: bytes, encoding: str) -> bytes:
    encoding = encoding.strip().lower()
    if not body or encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip"):
        raise InvalidResponseError("MoEngage's answer is compressed in a way that was not asked for")
    inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(body, MAX_BYTES + 1)
    except zlib.error:
        plain = b""
    if len(plain) > MAX_BYTES:
        raise refuse_size()
    if not inflater.eof or inflater.unused_data:
        raise InvalidResponseError("MoEngage's answer is not one whole gzip stream")
    return plain


def build_failure(error: BaseException, *, wrapper: type[OSError] | tuple[()] = ()) -> TransportError:
    """Return the failure to raise for an error of the layers below, without its secrets.

    ``wrapper`` is what a layer makes of the operating system's errors and says nothing itself. The
    cause is the operating system's or OpenSSL's own error alone, stripped of the frames and of the
    requests that carried it here.
    """
    chain = list(_unchain(error))
    if any(isinstance(link, DiedIdleError) for link in chain):
        return NotTakenError("MoEngage closed an idle connection")
    causes = [link for link in chain if isinstance(link, OSError) and not isinstance(link, wrapper)]
    cause = causes[-1] if causes else None
    name = type(cause or error).__name__
    if isinstance(cause, TimeoutError) or any(isinstance(link, ReadTimeoutError) for link in chain):
        failure: TransportError = DeadlineExceeded("MoEngage did not answer in time")
    elif isinstance(cause, ssl.SSLCertVerificationError):
        failure = TransportError(f"MoEngage's certificate was refused: {cause.verify_message}")
    else:
        failure = TransportError(f"no whole answer from MoEngage ({name})")
    if cause is not None:
        cause.__context__ = cause.__cause__ = None
        failure.__cause__ = cause.with_traceback(None)
    return failure


def _unchain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

"""What travels between client and transport: one request, one whole answer, and the seams of a transport."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

from django_moe_personalize.exceptions import TransportError
from django_moe_personalize.resilience import Deadline

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class Request:
    """One call: ``path`` is below the base URL and starts with ``/``, ``query`` is encoded.

    Headers and body hold the key and the visitor, so they are not in the repr.
    """

    # No named tuple: many an error reporter writes out what is in a tuple, whatever its repr says.
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
    """One whole answer. Header names are lower-case; the body is decompressed and capped."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str] = _NO_HEADERS, body: bytes = b"") -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"Response(status={self.status!r})"


class Transport(Protocol):
    """Carries a request to MoEngage and back."""

    def send(self, request: Request, *, deadline: Deadline) -> Response:
        """Return the answer, whatever its status.

        Raises TransportError when there is none, DeadlineExceeded when it does not come in time.
        """
        ...

    def close(self) -> None:
        """Release connections; the transport may be used again."""
        ...


class NotTakenError(TransportError):
    """Nothing was answered on a connection that had been idle: safe to ask again."""


class Exchange(Protocol):
    """A kept connection, reserved for one request that is sent now and whose answer is read later.

    Nothing waits for the answer in between. Not thread-safe: its owner lets one at a time use it.
    """

    def send(self, request: Request) -> bool:
        """Write the request and return True; False when the connection turned out to be dead."""
        ...

    def receive(self, seconds: float = 0.0) -> Response | None:
        """Return the answer once all of it is there, waiting at most ``seconds``; ``None`` when it is not yet.

        May be called again after ``None``. Raises NotTakenError when the connection had died idle,
        TransportError when no whole answer will come, InvalidResponseError for one that cannot be used.
        """
        ...

    @property
    def has_begun(self) -> bool:
        """Whether some of the answer was received."""
        ...

    def fileno(self) -> int:
        """Return what an event loop watches for the answer."""
        ...

    def release(self) -> None:
        """Give the connection back, or close it when an answer may still come on it."""
        ...


class SplitTransport(Transport, Protocol):
    """A transport that can also work in two steps."""

    def reserve(self) -> Exchange | None:
        """Return a connection on which a request can be sent at once; ``None`` when one would have to be made."""
        ...

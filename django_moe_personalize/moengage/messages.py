"""What the client and a transport hand each other: one request, and one whole response."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from django_moe_personalize.exceptions import TransportError

if TYPE_CHECKING:
    from django_moe_personalize.resilience import Deadline

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


class Transport(Protocol):
    """Carries requests to MoEngage.

    A transport may also have the method ``start(request) -> HTTPExchange | None``. It sends the request
    on a connection that is open already and returns at once, so that a page can read the response
    later; it returns ``None`` when it has no such connection. Without ``start`` every call uses ``send``.
    """

    def send(self, request: Request, *, deadline: Deadline) -> Response:
        """Return the response, whatever its status.

        Raises TransportError when no response comes, DeadlineExceeded when it doesn't come in time.
        """
        ...

    def close(self) -> None:
        """Close the connections. The transport may be used again."""
        ...


class NotTakenError(TransportError):
    """The server closed an idle connection and answered nothing: the request may safely be sent again."""


class ProxyError(TransportError):
    """The proxy can't be reached or opens no tunnel. The message names the proxy, never its password."""

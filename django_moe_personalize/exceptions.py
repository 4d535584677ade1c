"""The errors of this package, from the calls to MoEngage to the delivery of events.

    MoePersonalizeError                base of the tree, never raised itself
      APIError                         a call to MoEngage failed
        TransportError                 no response
          DeadlineExceeded             no complete response before the deadline
        CircuitOpenError               no call made: MoEngage has been failing
        ResponseError                  a response with an error status
          AuthenticationError          401, 403
          RateLimitedError             429
          ServerError                  5xx
        InvalidResponseError           a response with status 200 that breaks the contract
      DeliveryError                    a delivery couldn't hand over events

``ConfigurationError`` stands outside the tree, in ``conf``, because it's a developer's mistake.
No message holds a credential, an attribute or an identifier.
"""

from __future__ import annotations

import copyreg
from typing import Any, ClassVar


class MoePersonalizeError(Exception):
    """Base of the tree, never raised itself.

    ``retryable`` says whether the same call may succeed later. ``code`` is MoEngage's name for this kind of
    error (contract §6: NETWORK_ERROR, HTTP_ERROR, PARSE_ERROR, …).
    """

    retryable: bool = False
    code: ClassVar[str] = "UNKNOWN"

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep all attributes in a copy or a pickle. By default, an exception keeps only its message."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class APIError(MoePersonalizeError):
    """A call to MoEngage failed."""


class TransportError(APIError):
    """No response: the connection was refused, reset or cut short, or MoEngage is unreachable."""

    retryable = True
    code = "NETWORK_ERROR"


class DeadlineExceeded(TransportError):
    """No complete response before the deadline."""


class CircuitOpenError(APIError):
    """No call made: the circuit breaker is open, or waits as long as MoEngage's rate limit says."""

    retryable = True
    code = "NETWORK_ERROR"


class ResponseError(APIError):
    """MoEngage responded with an error status.

    ``status`` is the HTTP status. ``title`` and ``description`` are MoEngage's words. They may quote a
    visitor's data, so the message leaves them out. Don't log them.
    """

    code = "HTTP_ERROR"

    def __init__(self, message: str, *, status: int, title: str = "", description: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.title = title
        self.description = description


class AuthenticationError(ResponseError):
    """401 or 403: a wrong workspace id or key, a key for another feature, or a suspended account."""


class RateLimitedError(ResponseError):
    """429, or another error status with headers that allow no more requests: too many requests.

    ``retry_after`` is in seconds, from ``Retry-After``, else from ``x-ratelimit-reset``; ``None`` when
    MoEngage names no time.
    """

    retryable = True

    def __init__(self, message: str, *, status: int = 429, retry_after: float | None = None, **words: str) -> None:
        super().__init__(message, status=status, **words)
        self.retry_after = retry_after


class ServerError(ResponseError):
    """5xx: MoEngage failed. Retry with backoff, and events with the same UUID (contract §1)."""

    retryable = True
    code = "UNKNOWN_SERVER_ERROR"


class InvalidResponseError(APIError):
    """MoEngage responded with status 200 and a body that breaks the contract."""

    code = "PARSE_ERROR"


class DeliveryError(MoePersonalizeError):
    """A delivery couldn't hand over events."""

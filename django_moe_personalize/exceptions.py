"""The errors that this package raises::

    MoePersonalizeError                base class, never raised itself
      APIError                         a call to MoEngage failed
        TransportError                 no response
          DeadlineExceeded             no complete response before the deadline
        CircuitOpenError               no call made: the circuit breaker is open
        ResponseError                  a response with an error status
          AuthenticationError          401, 403
          RateLimitedError             429
          ServerError                  5xx
        InvalidResponseError           a response with status 200 that breaks the contract
      DeliveryError                    a delivery couldn't send or store events
      LeakError                        a response has another visitor's content

``ConfigurationError`` in ``conf`` reports a developer's mistake, so it isn't a MoePersonalizeError.
No message contains a credential, an attribute or an identifier.
"""

from __future__ import annotations

import copyreg
from typing import Any, ClassVar


class MoePersonalizeError(Exception):
    """Base class of the package's errors, never raised itself.

    ``retryable`` says whether the same call may succeed later. ``code`` is MoEngage's name for this kind of
    error, such as NETWORK_ERROR (contract §6).
    """

    retryable: bool = False
    code: ClassVar[str] = "UNKNOWN"

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep all attributes in a copy or a pickle. Exception.__reduce__() can't restore keyword-only arguments."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class APIError(MoePersonalizeError):
    """A call to MoEngage failed."""


class TransportError(APIError):
    """No complete response: the connection was refused or broken, or MoEngage is unreachable."""

    retryable = True
    code = "NETWORK_ERROR"


class DeadlineExceeded(TransportError):
    """No complete response before the deadline."""


class CircuitOpenError(APIError):
    """No call made: the circuit breaker is open, because MoEngage kept failing or its rate limit was reached."""

    retryable = True
    code = "NETWORK_ERROR"


class ResponseError(APIError):
    """MoEngage responded with an error status.

    ``status`` is the HTTP status. ``title`` and ``description`` come from the response and may quote a visitor's
    data. Don't log ``title`` and ``description``. The message leaves them out.
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
    """Too many requests: status 429, or an error status with headers that say that the rate limit is used up.

    ``retry_after``: the seconds to wait, from the header ``Retry-After`` or ``x-ratelimit-reset``, or ``None``.
    """

    retryable = True

    def __init__(self, message: str, *, status: int = 429, retry_after: float | None = None, **words: str) -> None:
        super().__init__(message, status=status, **words)
        self.retry_after = retry_after


class ServerError(ResponseError):
    """5xx: MoEngage failed. Retry with backoff. Send an event again with the same UUID (contract §1)."""

    retryable = True
    code = "UNKNOWN_SERVER_ERROR"


class InvalidResponseError(APIError):
    """MoEngage responded with status 200 and a body that breaks the contract."""

    code = "PARSE_ERROR"


class DeliveryError(MoePersonalizeError):
    """A delivery couldn't send or store events."""


class LeakError(MoePersonalizeError):
    """A response has a token, mark or cookie of another page view: a cache stored HTML with our tags.

    Raised with DEBUG and in tests. In production the response becomes private, and the log has an error.
    """

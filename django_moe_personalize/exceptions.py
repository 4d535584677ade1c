"""The errors that this package raises::

    MoePersonalizeError                base class, never raised itself
      APIError                         a call to MoEngage failed
        TransportError                 no response
          DeadlineExceeded             no complete response before the deadline
            StillConnecting            no connection before the deadline
          ProxyError                   the proxy failed
            ProxyTimeout               no answer from the proxy in time; also a DeadlineExceeded
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
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from concurrent.futures import Future


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


class StillConnecting(DeadlineExceeded):
    """No connection before the deadline. The attempt to connect goes on, for the next call.

    ``attempt`` is the future of the attempt. ``is_early``: the attempt is new, so the error says little about MoEngage.
    """

    # A slot, because a future can't be copied or pickled, and __reduce__() copies __dict__.
    __slots__ = ("attempt",)

    def __init__(self, message: str, attempt: Future[None] | None = None, *, is_early: bool = False) -> None:
        super().__init__(message)
        self.attempt = attempt
        self.is_early = is_early


class ProxyError(TransportError):
    """The proxy is unreachable or opens no tunnel. The message has the host and port of the proxy, but no password.

    ``status`` is the status of the proxy's response, or ``None``.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ProxyTimeout(ProxyError, DeadlineExceeded):
    """The proxy did not answer in time."""


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

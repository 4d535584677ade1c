"""The errors of this package, from the wire to the delivery of events.

    MoePersonalizeError                never raised itself
      APIError                         a call to MoEngage failed
        TransportError                 no answer
          DeadlineExceeded             no answer in time
        CircuitOpenError               not asked: the vendor has been failing
        ResponseError                  answered with an error status
          AuthenticationError          401, 403
          RateLimitedError             429
          ServerError                  5xx
        InvalidResponseError           answered 200 with something else than the contract
      DeliveryError                    events could not be handed over

``ConfigurationError`` stands outside the tree, in ``conf.py``: it is a developer's mistake.
No message holds a credential, an attribute or an identifier.
"""

from __future__ import annotations

from typing import Any, ClassVar


class MoePersonalizeError(Exception):
    """Base of the tree; never raised itself.

    ``retryable`` says whether the same call may succeed later; ``code`` is the vendor's own
    name for the kind of error (contract §6: NETWORK_ERROR, HTTP_ERROR, PARSE_ERROR, …).
    """

    retryable: bool = False
    code: ClassVar[str] = "UNKNOWN"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel whole between processes: by default an exception is rebuilt from its message alone."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[MoePersonalizeError], args: tuple[Any, ...], state: dict[str, Any]) -> MoePersonalizeError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class APIError(MoePersonalizeError):
    """A call to MoEngage did not give a usable answer."""


class TransportError(APIError):
    """No answer came: refused, reset, unreachable, cut short."""

    retryable = True
    code = "NETWORK_ERROR"


class DeadlineExceeded(TransportError):
    """No whole answer came before the deadline."""


class CircuitOpenError(APIError):
    """Not asked: the circuit breaker is open, or the vendor's rate limit has closed the gate."""

    retryable = True
    code = "NETWORK_ERROR"


class ResponseError(APIError):
    """MoEngage answered with an error status.

    ``status`` is the HTTP status. ``title`` and ``description`` are the vendor's words; they may
    quote what was sent, so they are attributes for code to read and no part of the message.
    """

    code = "HTTP_ERROR"

    def __init__(self, message: str, *, status: int, title: str = "", description: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.title = title
        self.description = description


class AuthenticationError(ResponseError):
    """401 or 403: wrong workspace id or key, a key of another feature, a suspended account."""


class RateLimitedError(ResponseError):
    """429: too many requests; ``retry_after`` is in seconds, ``None`` when the vendor did not say."""

    retryable = True

    def __init__(
        self,
        message: str,
        *,
        status: int = 429,
        title: str = "",
        description: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, status=status, title=title, description=description)
        self.retry_after = retry_after


class ServerError(ResponseError):
    """5xx: the vendor failed; retry with backoff, events with the same UUID (contract §1)."""

    retryable = True
    code = "UNKNOWN_SERVER_ERROR"


class InvalidResponseError(APIError):
    """MoEngage answered 200 with a body that is not what the contract says."""

    code = "PARSE_ERROR"


class DeliveryError(MoePersonalizeError):
    """Events could not be handed over."""

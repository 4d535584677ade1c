"""From a response that isn't a 200 to the exception that says so (contract §1)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Final

from django_moe_personalize.exceptions import AuthenticationError, RateLimitedError, ResponseError, ServerError
from django_moe_personalize.moengage.http1 import Response
from django_moe_personalize.moengage.json_values import as_object, parse_or

# The only words of a response that may enter a message: anything else may quote the request.
_TITLES: Final = frozenset({"Malformed JSON", "Invalid Field Value", "Request Error", "Authentication required"})

_SECONDS: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_MAX_TEXT: Final = 1000


def build_error(response: Response, *, clock: Callable[[], float] = time.time) -> ResponseError:
    """Return the error for a response whose status is not 200.

    Its message is the status and, where it is one of the documented four, the vendor's title.
    ``title`` and ``description`` are empty where the body has none, as a gateway's body. A 429 is a
    RateLimitedError, and so is any other status but 401 and 403 whose headers say that the rate limit
    is used up: ``x-envoy-ratelimited: true``, or ``x-ratelimit-remaining: 0`` with a reset.
    """
    status, headers = response.status, response.headers
    data = as_object(parse_or(None, response.body))
    words = {name: data[name][:_MAX_TEXT] for name in ("title", "description") if isinstance(data.get(name), str)}
    message = f"MoEngage answered {status}"
    if (title := words.get("title")) in _TITLES:
        message += f": {title}"
    if status in (401, 403):
        return AuthenticationError(message, status=status, **words)
    is_used_up = headers.get("x-ratelimit-remaining") == "0" and "x-ratelimit-reset" in headers
    if status == 429 or is_used_up or headers.get("x-envoy-ratelimited", "").lower() == "true":
        wait = read_retry_after(headers, clock=clock)
        return RateLimitedError(message, status=status, retry_after=wait, **words)
    kind = ServerError if 500 <= status <= 599 else ResponseError
    return kind(message, status=status, **words)


def read_retry_after(headers: Mapping[str, str], *, clock: Callable[[], float] = time.time) -> float | None:
    """Return the seconds to wait that the headers of a response name, ``None`` when they name none.

    From ``retry-after``, in seconds or as an HTTP date (RFC 9110 §10.2.3), else from
    ``x-ratelimit-reset``, in seconds or, from a thousand million on, as Unix time. A moment in the
    past is 0.0.
    """
    wait = _read_wait(headers.get("retry-after", ""), clock)
    return _read_wait(headers.get("x-ratelimit-reset", ""), clock) if wait is None else wait


def _read_wait(value: str, clock: Callable[[], float]) -> float | None:
    value = value.strip()
    if _SECONDS.fullmatch(value):
        seconds = float(value)
        return seconds if seconds < 1e9 else max(0.0, seconds - clock())
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - clock())
    except (ValueError, OverflowError, OSError):
        return None

"""Build the exception for a response whose status isn't 200 (contract §1)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Final

from django_moe_personalize.exceptions import AuthenticationError, RateLimitedError, ResponseError, ServerError
from django_moe_personalize.moengage.http1 import Response
from django_moe_personalize.moengage.json_values import as_object, parse_or

# Messages quote only these titles of a response, because any other text may contain data of the request.
_TITLES: Final = frozenset({"Malformed JSON", "Invalid Field Value", "Request Error", "Authentication required"})

_SECONDS: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_MAX_TEXT: Final = 1000


def build_error(response: Response, *, clock: Callable[[], float] = time.time) -> ResponseError:
    """Return the error for a response whose status isn't 200.

    The message has the status and, if MoEngage's title is one of the four documented titles, the title.
    Status 401 or 403 gives an AuthenticationError. Status 429 gives a RateLimitedError. Any other status gives a
    RateLimitedError too if the headers say that the rate limit is used up: ``x-envoy-ratelimited: true``, or
    ``x-ratelimit-remaining: 0`` together with ``x-ratelimit-reset``.
    """
    status, headers = response.status, response.headers
    data = as_object(parse_or(None, response.body))
    words = {name: data[name][:_MAX_TEXT] for name in ("title", "description") if isinstance(data.get(name), str)}
    # Only a proxy answers 407 (RFC 9110 §15.5.8).
    message = f"{'a proxy' if status == 407 else 'MoEngage'} answered {status}"
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
    """Return how many seconds the caller must wait, or ``None`` if the headers don't say so.

    ``retry-after`` has seconds or an HTTP date (RFC 9110 §10.2.3). Without a valid ``retry-after``, the function reads
    ``x-ratelimit-reset``. A number from 1e9 on is a Unix time. For a time in the past, the result is 0.0.
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

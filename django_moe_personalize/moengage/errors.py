"""From a response that isn't a 200 to the exception that says so (contract §1)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Final

from django_moe_personalize.exceptions import (
    AuthenticationError,
    InvalidResponseError,
    RateLimitedError,
    ResponseError,
    ServerError,
)
from django_moe_personalize.moengage.messages import Response
from django_moe_personalize.moengage.strict_json import parse_json

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
    title, description = _read_envelope(response.body)
    status, message = response.status, f"MoEngage answered {response.status}"
    if title in _TITLES:
        message += f": {title}"
    if status in (401, 403):
        return AuthenticationError(message, status=status, title=title, description=description)
    if status == 429 or _is_used_up(response.headers):
        wait = read_retry_after(response.headers, clock=clock)
        return RateLimitedError(message, status=status, title=title, description=description, retry_after=wait)
    kind = ServerError if 500 <= status <= 599 else ResponseError
    return kind(message, status=status, title=title, description=description)


def read_retry_after(headers: Mapping[str, str], *, clock: Callable[[], float] = time.time) -> float | None:
    """Return the seconds to wait that the headers of a response name, ``None`` when they name none.

    From ``retry-after``, in seconds or as an HTTP date (RFC 9110 §10.2.3), else from
    ``x-ratelimit-reset``, in seconds or, from a thousand million on, as Unix time. A moment in the
    past is 0.0.
    """
    wait = _read_wait(headers.get("retry-after", ""), clock)
    return _read_wait(headers.get("x-ratelimit-reset", ""), clock) if wait is None else wait


def _is_used_up(headers: Mapping[str, str]) -> bool:
    if headers.get("x-envoy-ratelimited", "").lower() == "true":
        return True
    return headers.get("x-ratelimit-remaining") == "0" and "x-ratelimit-reset" in headers


def _read_wait(value: str, clock: Callable[[], float]) -> float | None:
    value = value.strip()
    if _SECONDS.fullmatch(value):
        seconds = float(value)
        return seconds if seconds < 1e9 else max(0.0, seconds - clock())
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - clock())
    except (ValueError, OverflowError, OSError):
        return None


def _read_envelope(body: bytes) -> tuple[str, str]:
    """Return title and description of an error body, ``""`` for one that is missing or not a string."""
    try:
        data = parse_json(body)
    except InvalidResponseError:
        return "", ""
    words = [data.get(name) if isinstance(data, dict) else None for name in ("title", "description")]
    title, description = (word[:_MAX_TEXT] if isinstance(word, str) else "" for word in words)
    return title, description

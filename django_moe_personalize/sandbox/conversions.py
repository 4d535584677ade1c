"""Check the requests to the Data API (contract §8). It takes the conversions of one customer.

Rules that the contract doesn't have: ``attributes`` and ``platform`` are optional, a number below 1e11 is a time in
seconds, and one bad action fails the whole request. The attribute ``event_uuid`` tells a repeated conversion.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from django_moe_personalize.moengage.data_api import RESERVED, is_forbidden_id
from django_moe_personalize.moengage.types import CONVERSION, UUID_ATTRIBUTE, draw_uuid
from django_moe_personalize.sandbox.ledger import CONVERSIONS, LedgerEntry
from django_moe_personalize.sandbox.validation import CLOCK_SKEW, PLATFORMS, UUID4, require

MILLISECONDS_FROM = 10**11
"""From this number on, a time has milliseconds."""

_DIGITS = re.compile(r"[0-9]{1,18}")


def read_conversions(data: Mapping[str, Any], *, now: float) -> Iterator[LedgerEntry]:
    """Yield an entry for each action. Raises RefusedError at the first mistake."""
    customer_id, actions = data.get("customer_id"), data.get("actions")
    require(data.get("type") == CONVERSION, "type", f"must be {CONVERSION!r}")
    is_id = isinstance(customer_id, str) and not is_forbidden_id(customer_id)
    require(is_id, "customer_id", "must be a string that MoEngage doesn't forbid")
    require(isinstance(actions, list) and actions, "actions", "must be an array that is not empty")
    for index, action in enumerate(actions or ()):
        yield _read_action(action, f"actions[{index}]", str(customer_id), now)


def _read_action(entry: Any, place: str, customer_id: str, now: float) -> LedgerEntry:
    require(isinstance(entry, dict), place, "must be an object")
    name, attributes, platform = entry.get("action"), entry.get("attributes", {}), entry.get("platform", "web")
    is_name = isinstance(name, str) and name.strip() and not name.strip().lower().startswith(RESERVED)
    require(is_name, f"{place}.action", f"must be a string that doesn't begin with {RESERVED}")
    require(isinstance(attributes, dict), f"{place}.attributes", "must be an object")
    for each in attributes:
        require(not each.lower().startswith(RESERVED), f"{place}.attributes", f"must not begin with {RESERVED}")
    require(platform in PLATFORMS, f"{place}.platform", f"must be one of {', '.join(PLATFORMS)}")
    times = [_read_time(entry.get(field), f"{place}.{field}", now) for field in ("current_time", "user_time")]
    uuid = attributes.get(UUID_ATTRIBUTE)
    uuid = uuid.lower() if isinstance(uuid, str) and UUID4.fullmatch(uuid) else draw_uuid()
    return LedgerEntry(
        uuid, name, customer_id, times[1], now, platform, attributes=attributes, experience_key=CONVERSIONS
    )


def _read_time(value: Any, place: str, now: float) -> int:
    """Return a time in seconds: a number or a text, in seconds or in milliseconds."""
    number = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value
    require(type(number) is int and number >= 0, place, "must be Unix time in milliseconds or seconds")
    seconds = number / 1000 if number >= MILLISECONDS_FROM else number
    require(seconds <= now + CLOCK_SKEW, place, "must not be in the future")
    return int(seconds)

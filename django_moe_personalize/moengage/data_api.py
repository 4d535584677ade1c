"""MoEngage's Data API: events of the site's own, such as orders (contract §8)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final
from urllib.parse import quote

from django_moe_personalize.moengage.client import PersonalizeClient, Transport
from django_moe_personalize.moengage.http1 import Request
from django_moe_personalize.moengage.types import UUID_ATTRIBUTE, Action, Conversion

MAX_EVENT_BYTES: Final = 128 * 1024

RESERVED: Final = "moe_"
"""MoEngage refuses names of events and attributes that begin with this prefix, in any case."""

_WORDS: Final = ("true", "false", "null", "none", "na", "n/a", "guest", "unknown", "id", "uid", "user_id", "userid")
FORBIDDEN_IDS: Final = {*_WORDS, "-1", "-2", "customer_id", "user_attribute_unique_id", "dummy_seller_code"}
"""Customer ids that MoEngage forbids, in any case. It also forbids ids of one character (contract §4)."""


def is_forbidden_id(customer_id: str) -> bool:
    """Return whether MoEngage forbids this customer id."""
    text = customer_id.strip()
    return len(text) < 2 or text.lower() in FORBIDDEN_IDS


def build_conversion(
    customer_id: str, name: str, attributes: Mapping[str, Any] | None = None, *, at: datetime | None = None
) -> Conversion:
    """Return the event ``name`` of a customer, at the aware datetime ``at``, by default now.

    Raises ValueError if MoEngage would refuse the event. The message names the argument, and never quotes a value.
    """
    _check_name("name", name)
    if is_forbidden_id(customer_id):
        raise ValueError(
            'MoEngage forbids this customer_id: a single character, or a word such as "guest" or "null". '
            'Use ids such as "user-1".'
        )
    if attributes is not None and not isinstance(attributes, Mapping):
        raise ValueError(f"attributes must be a mapping, not {type(attributes).__name__}.")
    values = {}
    for key, value in (attributes or {}).items():
        _check_name(f"attributes[{key!r}]: the name", key)
        if key == UUID_ATTRIBUTE:
            raise ValueError(f"attributes[{key!r}]: the package uses this name for the UUID of the event.")
        values[key] = _convert(value, f"attributes[{key!r}]")
    conversion = Conversion(Action.TRACKED, customer_id, values, _read_time(at), name=name)
    if conversion.size > MAX_EVENT_BYTES:
        raise ValueError(f"The event has {conversion.size:,} bytes of JSON. MoEngage takes {MAX_EVENT_BYTES:,}.")
    return conversion


def _check_name(place: str, name: object) -> None:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{place} must be a string that is not empty.")
    if name.strip().lower().startswith(RESERVED):
        raise ValueError(f"{place} must not begin with {RESERVED!r}: MoEngage reserves these names.")


def _read_time(at: datetime | None) -> int:
    if at is None:
        return int(time.time())
    if not isinstance(at, datetime) or at.tzinfo is None:
        raise ValueError("at must be an aware datetime, such as timezone.now().")
    if at.timestamp() > time.time():
        raise ValueError("at must not be in the future: MoEngage refuses such events.")
    return int(at.timestamp())


def _convert(value: Any, place: str) -> Any:
    """Return the value as JSON has it: a Decimal becomes a number, and a date or datetime becomes a text (ISO 8601)."""
    if isinstance(value, Decimal):
        value = int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [_convert(each, f"{place}[{index}]") for index, each in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _convert(each, f"{place}[{key!r}]") for key, each in value.items()}
    raise ValueError(f"{place} is a {type(value).__name__} that JSON can't express. Convert it, for example to a str.")


class DataClient(PersonalizeClient):
    """Call the Data API of one workspace. ``api_key`` is the *Data* key. See PersonalizeClient."""

    def __init__(self, *, workspace_id: str, api_key: str, transport: Transport) -> None:
        super().__init__(workspace_id=workspace_id, api_key=api_key, transport=transport)
        self._path = f"/event/{quote(workspace_id, safe='')}"

    def _build_report(self, elements: Sequence[str]) -> Request:
        """Return the request with the conversions of one customer. Raises ValueError for several customers."""
        (element,) = elements
        return Request("POST", self._path, headers=self._post_headers, body=element.encode("ascii"))

"""Check requests against each rule of the contract, and refuse a request that breaks a rule.

The order of the checks is: path (404), method (405), Authorization (401), MOE-APPKEY (400), size of the body (413),
JSON (400), fields (400). The sandbox adds rules that the contract doesn't have: in-session attributes are strings, an
empty array ``experience_key`` means no keys, ``user_timezone_offset`` is optional, and ``elements`` and ``actions``
aren't empty.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeGuard

from django_moe_personalize.moengage.http1 import Request
from django_moe_personalize.moengage.types import MAX_ELEMENTS, Action
from django_moe_personalize.sandbox.audiences import DAYS
from django_moe_personalize.sandbox.ledger import LedgerEntry
from django_moe_personalize.sandbox.responses import RefusedError, build_malformed, refuse_field
from django_moe_personalize.sandbox.workspace import Workspace

MAX_BODY = 128 * 1024
"""The limit for a request's body, in bytes (contract §7)."""

CLOCK_SKEW = 60.0
"""How many seconds the time of an event may lie in the future, because clocks differ. MoEngage names no limit."""

MAX_OFFSET = 54_000
"""The limit for the difference between a time zone and UTC, in seconds (contract §4)."""

PLATFORMS = ("web", "android", "ios", "tv")
CONTEXT_FIELDS = ("cid", "experience", "moe_locale_id", "moe_variation_id", "audience_name", "audience_id")
"""The required attributes of an experience's event (contract §4)."""

ACTIONS = (Action.SHOWN.value, Action.CLICKED.value)
OFFERING_ACTIONS = (Action.OFFERING_SHOWN.value, Action.OFFERING_CLICKED.value)
"""The actions that only a workspace with ``offering_actions`` accepts (contract §5)."""

_UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)
_HOUR = re.compile(r"[01][0-9]|2[0-3]")


@dataclass(frozen=True, slots=True)
class FetchQuery:
    """A valid fetch. ``keys`` is ``None`` if the fetch has no keys. ``identifiers`` may be a string (contract §2)."""

    customer_id: str | None = field(default=None, repr=False)
    identifiers: Mapping[str, str] | str = field(default_factory=dict, repr=False)
    keys: tuple[str, ...] | None = None
    session: Mapping[str, str] = field(default_factory=dict, repr=False)


def check_credentials(request: Request, workspace: Workspace) -> None:
    """Refuse a wrong Authorization header (401), then a wrong MOE-APPKEY header (400)."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    expected = f"{workspace.workspace_id}:{workspace.api_key}".encode()
    if not hmac.compare_digest(_basic(headers.get("authorization", "")), expected):
        raise RefusedError(401, "Authentication required", "The workspace id or the API key is wrong.")
    if headers.get("moe-appkey") != workspace.workspace_id:
        raise RefusedError(400, "Request Error", "The MOE-APPKEY header is missing or unknown.", "REQUEST_ERROR")


def _basic(header: str) -> bytes:
    scheme, _, encoded = header.partition(" ")
    try:
        return base64.b64decode(encoded.strip(), validate=True) if scheme.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        return b""


def read_body(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Refuse a body that is too large (413) or isn't a JSON object (400)."""
    if len(body) > MAX_BODY:
        raise RefusedError(413, "PayloadTooLarge", f"The body is larger than {MAX_BODY} bytes.")
    if not body.strip():
        raise build_malformed("The body is empty.")
    try:
        data = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_read_float)
    except (ValueError, RecursionError) as error:
        raise build_malformed("The body is not valid JSON in UTF-8.") from error
    if not isinstance(data, dict):
        raise build_malformed("The body is not a JSON object.")
    return data


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _read_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        # 1e999 is valid JSON, but Python reads infinity, and the ledger can't write infinity as JSON.
        raise ValueError("a number is out of range")
    return number


def read_fetch(data: Mapping[str, Any]) -> FetchQuery:
    """Return the fetch that a body describes (contract §2). Raises RefusedError."""
    session = {name: value for name, value in data.items() if name not in ("identifiers", "experience_key")}
    for name, value in session.items():
        if not isinstance(value, str):
            refuse_field(name, "must be a string")
    if session.get("DAY_OF_THE_WEEK", "Monday") not in DAYS:
        refuse_field("DAY_OF_THE_WEEK", "must be one of Monday … Sunday")
    if not _HOUR.fullmatch(session.get("TIME_OF_THE_DAY", "00")):
        refuse_field("TIME_OF_THE_DAY", "must be one of 00 … 23")
    customer_id, identifiers = _read_identifiers(data.get("identifiers", {}))
    return FetchQuery(customer_id, identifiers, _read_keys(data.get("experience_key", [])), session)


def _read_identifiers(value: object) -> tuple[str | None, Mapping[str, str] | str]:
    if not isinstance(value, dict):
        refuse_field("identifiers", "must be an object")
    customer_id = value.get("customer_id", "")
    if not isinstance(customer_id, str):
        refuse_field("identifiers.customer_id", "must be a string")
    identifiers = value.get("user_identifiers", {})
    if not isinstance(identifiers, str) and not _is_text_map(identifiers):
        refuse_field("identifiers.user_identifiers", "must be an object of strings")
    return customer_id or None, identifiers


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values())


def _read_keys(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, list) or not all(isinstance(key, str) for key in value):
        refuse_field("experience_key", "must be an array of strings")
    return tuple(value) or None


def read_events(data: Mapping[str, Any], *, now: float, offering_actions: bool) -> Iterator[LedgerEntry]:
    """Yield an entry for each action in a batch (contract §4), without the experience key.

    Raises RefusedError at the first mistake. One bad element fails the whole batch, so the caller must read all entries
    before it records the first entry.
    """
    actions = ACTIONS + OFFERING_ACTIONS if offering_actions else ACTIONS
    elements = data.get("elements")
    if not isinstance(elements, list) or not 0 < len(elements) <= MAX_ELEMENTS:
        refuse_field("elements", f"must be an array of 1 to {MAX_ELEMENTS} elements")
    for index, element in enumerate(elements):
        yield from _read_element(element, f"elements[{index}]", actions, now)


def read_profiles(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (customer id, user attributes) of each element of a batch that read_events() accepted."""
    for element in data["elements"]:
        yield element["customer_id"], element.get("user_attributes", {})


def _read_element(element: object, place: str, actions: Collection[str], now: float) -> Iterator[LedgerEntry]:
    if not isinstance(element, dict):
        refuse_field(place, "must be an object")
    customer_id = element.get("customer_id")
    if not isinstance(customer_id, str) or not customer_id:
        refuse_field(f"{place}.customer_id", "must be a string that is not empty")
    if not isinstance(element.get("user_attributes", {}), dict):
        refuse_field(f"{place}.user_attributes", "must be an object")
    offset = element.get("user_timezone_offset", 0)
    if not _is_integer(offset) or abs(offset) > MAX_OFFSET:
        refuse_field(f"{place}.user_timezone_offset", f"must be an integer from -{MAX_OFFSET} to {MAX_OFFSET}")
    entries = element.get("actions")
    if not isinstance(entries, list) or not entries:
        refuse_field(f"{place}.actions", "must be an array that is not empty")
    for index, entry in enumerate(entries):
        yield _read_action(entry, f"{place}.actions[{index}]", customer_id, actions, now)


def _read_action(entry: object, place: str, customer_id: str, actions: Collection[str], now: float) -> LedgerEntry:
    if not isinstance(entry, dict):
        refuse_field(place, "must be an object")
    action, event_uuid, event_time = entry.get("action"), entry.get("moe_event_uuid"), entry.get("event_time")
    platform = entry.get("platform")
    if not isinstance(action, str) or action not in actions:
        refuse_field(f"{place}.action", f"must be one of {', '.join(actions)}")
    if not isinstance(event_uuid, str) or not _UUID4.fullmatch(event_uuid):
        refuse_field(f"{place}.moe_event_uuid", "must be a UUID of version 4")
    if not _is_integer(event_time) or event_time < 0:
        refuse_field(f"{place}.event_time", "must be Unix time in whole seconds")
    if event_time > now + CLOCK_SKEW:
        refuse_field(f"{place}.event_time", "must not be in the future")
    if not isinstance(platform, str) or platform not in PLATFORMS:
        refuse_field(f"{place}.platform", f"must be one of {', '.join(PLATFORMS)}")
    attributes = _read_attributes(entry.get("attributes"), f"{place}.attributes", action)
    element = attributes.get("b_id", entry.get("b_id", ""))
    if not isinstance(element, str):
        refuse_field(f"{place}.b_id", "must be a string")
    return LedgerEntry(event_uuid.lower(), action, customer_id, event_time, now, platform, element, attributes)


def _read_attributes(value: object, place: str, action: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        refuse_field(place, "must be an object")
    for name in [*(() if action in OFFERING_ACTIONS else CONTEXT_FIELDS), *value]:
        if not isinstance(value.get(name), str):
            refuse_field(f"{place}.{name}", "must be a string")
    return value


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)

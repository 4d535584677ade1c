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
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from django_moe_personalize.moengage.http1 import Request
from django_moe_personalize.moengage.types import MAX_ELEMENTS, Action
from django_moe_personalize.sandbox.audiences import DAYS
from django_moe_personalize.sandbox.ledger import LedgerEntry
from django_moe_personalize.sandbox.reading import refuse_constant
from django_moe_personalize.sandbox.responses import RefusedError, build_invalid_field
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

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)
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
    headers = check_key(request, workspace.workspace_id, workspace.api_key)
    if headers.get("moe-appkey") != workspace.workspace_id:
        raise RefusedError(400, "Request Error", "The MOE-APPKEY header is missing or unknown.", "REQUEST_ERROR")


def check_key(request: Request, workspace_id: str, key: str) -> dict[str, str]:
    """Refuse a wrong Authorization header (401). Return the headers, with names in lower case."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    expected = f"{workspace_id}:{key}".encode()
    if not hmac.compare_digest(_basic(headers.get("authorization", "")), expected):
        challenge = {"www-authenticate": 'Basic realm="MoEngage"'}
        description = "The workspace id or the API key is wrong."
        raise RefusedError(401, "Authentication required", description, headers=challenge)
    return headers


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
    data = None
    with suppress(ValueError, RecursionError):
        data = json.loads(body.decode("utf-8"), parse_constant=refuse_constant, parse_float=_read_float)
    if not isinstance(data, dict):
        raise RefusedError(400, "Malformed JSON", "The body is not a JSON object in UTF-8.", "MALFORMED_JSON")
    return data


def _read_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        # 1e999 is valid JSON, but Python reads infinity, and the ledger can't write infinity as JSON.
        raise ValueError("a number is out of range")
    return number


def require(is_valid: object, place: str, rule: str) -> None:
    """Refuse a request with a bad field (400). ``rule`` must not quote the value, which may be personal."""
    if not is_valid:
        raise build_invalid_field(f"{place} {rule}")


def read_fetch(data: Mapping[str, Any]) -> FetchQuery:
    """Return the fetch that a body describes (contract §2), with each key once. Raises RefusedError."""
    session = {name: value for name, value in data.items() if name not in ("identifiers", "experience_key")}
    for name, value in session.items():
        require(isinstance(value, str), name, "must be a string")
    require(session.get("DAY_OF_THE_WEEK", "Monday") in DAYS, "DAY_OF_THE_WEEK", "must be one of Monday … Sunday")
    require(_HOUR.fullmatch(session.get("TIME_OF_THE_DAY", "00")), "TIME_OF_THE_DAY", "must be one of 00 … 23")
    customer_id, identifiers = _read_identifiers(data.get("identifiers", {}))
    keys = data.get("experience_key", [])
    is_list = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    require(is_list, "experience_key", "must be an array of strings")
    return FetchQuery(customer_id, identifiers, tuple(dict.fromkeys(keys)) or None, session)


def _read_identifiers(value: Any) -> tuple[str | None, Mapping[str, str] | str]:
    require(isinstance(value, dict), "identifiers", "must be an object")
    customer_id, identifiers = value.get("customer_id", ""), value.get("user_identifiers", {})
    require(isinstance(customer_id, str), "identifiers.customer_id", "must be a string")
    is_map = isinstance(identifiers, dict) and all(isinstance(entry, str) for entry in identifiers.values())
    is_valid = is_map or isinstance(identifiers, str)
    require(is_valid, "identifiers.user_identifiers", "must be an object of strings")
    return customer_id or None, identifiers


def read_events(data: Mapping[str, Any], *, now: float, offering_actions: bool) -> Iterator[LedgerEntry]:
    """Yield an entry for each action in a batch (contract §4), without the experience key.

    Raises RefusedError at the first mistake. One bad element fails the whole batch, so the caller must read all entries
    before it records the first entry.
    """
    actions = ACTIONS + OFFERING_ACTIONS if offering_actions else ACTIONS
    elements: Any = data.get("elements")
    is_batch = isinstance(elements, list) and 0 < len(elements) <= MAX_ELEMENTS
    require(is_batch, "elements", f"must be an array of 1 to {MAX_ELEMENTS} elements")
    for index, element in enumerate(elements):
        yield from _read_element(element, f"elements[{index}]", actions, now)


def read_profiles(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (customer id, user attributes) of each element of a batch that read_events() accepted."""
    for element in data["elements"]:
        yield element["customer_id"], element.get("user_attributes", {})


def _read_element(element: Any, place: str, actions: Collection[str], now: float) -> Iterator[LedgerEntry]:
    require(isinstance(element, dict), place, "must be an object")
    customer_id, entries = element.get("customer_id"), element.get("actions")
    offset = element.get("user_timezone_offset", 0)
    is_id = isinstance(customer_id, str) and customer_id
    require(is_id, f"{place}.customer_id", "must be a string that is not empty")
    require(isinstance(element.get("user_attributes", {}), dict), f"{place}.user_attributes", "must be an object")
    is_offset = type(offset) is int and abs(offset) <= MAX_OFFSET
    require(is_offset, f"{place}.user_timezone_offset", f"must be an integer from -{MAX_OFFSET} to {MAX_OFFSET}")
    require(isinstance(entries, list) and entries, f"{place}.actions", "must be an array that is not empty")
    for index, entry in enumerate(entries):
        yield _read_action(entry, f"{place}.actions[{index}]", customer_id, actions, now)


def _read_action(entry: Any, place: str, customer_id: str, actions: Collection[str], now: float) -> LedgerEntry:
    require(isinstance(entry, dict), place, "must be an object")
    action, event_uuid, event_time = entry.get("action"), entry.get("moe_event_uuid"), entry.get("event_time")
    platform = entry.get("platform")
    require(isinstance(action, str) and action in actions, f"{place}.action", f"must be one of {', '.join(actions)}")
    is_uuid = isinstance(event_uuid, str) and UUID4.fullmatch(event_uuid)
    require(is_uuid, f"{place}.moe_event_uuid", "must be a UUID of version 4")
    is_time = type(event_time) is int and event_time >= 0
    require(is_time, f"{place}.event_time", "must be Unix time in whole seconds")
    require(event_time <= now + CLOCK_SKEW, f"{place}.event_time", "must not be in the future")
    is_platform = isinstance(platform, str) and platform in PLATFORMS
    require(is_platform, f"{place}.platform", f"must be one of {', '.join(PLATFORMS)}")
    attributes = entry.get("attributes")
    require(isinstance(attributes, dict), f"{place}.attributes", "must be an object")
    for name in [*(() if action in OFFERING_ACTIONS else CONTEXT_FIELDS), *attributes]:
        require(isinstance(attributes.get(name), str), f"{place}.attributes.{name}", "must be a string")
    element = attributes.get("b_id", entry.get("b_id", ""))
    require(isinstance(element, str), f"{place}.b_id", "must be a string")
    return LedgerEntry(event_uuid.lower(), action, customer_id, event_time, now, platform, element, attributes)

"""The contract suite: invalid requests get their status and the vendor's envelope, in the process and over HTTP."""

import uuid
from typing import Any

import pytest

from django_moe_personalize.moengage.http1 import Request
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.validation import MAX_BODY
from tests.sandbox.ways import (
    API_KEY,
    CONTEXT,
    EVENTS,
    FETCH,
    METADATA,
    NOW,
    WORKSPACE_ID,
    Way,
    action,
    assert_refused,
    basic,
    batch,
    credentials,
    element,
    post,
)


def _with(**changes: Any) -> dict[str, Any]:
    return batch(element(action(**changes)))


_FIRST = {name: value for name, value in CONTEXT.items() if name != "audience_id"}
BAD_EVENTS = {
    "elements missing": {},
    "elements not an array": {"elements": {}},
    "elements empty": batch(),
    "elements 101": batch(*[element() for _ in range(101)]),
    "element not an object": batch("x"),
    "customer_id missing": batch(element(customer_id=...)),
    "customer_id empty": batch(element(customer_id="")),
    "customer_id a number": batch(element(customer_id=1)),
    "user_attributes a string": batch(element(user_attributes="x")),
    "offset too far east": batch(element(user_timezone_offset=54_001)),
    "offset too far west": batch(element(user_timezone_offset=-54_001)),
    "offset a float": batch(element(user_timezone_offset=3600.0)),
    "offset a string": batch(element(user_timezone_offset="3600")),
    "offset a boolean": batch(element(user_timezone_offset=True)),
    "actions missing": batch(element(actions=...)),
    "actions empty": batch(element(actions=[])),
    "actions an object": batch(element(actions={"a": 1})),
    "action not an object": batch(element("x")),
    "action unknown": _with(action="MOE_PERSONALIZATION_MESSAGE_SEEN"),
    "action missing": _with(action=...),
    "action an array": _with(action=["MOE_PERSONALIZATION_MESSAGE_SHOWN"]),
    "offering action": _with(action="MOE_OFFERING_SHOWN"),
    "uuid missing": _with(moe_event_uuid=...),
    "uuid of version 1": _with(moe_event_uuid=str(uuid.uuid1())),
    "uuid without dashes": _with(moe_event_uuid=uuid.uuid4().hex),
    "uuid with a line end": _with(moe_event_uuid=f"{uuid.uuid4()}\n"),
    "uuid a number": _with(moe_event_uuid=4),
    "time missing": _with(event_time=...),
    "time in the future": _with(event_time=int(NOW) + 61),
    "time in milliseconds": _with(event_time=int(NOW) * 1000),
    "time a float": _with(event_time=NOW - 5.5),
    "time a string": _with(event_time=str(int(NOW))),
    "time negative": _with(event_time=-1),
    "platform missing": _with(platform=...),
    "platform unknown": _with(platform="fridge"),
    "platform an array": _with(platform=["web"]),
    "attributes missing": _with(attributes=...),
    "attributes a string": _with(attributes="x"),
    "context incomplete": _with(attributes=_FIRST),
    "context field a number": _with(attributes={**CONTEXT, "moe_locale_id": 0}),
    "b_id a number": _with(attributes={**CONTEXT, "b_id": 1}),
    "b_id next to the attributes a number": _with(b_id=1),
    "offerings an array": _with(attributes={**CONTEXT, "moe_offering_ids": ["1"]}),
}


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_one_bad_element_fails_the_whole_batch(way: Way, shipped: Engine, name: str) -> None:
    """The sandbox records nothing of a batch with a mistake, not even the valid elements before it."""
    bad = BAD_EVENTS[name]
    if isinstance(bad.get("elements"), list) and 0 < len(bad["elements"]) < 100:
        bad = batch(element(), *bad["elements"])
    assert_refused(way(post(EVENTS, bad)), 400, "Invalid Field Value")
    assert shipped.ledger.entries() == []


@pytest.mark.parametrize(
    "sent",
    [
        batch(*[element() for _ in range(100)]),
        batch(element(user_timezone_offset=54_000), element(user_timezone_offset=-54_000)),
        batch(element(user_timezone_offset=...)),
        _with(event_time=int(NOW) + 60),
        _with(event_time=0),
        *(_with(platform=platform) for platform in ("web", "android", "ios", "tv")),
    ],
)
def test_events_at_the_limits_are_accepted(way: Way, sent: Any) -> None:
    """A value that equals a limit of the contract is valid."""
    assert way(post(EVENTS, sent)).status == 200


# -- requests that all endpoints refuse


@pytest.mark.parametrize("path", [FETCH, EVENTS])
@pytest.mark.parametrize(
    "body",
    [
        *[b"", b"  ", b"{", b"nope", b"[]", b"1", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000],
        *[b'{"a": NaN}', b'{"a": 1e999}', b'{"a": ' + b"9" * 5000 + b"}", b'\xef\xbb\xbf{"a": "b"}'],
    ],
)
def test_a_body_that_is_not_a_json_object_is_malformed(way: Way, path: str, body: bytes) -> None:
    """An empty, cut, hostile or otherwise invalid body gets the same response."""
    assert_refused(way(post(path, body)), 400, "Malformed JSON")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("DAY_OF_THE_WEEK", day) for day in ("monday", "Someday", 1)),
        *(("TIME_OF_THE_DAY", hour) for hour in ("24", "7", "07:00", "\u0660\u0667", 7)),
        *[("USER_IP_ADDRESS", None), ("USER_AGENT", []), ("cart_value", 500)],
        *(("experience_key", keys) for keys in ("hero-banner", [1], None)),
        *(("identifiers", value) for value in ("1", None, {"customer_id": 1}, {"customer_id": None})),
        *(("identifiers", {"user_identifiers": value}) for value in (["ada@example.com"], {"u_em": 1})),
    ],
)
def test_a_field_of_the_wrong_type_is_an_invalid_field_value(way: Way, name: str, value: Any) -> None:
    """Invalid values have another title than invalid JSON."""
    assert_refused(way(post(FETCH, {name: value})), 400, "Invalid Field Value")


def _request(path: str, headers: dict[str, str], body: bytes = b"{}") -> Request:
    return Request("GET" if path == METADATA else "POST", path, headers=headers, body=body)


@pytest.mark.parametrize("path", [FETCH, METADATA, EVENTS])
@pytest.mark.parametrize(
    "authorization",
    [
        *[None, "", "Basic", "Basic !!!", f"Basic {WORKSPACE_ID}:{API_KEY}", basic().replace("Basic", "Bearer")],
        *[basic(password="data-key"), basic(user="OTHER"), f"{basic()}\xe9", basic(password=API_KEY + "\xe9")],
    ],
)
def test_wrong_credentials_are_401_for_any_body(way: Way, path: str, authorization: str | None) -> None:
    """The sandbox checks the credentials before the body."""
    headers = {} if authorization is None else {"Authorization": authorization}
    response = way(_request(path, headers, b"{"))
    assert_refused(response, 401, "Authentication required")
    assert response.headers["www-authenticate"].startswith("Basic")


@pytest.mark.parametrize("path", [FETCH, METADATA, EVENTS])
@pytest.mark.parametrize("appkey", [{}, {"MOE-APPKEY": "OTHER"}, {"MOE-APPKEY": ""}])
def test_a_missing_or_unknown_app_key_is_a_request_error(way: Way, path: str, appkey: dict[str, str]) -> None:
    """Every call needs the header; the sandbox checks it before the body."""
    assert_refused(way(_request(path, {"Authorization": basic(), **appkey}, b"{")), 400, "Request Error")


def test_header_names_and_the_scheme_are_case_insensitive(way: Way) -> None:
    """HTTP requires that a server ignores the case of header names and of the scheme."""
    headers = {"authorization": basic().replace("Basic", "bAsIc"), "moe-appkey": WORKSPACE_ID}
    assert way(_request(FETCH, headers)).status == 200


@pytest.mark.parametrize("path", [FETCH, EVENTS])
def test_a_body_over_128_kib_is_too_large(way: Way, path: str) -> None:
    """The sandbox answers 413 before it parses the JSON; it parses a body of exactly the limit."""
    assert_refused(way(post(path, b" " * (MAX_BODY + 1))), 413, "PayloadTooLarge")
    assert_refused(way(post(path, b" " * MAX_BODY)), 400, "Malformed JSON")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", METADATA, "GET"),
        ("PUT", EVENTS, "POST"),
        *((each, FETCH, "POST") for each in ("GET", "BREW", "OPTIONS")),
    ],
)
def test_another_method_is_not_allowed(way: Way, method: str, path: str, allowed: str) -> None:
    """The 405 names the allowed method, also without credentials."""
    response = way(Request(method, path))
    assert_refused(response, 405, "Method Not Allowed")
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/", "/experiences", "/experiences/fetch/", "/Experiences/fetch"])
def test_another_path_is_not_found(way: Way, path: str) -> None:
    """The 404 has the vendor's envelope too."""
    assert_refused(way(Request("POST", path, headers=credentials())), 404, "Not Found")

"""The client: the three calls byte by byte, in one step and in two (contract §1–§4)."""

from __future__ import annotations

import base64
import json
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize import __version__
from django_moe_personalize.exceptions import APIError, InvalidResponseError, ServerError
from django_moe_personalize.moengage.client import SYSTEM_FIELDS, PersonalizeClient, read_answer
from django_moe_personalize.moengage.frames import FETCH_FIELDS
from django_moe_personalize.moengage.http1 import Request, Response
from django_moe_personalize.moengage.types import (
    MAX_ELEMENTS,
    MAX_KEYS,
    Action,
    DataSource,
    ExperiencesResult,
    ExperienceStatus,
)
from django_moe_personalize.resilience import Deadline
from tests.anything import patiently
from tests.error_reports import describe_report
from tests.moengage.test_events import build_event

KEY = "s3cret-key"
TOKEN = base64.b64encode(b"WORK_DEBUG:s3cret-key").decode()
DEADLINE = Deadline(None)
NOTHING = b'{"experiences": {}}'
ACCEPTED = b'{"status": "success", "message": "Your request has ...", "req_id": "SKuSLFnX"}'
WANDA = {"customer_id": "Wanda", "user_identifiers": {"u_em": "Wanda"}, "attributes": {"USER_AGENT": "Wanda"}}


class Scripted:
    """A transport with one response to all requests, and an exchange that returns it at the second receive()."""

    def __init__(self, answer: Response | bytes = b"") -> None:
        self.answer = Response(200, body=answer) if isinstance(answer, bytes) else answer
        self.requests: list[Request] = []
        self.deadlines: list[Deadline] = []
        self.is_closed = False

    def send(self, request: Request, *, deadline: Deadline) -> Response:
        self.requests.append(request)
        self.deadlines.append(deadline)
        return self.answer

    def start(self, request: Request) -> Scripted:
        self.requests.append(request)
        return self

    def close(self) -> None:
        self.is_closed = True


def build_client(answer: Response | bytes = b"") -> tuple[PersonalizeClient, Scripted]:
    """Return a client and its transport."""
    transport = Scripted(answer)
    return PersonalizeClient(workspace_id="WORK_DEBUG", api_key=KEY, transport=transport), transport


# -- fetch


def test_fetch_is_written_as_documented():
    """Both ways to fetch send a POST with Basic authentication, MOE-APPKEY and a flat JSON body."""
    client, transport = build_client(NOTHING)
    visitor = {
        "customer_id": "42",
        "user_identifiers": {"u_em": "wanda@example.com"},
        "attributes": {"DAY_OF_THE_WEEK": "Monday", "utm_medium": "e-mail ü"},
    }
    client.fetch_experiences(["hero", "promo"], **visitor, deadline=DEADLINE)
    client.start_fetch(["hero", "promo"], **visitor)
    assert transport.deadlines == [DEADLINE]
    for request in transport.requests:
        assert (request.method, request.path, request.query) == ("POST", "/experiences/fetch", "")
        assert request.headers == {
            "Authorization": f"Basic {TOKEN}",
            "MOE-APPKEY": "WORK_DEBUG",
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": f"django-moe-personalize/{__version__}",
        }
        assert json.loads(request.body) == {
            "identifiers": {"customer_id": "42", "user_identifiers": {"u_em": "wanda@example.com"}},
            "experience_key": ["hero", "promo"],
            "DAY_OF_THE_WEEK": "Monday",
            "utm_medium": "e-mail ü",
        }
    assert len(transport.requests) == 2


@pytest.mark.parametrize(
    ("keys", "arguments", "body"),
    [
        pytest.param(None, {}, {}, id="everything-for-all-users"),
        pytest.param(None, {"customer_id": "42"}, {"identifiers": {"customer_id": "42"}}, id="all-of-a-customer"),
        pytest.param(["a"], {"customer_id": ""}, {"experience_key": ["a"]}, id="empty-customer-is-none"),
        pytest.param(["a"], {"user_identifiers": {}}, {"experience_key": ["a"]}, id="empty-identifiers-are-none"),
        pytest.param(("b", "a", "b"), {}, {"experience_key": ["b", "a"]}, id="a-key-twice-is-asked-once"),
    ],
)
def test_fetch_has_no_empty_fields(keys, arguments, body):
    """The body has no field for an argument that is missing."""
    client, transport = build_client(NOTHING)
    client.fetch_experiences(keys, **arguments, deadline=DEADLINE)
    assert json.loads(transport.requests[0].body) == body


def test_fetch_returns_experiences():
    """Both ways to fetch return the experiences by key, with the source NETWORK."""
    answer = b'{"experiences": {"hero": {"payload": {"Title": {"value": "1", "data_type": "number"}}}}}'
    client, transport = build_client(answer)
    hero = client.fetch_experiences(["hero"], deadline=DEADLINE).experiences["hero"]
    assert (hero["Title"], hero.source) == (1, DataSource.NETWORK)
    assert client.start_fetch(["hero"]) is transport
    assert read_answer(transport.answer, ["hero"]).experiences["hero"]["Title"] == 1


def test_transport_with_one_step_starts_nothing():
    """start_fetch() returns None if the transport has no start()."""
    transport = type("OneStep", (), {"send": None, "close": None})()
    client = PersonalizeClient(workspace_id="WORK", api_key=KEY, transport=transport)
    assert client.start_fetch(["hero"]) is None


def test_no_keys_and_no_events_make_no_call():
    """An empty sequence gives an empty result. In a request, no keys would mean all keys."""
    client, transport = build_client()
    assert client.fetch_experiences([], deadline=DEADLINE) == ExperiencesResult()
    assert client.send_events([], deadline=DEADLINE) == ""
    assert transport.requests == []


def test_25_keys_are_the_most():
    """A call may have 25 different keys. 26 keys raise a ValueError before the call."""
    client, transport = build_client(NOTHING)
    keys = [f"key-{number}" for number in range(MAX_KEYS)]
    client.fetch_experiences([*keys, keys[0]], deadline=DEADLINE)
    with pytest.raises(ValueError, match="26 experience keys in one call; the most is 25"):
        client.fetch_experiences([*keys, "one-more"], deadline=DEADLINE)
    assert len(transport.requests) == 1


def test_string_is_not_a_sequence_of_keys():
    """A string raises a ValueError, because each letter would become a key."""
    with pytest.raises(ValueError, match="not one string"):
        build_client()[0].fetch_experiences("hero", deadline=DEADLINE)


@pytest.mark.parametrize("name", sorted(FETCH_FIELDS))
def test_attribute_cannot_have_the_name_of_a_fetch_field(name):
    """Such an attribute raises a ValueError, because it could fetch another visitor's content."""
    client, transport = build_client()
    with pytest.raises(ValueError, match=f"attributes may not be named {name}"):
        client.fetch_experiences(["hero"], attributes={name: "x"}, deadline=DEADLINE)
    assert transport.requests == []
    assert name in SYSTEM_FIELDS


@patiently
@given(attributes=st.dictionaries(st.text().filter(lambda name: name not in FETCH_FIELDS), st.text(st.characters())))
def test_any_text_travels_as_an_attribute(attributes):
    """Names and values of any characters, lone surrogates included, come back from the JSON as they were."""
    client, transport = build_client(NOTHING)
    client.fetch_experiences(["hero"], attributes=attributes, deadline=DEADLINE)
    assert json.loads(transport.requests[0].body) == attributes | {"experience_key": ["hero"]}


# -- metadata


@pytest.mark.parametrize(
    ("statuses", "query"),
    [
        pytest.param((), "", id="all"),
        pytest.param([ExperienceStatus.ACTIVE], "status=Active", id="one"),
        pytest.param((ExperienceStatus.ACTIVE, ExperienceStatus.SCHEDULED), "status=Active%2CScheduled", id="two"),
    ],
)
def test_metadata_is_asked_as_documented(statuses, query):
    """The request is a GET with the capitalized statuses in the query, and without a body."""
    client, transport = build_client(b'{"metadata": {"experiences": [{"experience_key": "hero", "status": "Active"}]}}')
    (row,) = client.fetch_metadata(statuses, deadline=DEADLINE).experiences
    assert (row.experience_key, row.status) == ("hero", ExperienceStatus.ACTIVE)
    (request,) = transport.requests
    assert (request.method, request.path, request.query) == ("GET", "/experiences/metadata", query)
    assert request.body == b""
    assert "Content-Type" not in request.headers
    assert parse_qs(request.query).get("status", [""]) == [",".join(status.name.title() for status in statuses)]


def test_metadata_of_unknown_status_cannot_be_asked():
    """UNKNOWN raises a ValueError, because the API would return an empty list."""
    with pytest.raises(ValueError, match="ACTIVE, PAUSED and SCHEDULED"):
        build_client()[0].fetch_metadata([ExperienceStatus.UNKNOWN], deadline=DEADLINE)


# -- events


def test_events_are_written_as_documented():
    """The body has one element for each customer, with the actions in their order. The result is the request id."""
    client, transport = build_client(ACCEPTED)
    events = [
        build_event("42", event_uuid="u1"),
        build_event("43", event_uuid="u2"),
        build_event("42", event_uuid="u3", action=Action.CLICKED, attributes={"cid": "c", "b_id": "cta"}, event_time=7),
    ]
    assert client.send_events(events, deadline=DEADLINE) == "SKuSLFnX"
    (request,) = transport.requests
    assert (request.method, request.path) == ("POST", "/experiences/events")
    shown = {"action": "MOE_PERSONALIZATION_MESSAGE_SHOWN", "event_time": 1_700_000_000, "platform": "web"}
    clicked = {"action": "MOE_PERSONALIZATION_MESSAGE_CLICKED", "event_time": 7, "platform": "web"}
    assert json.loads(request.body) == {
        "elements": [
            {
                "customer_id": "42",
                "actions": [
                    shown | {"moe_event_uuid": "u1", "attributes": {"cid": "c"}},
                    clicked | {"moe_event_uuid": "u3", "attributes": {"cid": "c", "b_id": "cta"}},
                ],
            },
            {"customer_id": "43", "actions": [shown | {"moe_event_uuid": "u2", "attributes": {"cid": "c"}}]},
        ]
    }


def test_100_customers_are_the_most():
    """A call may have events of 100 customers. One customer more raises a ValueError before the call."""
    client, transport = build_client(ACCEPTED)
    events = [build_event(str(number % MAX_ELEMENTS)) for number in range(3 * MAX_ELEMENTS)]
    client.send_events(events, deadline=DEADLINE)
    with pytest.raises(ValueError, match="events of 101 customers in one call; the most is 100"):
        client.send_events([*events, build_event("one more")], deadline=DEADLINE)
    assert len(transport.requests) == 1


@pytest.mark.parametrize("body", [b'{"status": "success"}', b'{"req_id": 5}', b"{}"], ids=repr)
def test_acceptance_without_an_id_is_accepted(body):
    """A response without an id is no error, because a retry would report the events twice."""
    assert build_client(body)[0].send_events([build_event()], deadline=DEADLINE) == ""


@pytest.mark.parametrize("body", [b'{"status": "failed"}', b"[]", b"<html>", b'"success"'], ids=repr)
def test_200_that_accepts_nothing_is_refused(body):
    """A gateway's page with status 200 raises an InvalidResponseError."""
    with pytest.raises(InvalidResponseError):
        build_client(body)[0].send_events([build_event()], deadline=DEADLINE)


# -- errors and secrets


def test_other_status_than_200_is_an_error():
    """Every call raises the error of the status."""
    client, transport = build_client(Response(503))
    for call in (
        lambda: client.fetch_experiences(None, deadline=DEADLINE),
        lambda: read_answer(transport.answer, ["hero"]),
        lambda: client.fetch_metadata(deadline=DEADLINE),
        lambda: client.send_events([build_event()], deadline=DEADLINE),
    ):
        with pytest.raises(ServerError, match="MoEngage answered 503"):
            call()


@pytest.mark.parametrize(
    ("name", "value"),
    [("api_key", ""), *(("workspace_id", value) for value in ("", "a:b", "a b", "a\n", "ä"))],
    ids=repr,
)
def test_credential_that_no_header_can_carry_is_refused(name, value):
    """An empty key, and a workspace id with a colon or other characters than visible ASCII, raise a ValueError."""
    with pytest.raises(ValueError, match=name):
        PersonalizeClient(**{"workspace_id": "WORK", "api_key": KEY, name: value}, transport=Scripted())


def test_client_can_be_shown():
    """The repr contains the transport and no credential."""
    shown = repr(build_client()[0])
    assert "PersonalizeClient over <tests.moengage.test_client.Scripted" in shown
    assert KEY not in shown
    assert "WORK" not in shown


def test_closing_closes_the_transport():
    """close() closes the transport's connections."""
    client, transport = build_client()
    client.close()
    assert transport.is_closed


@pytest.mark.parametrize(
    "answer",
    [
        Response(400, body=b'{"title": "Wanda"}'),
        Response(429),
        *[b"<html>Wanda", b'{"name": "Wanda', b'{"a": "Wanda", "a": 1}', b'"Wanda\xff"', b'["Wanda"]'],
        *[b'{"experiences": ["Wanda"], "status": "Wanda"}', b'{"metadata": "Wanda", "status": 1}'],
    ],
    ids=repr,
)
def test_error_report_shows_no_secret_and_no_visitor(answer):
    """No message, cause, repr or local variable contains the key, the visitor or the response."""
    client, _ = build_client(answer)
    event = build_event("Wanda", attributes={"audience_name": "Wanda"})
    for call in (
        lambda: client.fetch_experiences(["hero"], **WANDA, deadline=DEADLINE),
        lambda: client.send_events([event], deadline=DEADLINE),
        lambda: client.fetch_metadata(deadline=DEADLINE),
    ):
        with pytest.raises(APIError) as caught:
            call()
        assert caught.value.__cause__ is caught.value.__context__ is None
        shown = describe_report(caught.value)
        assert "request = Request(method=" in shown
        assert not [secret for secret in (KEY, TOKEN, "Wanda") if secret in shown]


def test_abort_shows_no_visitor(monkeypatch):
    """After an abort during a call, no local variable contains the visitor."""

    def abort(*_args: object) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(Scripted, "start", abort)
    with pytest.raises(SystemExit) as ended:
        build_client()[0].start_fetch(["hero"], **WANDA)
    shown = describe_report(ended.value)
    assert "request = Request(method='POST'" in shown
    assert "Wanda" not in shown

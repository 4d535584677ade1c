"""The client: the three calls byte by byte, and errors that say enough and not too much (contract §1–§4)."""

from __future__ import annotations

import base64
import json
import traceback
from urllib.parse import parse_qs

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_moe_personalize import __version__
from django_moe_personalize.exceptions import (
    APIError,
    AuthenticationError,
    InvalidResponseError,
    RateLimitedError,
    ResponseError,
    ServerError,
)
from django_moe_personalize.moengage.client import (
    FETCH_FIELDS,
    SYSTEM_FIELDS,
    PersonalizeClient,
    build_error,
    read_retry_after,
)
from django_moe_personalize.moengage.messages import Request, Response
from django_moe_personalize.moengage.types import (
    MAX_ELEMENTS,
    MAX_KEYS,
    Action,
    DataSource,
    Event,
    ExperiencesResult,
    ExperienceStatus,
)
from django_moe_personalize.resilience import Deadline
from tests.error_reports import describe_report

KEY = "s3cret-key"
ACCEPTED = Response(200, body=b'{"status": "success", "message": "Your request has ...", "req_id": "SKuSLFnX"}')

# A busy machine makes an example slow, not wrong.
patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Scripted:
    """A Transport that keeps what it was asked and answers from a list, the last one for ever."""

    def __init__(self, *answers: Response) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []
        self.deadlines: list[Deadline] = []
        self.closed = 0

    def send(self, request: Request, *, deadline: Deadline) -> Response:
        self.requests.append(request)
        self.deadlines.append(deadline)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def close(self) -> None:
        self.closed += 1


def build_client(*answers: Response | bytes) -> tuple[PersonalizeClient, Scripted]:
    """Return a client and its transport, which answers with these; bytes are a 200."""
    transport = Scripted(*(Response(200, body=answer) if isinstance(answer, bytes) else answer for answer in answers))
    return PersonalizeClient(workspace_id="WORK_DEBUG", api_key=KEY, transport=transport), transport


def build_event(customer_id: str = "42", **fields: object) -> Event:
    """Return an impression of a customer."""
    return Event(
        **{"action": Action.SHOWN, "customer_id": customer_id, "attributes": {"cid": "c"}, "event_time": 1_800_000_000}
        | fields
    )


@pytest.fixture
def deadline() -> Deadline:
    """No deadline: the scripted transport answers at once."""
    return Deadline(None)


# -- fetch


def test_a_fetch_is_written_as_documented(deadline):
    """POST with Basic authentication, MOE-APPKEY, and a flat JSON body of identifiers, keys and attributes."""
    client, transport = build_client(b'{"experiences": {}}')
    client.fetch_experiences(
        ["hero", "promo"],
        customer_id="42",
        user_identifiers={"u_em": "wanda@example.com"},
        attributes={"DAY_OF_THE_WEEK": "Monday", "utm_medium": "e-mail ü"},
        deadline=deadline,
    )
    (request,) = transport.requests
    assert (request.method, request.path, request.query) == ("POST", "/experiences/fetch", "")
    assert request.headers == {
        "Authorization": "Basic " + base64.b64encode(b"WORK_DEBUG:s3cret-key").decode(),
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
    assert transport.deadlines == [deadline]


@pytest.mark.parametrize(
    ("keys", "arguments", "body"),
    [
        pytest.param(None, {}, {}, id="everything-for-everybody"),
        pytest.param(None, {"customer_id": "42"}, {"identifiers": {"customer_id": "42"}}, id="all-of-a-customer"),
        pytest.param(["a"], {"customer_id": ""}, {"experience_key": ["a"]}, id="empty-customer-is-none"),
        pytest.param(["a"], {"user_identifiers": {}}, {"experience_key": ["a"]}, id="empty-identifiers-are-none"),
        pytest.param(("b", "a", "b"), {}, {"experience_key": ["b", "a"]}, id="a-key-twice-is-asked-once"),
    ],
)
def test_a_fetch_says_only_what_it_knows(keys, arguments, body, deadline):
    """What is not given is not in the body."""
    client, transport = build_client(b'{"experiences": {}}')
    client.fetch_experiences(keys, **arguments, deadline=deadline)
    assert json.loads(transport.requests[0].body) == body


def test_a_fetch_returns_what_the_reader_reads(deadline):
    """Experiences by key, from the network."""
    client, _ = build_client(
        b'{"experiences": {"hero": {"payload": {"Title": {"value": "1", "data_type": "number"}}}}}'
    )
    hero = client.fetch_experiences(["hero"], deadline=deadline).experiences["hero"]
    assert (hero["Title"], hero.source) == (1, DataSource.NETWORK)


def test_no_keys_make_no_call(deadline):
    """An empty sequence is an empty result: on the wire it would mean everything."""
    client, transport = build_client(b"")
    assert client.fetch_experiences([], deadline=deadline) == ExperiencesResult()
    assert transport.requests == []


def test_25_keys_are_the_most(deadline):
    """25 different keys travel; one more is a ValueError and no call."""
    client, transport = build_client(b'{"experiences": {}}')
    keys = [f"key-{number}" for number in range(MAX_KEYS)]
    client.fetch_experiences([*keys, keys[0]], deadline=deadline)
    with pytest.raises(ValueError, match="26 experience keys in one call; the most is 25"):
        client.fetch_experiences([*keys, "one-more"], deadline=deadline)
    assert len(transport.requests) == 1


def test_one_string_is_no_sequence_of_keys(deadline):
    """A string would be asked for letter by letter."""
    client, _ = build_client(b"")
    with pytest.raises(ValueError, match="not one string"):
        client.fetch_experiences("hero", deadline=deadline)


@pytest.mark.parametrize("name", sorted(FETCH_FIELDS))
def test_an_attribute_cannot_say_who_asks_for_what(name, deadline):
    """An attribute named like a fetch field could ask for another visitor's content."""
    client, transport = build_client(b"")
    with pytest.raises(ValueError, match=f"attributes may not be named {name}"):
        client.fetch_experiences(["hero"], attributes={name: "x"}, deadline=deadline)
    assert transport.requests == []
    assert name in SYSTEM_FIELDS


@patiently
@given(attributes=st.dictionaries(st.text().filter(lambda name: name not in FETCH_FIELDS), st.text(st.characters())))
def test_any_text_travels_as_an_attribute(attributes):
    """Names and values of any characters, lone surrogates included, come back from the JSON as they were."""
    client, transport = build_client(b'{"experiences": {}}')
    client.fetch_experiences(["hero"], attributes=attributes, deadline=Deadline(None))
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
def test_metadata_is_asked_as_documented(statuses, query, deadline):
    """GET with the statuses capitalised, joined by commas and encoded; without a body."""
    client, transport = build_client(
        b'{"metadata": {"count": 1, "experiences": [{"experience_key": "hero", "status": "Active"}]}}'
    )
    (row,) = client.fetch_metadata(statuses, deadline=deadline).experiences
    assert (row.experience_key, row.status) == ("hero", ExperienceStatus.ACTIVE)
    (request,) = transport.requests
    assert (request.method, request.path, request.query) == ("GET", "/experiences/metadata", query)
    assert request.body == b""
    assert "Content-Type" not in request.headers
    assert parse_qs(request.query).get("status", [""]) == [",".join(status.name.title() for status in statuses)]


def test_metadata_of_unknown_status_cannot_be_asked(deadline):
    """The wire would answer with nothing, silently."""
    client, _ = build_client(b"")
    with pytest.raises(ValueError, match="ACTIVE, PAUSED and SCHEDULED"):
        client.fetch_metadata([ExperienceStatus.UNKNOWN], deadline=deadline)


# -- events


def test_events_are_written_as_documented(deadline):
    """One element a customer with several actions in their order; the request id comes back."""
    client, transport = build_client(ACCEPTED)
    events = [
        build_event("42", event_uuid="u1"),
        build_event("43", event_uuid="u2"),
        build_event("42", event_uuid="u3", action=Action.CLICKED, attributes={"cid": "c", "b_id": "cta"}, event_time=7),
    ]
    assert client.send_events(events, deadline=deadline) == "SKuSLFnX"
    (request,) = transport.requests
    assert (request.method, request.path) == ("POST", "/experiences/events")
    shown = {"action": "MOE_PERSONALIZATION_MESSAGE_SHOWN", "event_time": 1_800_000_000, "platform": "web"}
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


def test_no_events_make_no_call(deadline):
    """Nothing to report is reported nowhere."""
    client, transport = build_client(b"")
    assert client.send_events([], deadline=deadline) == ""
    assert transport.requests == []


def test_100_customers_are_the_most(deadline):
    """Any number of events of 100 customers travels; one customer more is a ValueError and no call."""
    client, transport = build_client(ACCEPTED)
    events = [build_event(str(number % MAX_ELEMENTS)) for number in range(3 * MAX_ELEMENTS)]
    client.send_events(events, deadline=deadline)
    with pytest.raises(ValueError, match="events of 101 customers in one call; the most is 100"):
        client.send_events([*events, build_event("one more")], deadline=deadline)
    assert len(transport.requests) == 1


@pytest.mark.parametrize("body", [b'{"status": "success"}', b'{"req_id": 5}', b"{}"], ids=repr)
def test_an_acceptance_without_an_id_is_accepted(body, deadline):
    """The request id is a courtesy: to send again for want of it would report twice."""
    client, _ = build_client(body)
    assert client.send_events([build_event()], deadline=deadline) == ""


@pytest.mark.parametrize("body", [b'{"status": "failed"}', b"[]", b"<html>", b'"success"'], ids=repr)
def test_a_200_that_accepts_nothing_is_refused(body, deadline):
    """A gateway's page with status 200 is no acceptance."""
    client, _ = build_client(body)
    with pytest.raises(InvalidResponseError):
        client.send_events([build_event()], deadline=deadline)


# -- errors


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (201, ResponseError, False),
        (204, ResponseError, False),
        (301, ResponseError, False),
        (307, ResponseError, False),
        (400, ResponseError, False),
        (401, AuthenticationError, False),
        (403, AuthenticationError, False),
        (404, ResponseError, False),
        (413, ResponseError, False),
        (429, RateLimitedError, True),
        (500, ServerError, True),
        (503, ServerError, True),
        (599, ServerError, True),
        (600, ResponseError, False),
    ],
)
def test_a_status_other_than_200_is_an_error_of_its_kind(status, kind, retryable, deadline):
    """Each status has its place in the tree; every call raises it."""
    client, _ = build_client(Response(status))
    for call in (
        lambda: client.fetch_experiences(None, deadline=deadline),
        lambda: client.fetch_metadata(deadline=deadline),
        lambda: client.send_events([build_event()], deadline=deadline),
    ):
        with pytest.raises(ResponseError) as caught:
            call()
        assert (type(caught.value), caught.value.status, caught.value.retryable) == (kind, status, retryable)
        assert str(caught.value) == f"MoEngage answered {status}"


@pytest.mark.parametrize(
    ("body", "message", "title", "description"),
    [
        pytest.param(
            {"title": "Authentication required", "description": "Wrong key", "code": "x"},
            "MoEngage answered 401: Authentication required",
            "Authentication required",
            "Wrong key",
            id="documented",
        ),
        pytest.param(
            {"title": "No wanda@example.com"}, "MoEngage answered 401", "No wanda@example.com", "", id="other-title"
        ),
        pytest.param({"title": 5, "description": ["x"]}, "MoEngage answered 401", "", "", id="no-text"),
        pytest.param(["x"], "MoEngage answered 401", "", "", id="no-object"),
        pytest.param({"description": "x" * 5000}, "MoEngage answered 401", "", "x" * 1000, id="long"),
    ],
)
def test_the_vendors_words_are_attributes_and_no_message(body, message, title, description):
    """Title and description may quote what was sent: only the four documented titles are repeated."""
    error = build_error(Response(401, body=json.dumps(body).encode()))
    assert (str(error), error.title, error.description) == (message, title, description)


@pytest.mark.parametrize("title", ["Malformed JSON", "Invalid Field Value", "Request Error", "Authentication required"])
def test_the_documented_titles_are_in_the_message(title):
    """They say what to mend and quote nothing."""
    error = build_error(Response(400, body=json.dumps({"title": title}).encode()))
    assert str(error) == f"MoEngage answered 400: {title}"


@pytest.mark.parametrize("body", [b"", b"<html><h1>502</h1></html>", b"\xff", b"null"], ids=repr)
def test_a_gateways_body_is_no_hindrance(body):
    """Without an envelope the words are empty."""
    error = build_error(Response(502, body=body))
    assert (str(error), error.title, error.description) == ("MoEngage answered 502", "", "")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({}, None, id="none"),
        pytest.param({"retry-after": "30"}, 30.0, id="seconds"),
        pytest.param({"retry-after": " 1.5 "}, 1.5, id="fraction"),
        pytest.param({"retry-after": "0"}, 0.0, id="zero"),
        pytest.param({"retry-after": "Fri, 15 Jan 2027 08:01:00 GMT"}, 60.0, id="date"),
        pytest.param({"retry-after": "Fri, 15 Jan 2027 09:01:00 +0100"}, 60.0, id="date-of-another-zone"),
        pytest.param({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0, id="past"),
        pytest.param({"x-ratelimit-reset": "12"}, 12.0, id="reset"),
        pytest.param({"x-ratelimit-reset": "1800000060"}, 60.0, id="reset-as-unix-time"),
        pytest.param({"x-ratelimit-reset": "1700000000"}, 0.0, id="reset-as-past-unix-time"),
        pytest.param({"retry-after": "5", "x-ratelimit-reset": "60"}, 5.0, id="both"),
        pytest.param({"retry-after": "0", "x-ratelimit-reset": "60"}, 0.0, id="both-and-zero"),
        pytest.param({"retry-after": "soon", "x-ratelimit-reset": "60"}, 60.0, id="nonsense-then-reset"),
        pytest.param({"retry-after": "-5"}, None, id="negative"),
        pytest.param({"retry-after": "nan"}, None, id="nan"),
        pytest.param({"retry-after": "inf"}, None, id="infinite"),
        pytest.param({"retry-after": "٣"}, None, id="arabic-digit"),
        pytest.param({"retry-after": "9" * 400}, None, id="absurd"),
        pytest.param({"retry-after": "Fri, 99 Foo 2027 08:01:00 GMT"}, None, id="no-date"),
    ],
)
def test_the_wait_of_a_429_is_read(headers, expected):
    """Seconds, an HTTP date or the reset header; nonsense is None."""
    assert read_retry_after(headers, clock=lambda: 1_800_000_000.0) == expected
    error = build_error(Response(429, headers), clock=lambda: 1_800_000_000.0)
    assert (error.status, error.retry_after) == (429, expected)


near_dates = st.from_regex(r"\A[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,6} \d\d:\d\d:\d\d [-+GMT0-9]{1,9}\Z")


@patiently
@given(value=st.text() | near_dates)
def test_any_wait_is_read_or_none(value):
    """No header makes an error of its own, and no wait is negative or without end."""
    wait = read_retry_after({"retry-after": value})
    assert wait is None or 0.0 <= wait < 1e12


# -- credentials


@pytest.mark.parametrize("workspace_id", ["", "a:b", "a b", "a\n", "ä"], ids=repr)
def test_a_workspace_id_that_no_header_can_carry_is_refused(workspace_id):
    """Basic authentication splits at the colon; a header takes visible ASCII."""
    with pytest.raises(ValueError, match="workspace_id"):
        PersonalizeClient(workspace_id=workspace_id, api_key=KEY, transport=Scripted())


def test_an_empty_key_is_refused():
    """A key that was not configured is a caller's mistake, found before the first call."""
    with pytest.raises(ValueError, match="api_key"):
        PersonalizeClient(workspace_id="WORK", api_key="", transport=Scripted())


def test_a_client_can_be_shown():
    """The repr names the transport and no credential."""
    client, _ = build_client(b"")
    shown = repr(client)
    assert "PersonalizeClient over <tests.test_client.Scripted" in shown
    assert KEY not in shown
    assert "WORK" not in shown


def test_closing_closes_the_transport():
    """close() releases what the transport holds."""
    client, transport = build_client(b"")
    client.close()
    assert transport.closed == 1


@pytest.mark.parametrize("answer", [Response(400), Response(429), Response(200, body=b"<html>Wanda")], ids=repr)
def test_an_error_report_shows_no_secret_and_nobody(answer, deadline):
    """Messages, reprs and locals hold neither the key nor the visitor."""
    client, _ = build_client(answer)
    with pytest.raises(APIError) as fetched:
        client.fetch_experiences(
            ["hero"],
            customer_id="Wanda",
            user_identifiers={"u_em": "Wanda"},
            attributes={"USER_AGENT": "Wanda"},
            deadline=deadline,
        )
    with pytest.raises(APIError) as sent:
        client.send_events([build_event("Wanda", attributes={"audience_name": "Wanda"})], deadline=deadline)
    token = base64.b64encode(b"WORK_DEBUG:s3cret-key").decode()
    for error in (fetched.value, sent.value):
        shown = describe_report(error)
        assert "request = Request(method='POST'" in shown
        assert not [secret for secret in (KEY, token, "Wanda") if secret in shown]


def test_a_question_that_is_cut_off_shows_nobody():
    """A server that ends its worker while a question is sent may print the locals of every frame."""

    def send(self, request):
        raise SystemExit(1)

    client, _ = build_client(b"")
    told = {"customer_id": "Wanda", "user_identifiers": {"u_em": "Wanda"}, "attributes": {"USER_AGENT": "Wanda"}}
    with pytest.raises(SystemExit) as ended:
        client.send_fetch(type("Broken", (), {"send": send})(), ["hero"], **told)
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(ended.value.__traceback__)][1:]
    assert len(frames) == 2
    assert "Wanda" not in repr(frames)

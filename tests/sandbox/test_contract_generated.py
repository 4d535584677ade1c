"""The contract suite with generated requests, valid and mutated, in the process and over HTTP."""

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_moe_personalize.moengage.http1 import Request
from django_moe_personalize.sandbox.audiences import DAYS
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.server import SandboxServer
from django_moe_personalize.sandbox.workspace import load_workspace
from tests.sandbox import schema
from tests.sandbox.ways import (
    CONTEXT,
    EVENTS,
    FETCH,
    METADATA,
    NOW,
    PHONE,
    HttpWay,
    Way,
    action,
    assert_refused,
    batch,
    credentials,
    element,
    get_metadata,
    post,
    read,
)

KEYS = list(load_workspace().definitions)
few = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(max_size=20)
fetches = st.fixed_dictionaries(
    {},
    optional={
        "identifiers": st.fixed_dictionaries(
            {},
            optional={
                "customer_id": st.sampled_from(["1", "2", "3", ""]) | texts,
                "user_identifiers": st.dictionaries(st.sampled_from(["u_em", "u_mb", "x"]), texts) | texts,
            },
        ),
        "experience_key": st.lists(st.sampled_from(KEYS) | texts, max_size=40),
        "DAY_OF_THE_WEEK": st.sampled_from(DAYS),
        "TIME_OF_THE_DAY": st.integers(0, 23).map("{:02}".format),
        "USER_IP_ADDRESS": st.ip_addresses().map(str) | texts,
        "USER_AGENT": st.sampled_from([PHONE, "Googlebot/2.1"]) | texts,
        "utm_medium": st.sampled_from(["email", "cpc"]),
        "cart_value": st.floats().map(str) | texts,
        "product_category": st.sampled_from(["packs", "camp", "tools"]),
        "locale": st.sampled_from(["de", "de-AT", "en", "-"]) | texts,
        "anything else": texts,
    },
)
actions = st.builds(
    action,
    action=st.sampled_from(["MOE_PERSONALIZATION_MESSAGE_SHOWN", "MOE_PERSONALIZATION_MESSAGE_CLICKED"]),
    moe_event_uuid=st.uuids(version=4).map(str),
    event_time=st.integers(0, int(NOW)),
    platform=st.sampled_from(["web", "android", "ios", "tv"]),
    attributes=st.fixed_dictionaries(dict.fromkeys(CONTEXT, texts), optional={"b_id": texts, "extra": texts}),
)
batches = st.lists(
    st.builds(
        lambda entries, **changes: element(*entries, **changes),
        st.lists(actions, min_size=1, max_size=3),
        customer_id=st.text(min_size=1, max_size=20),
        user_timezone_offset=st.integers(-54_000, 54_000),
        user_attributes=st.dictionaries(texts, st.none() | st.booleans() | st.integers() | texts, max_size=3),
    ),
    min_size=1,
    max_size=4,
).map(lambda elements: batch(*elements))


@few
@given(data=fetches)
def test_every_valid_fetch_gets_a_valid_response(way: Way, data: Any) -> None:
    """The response is a 200 that matches the schema, is repeatable and has no other keys than the request."""
    response = way(post(FETCH, data))
    assert response.status == 200
    body = read(response)
    schema.assert_valid(body, schema.FETCH)
    assert way(post(FETCH, data)).body == response.body
    if data.get("experience_key"):
        assert set(body["experiences"]) <= set(data["experience_key"])


@few
@given(data=batches)
def test_every_valid_batch_is_accepted_and_counted_by_uuid(way: Way, shipped: Engine, data: Any) -> None:
    """The ledger has one entry for each UUID, also if the batch is sent twice."""
    shipped.ledger.clear()
    for _ in range(2):
        response = way(post(EVENTS, data))
        assert response.status == 200
        schema.assert_valid(read(response), schema.EVENTS)
    uuids = {entry["moe_event_uuid"] for each in data["elements"] for entry in each["actions"]}
    assert {entry.event_uuid for entry in shipped.ledger.entries()} == uuids
    assert len(shipped.ledger.entries()) == len(uuids)


@few
@given(statuses=st.lists(st.sampled_from(["Active", "Paused", "Scheduled", "active", "x"]), min_size=1))
def test_every_status_filter_gives_a_valid_list(way: Way, statuses: list[str]) -> None:
    """The metadata has the experiences with these statuses and no others."""
    response = way(get_metadata("status=" + ",".join(statuses)))
    data = read(response)
    assert response.status == 200
    schema.assert_valid(data, schema.METADATA)
    assert {row["status"] for row in data["metadata"]["experiences"]} == set(statuses) - {"active", "x"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
not_text = json_values.filter(lambda value: not isinstance(value, str))


@few
@given(data=fetches, name=st.sampled_from(["DAY_OF_THE_WEEK", "TIME_OF_THE_DAY", "USER_AGENT", "own"]), value=not_text)
def test_every_fetch_with_a_mutated_field_is_refused(way: Way, data: Any, name: str, value: Any) -> None:
    """The sandbox refuses an attribute that is not a string."""
    assert_refused(way(post(FETCH, {**data, name: value})), 400, "Invalid Field Value")


@few
@given(
    data=batches,
    name=st.sampled_from(["action", "moe_event_uuid", "event_time", "platform", "attributes"]),
    value=json_values.filter(lambda value: isinstance(value, bool) or not isinstance(value, int)),
)
def test_every_batch_with_a_mutated_action_is_refused(
    way: Way, shipped: Engine, data: Any, name: str, value: Any
) -> None:
    """The sandbox refuses the whole batch if its last action is invalid."""
    shipped.ledger.clear()
    data["elements"][-1]["actions"][-1][name] = value
    assert_refused(way(post(EVENTS, data)), 400, "Invalid Field Value")
    assert shipped.ledger.entries() == []


@few
@given(
    method=st.sampled_from(["GET", "POST", "PUT"]),
    path=st.sampled_from([FETCH, METADATA, EVENTS, "/x"]),
    body=st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()),
    signed=st.booleans(),
)
def test_the_process_and_the_server_answer_alike(
    shipped_server: SandboxServer, method: str, path: str, body: bytes, signed: bool
) -> None:
    """Status, body and headers are the same in the process and over HTTP."""
    request = Request(method, path, headers=credentials() if signed else {}, body=body)
    in_process = shipped_server.engine.handle(request)
    with HttpWay(shipped_server) as way:
        over_http = way(request)
    assert (in_process.status, in_process.body) == (over_http.status, over_http.body)
    assert in_process.headers.items() <= over_http.headers.items()

"""The reader is tolerant of everything that the contract leaves open (contract §2, §3)."""

import contextlib
import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize.exceptions import InvalidResponseError
from django_moe_personalize.moengage.client import read_experience, read_fetch, read_metadata
from django_moe_personalize.moengage.types import (
    DataSource,
    ExperienceFailure,
    ExperienceMeta,
    ExperiencesMetadata,
    ExperiencesResult,
    ExperienceStatus,
    FailureReason,
)
from tests.anything import json_values, near_answers, near_entries, patiently, same


def build_body(data: object) -> bytes:
    """Return the body of a response."""
    return json.dumps(data).encode()


def read_value(variable: object) -> object:
    """Return a plain copy of the value that the reader makes of a payload variable."""
    return copy.deepcopy(read_experience("hero", {"payload": {"it": variable}})["it"])


@pytest.mark.parametrize(
    ("data_type", "value", "expected"),
    [
        *[("number", "5", 5), ("number", " -5.25 ", -5.25), ("number", "1e3", 1000.0), ("NUMBER", "5", 5)],
        *[("float", "5", 5.0), ("float", 5, 5.0), ("boolean", "true", True), ("boolean", " False ", False)],
        *[("json", '{"a": [1, null]}', {"a": [1, None]}), ("json", "null", None)],
        *(
            (data_type, value, value)
            for data_type, values in [
                ("string", ["Welcome", "5", 5]),
                ("number", [5, "007", "1_000", "٣", "NaN", "1e999", "", "true", True, None, [1]]),
                ("float", ["five"]),
                ("boolean", [True, "yes", "1", 1]),
                ("json", [{"a": 1}, [1], "{broken", '{"a": 1, "a": 2}', "[" * 65 + "]" * 65]),
                ("date", ["2030-01-01"]),
                (None, ["5"]),
                (["number"], ["5"]),
            ]
            for value in values
        ),
    ],
)
def test_a_value_has_its_data_type_or_stays_unchanged(data_type, value, expected):
    """A value gets the type that its data_type names, and stays unchanged when it doesn't fit."""
    assert same(read_value({"value": value, "data_type": data_type}), expected)


@pytest.mark.parametrize("value", ["Hi", 5, 1.5, True, None, [1, 2], {"no": "value key"}, {}], ids=repr)
def test_a_variable_without_wrapper_is_its_value(value):
    """A scalar, a list and a dict without «value» are the value of their variable."""
    assert same(read_value(value), value)


def test_a_value_without_data_type_stays_unchanged():
    """A missing data_type converts nothing."""
    assert read_value({"value": "5", "unit": "EUR"}) == "5"


@patiently
@given(number=st.integers(min_value=-(10**15), max_value=10**15) | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_in_strings_become_numbers(number):
    """A number in a JSON string becomes the same number, of the same type."""
    assert same(read_value({"value": json.dumps(number), "data_type": "number"}), number)


@patiently
@given(value=st.dictionaries(st.text(), json_values) | st.lists(json_values))
def test_json_in_strings_becomes_the_value(value):
    """An object or array in a string becomes the same object or array."""
    assert read_value({"value": json.dumps(value), "data_type": "json"}) == value


def test_a_response_as_documented_is_complete():
    """The payload is unwrapped, the context keeps unknown fields, the source is the network."""
    context = {"cid": "65ea_F", "moe_variation_id": "2", "a_future_field": {"kept": ["whole"]}}
    entry = {"payload": {"Title": {"value": "Hi", "data_type": "string"}}, "experience_context": context, "new": 1}
    result = read_fetch(build_body({"experiences": {"hero": entry}, "next": 1}))
    hero = result.experiences["hero"]
    assert (hero.experience_key, hero["Title"], hero.source) == ("hero", "Hi", DataSource.NETWORK)
    assert hero.experience_context == context
    assert (hero.offerings, result.failures) == ((), ())


@pytest.mark.parametrize("data", [None, [], "x", {}, {"experiences": None}, {"experiences": []}], ids=repr)
def test_a_response_without_experiences_is_refused(data):
    """A response without an object «experiences» raises InvalidResponseError."""
    with pytest.raises(InvalidResponseError, match="«experiences»"):
        read_fetch(build_body(data))


@pytest.mark.parametrize("entry", [None, [], "x", 5, True], ids=repr)
def test_an_entry_that_is_not_an_object_is_skipped(entry):
    """A bad entry costs only its own key."""
    assert list(read_fetch(build_body({"experiences": {"bad": entry, "good": {}}})).experiences) == ["good"]


@pytest.mark.parametrize("value", [None, [], "x", 5], ids=repr)
def test_a_payload_or_context_that_is_not_an_object_is_empty(value):
    """Missing parts and parts of a wrong type count as empty."""
    experience = read_experience("hero", {"payload": value, "experience_context": value}, source=DataSource.CACHE)
    assert (experience.payload, experience.experience_context) == ({}, {})
    assert experience.source is DataSource.CACHE
    assert read_experience("hero", {}) == read_experience("hero", {"payload": {}, "experience_context": {}})


def test_failures_are_read():
    """The reader takes reasons and keys, maps an unknown reason to UNKNOWN, and skips entries without keys."""
    failures = [
        {"reason": "USER_IN_GLOBAL_CONTROL_GROUP", "experience_keys": ["a", 5, "b"]},
        {"reason": "MERCURY_RETROGRADE", "experience_keys": ["c"]},
        {"reason": ["x"], "experience_keys": []},
        {"reason": "USER_NOT_IN_SEGMENT", "experience_keys": "d"},
        "nonsense",
    ]
    assert read_fetch(build_body({"experiences": {}, "failures": failures})).failures == (
        ExperienceFailure(FailureReason.USER_IN_GLOBAL_CONTROL_GROUP, ("a", "b")),
        ExperienceFailure(FailureReason.UNKNOWN, ("c",)),
        ExperienceFailure(FailureReason.UNKNOWN, ()),
    )


@pytest.mark.parametrize("more", [{}, *({"failures": value} for value in (None, {}, "x", 5))], ids=repr)
def test_no_experiences_and_no_failures_are_a_success(more):
    """An empty object of experiences is an empty result. Failures of a wrong type count as none."""
    assert read_fetch(build_body({"experiences": {}} | more)) == ExperiencesResult()


def test_metadata_is_read():
    """Rows have key, name and status; an unknown status is UNKNOWN, a missing name empty, a row without key skipped."""
    rows = [
        {"experience_name": "Hero", "experience_key": "hero", "status": "Active"},
        {"experience_key": "promo", "status": "Archived"},
        {"experience_key": "bar", "status": ["x"]},
        *[None, "x", {}, {"experience_key": 5}],
    ]
    assert read_metadata(build_body({"metadata": {"count": 3, "experiences": rows}})) == ExperiencesMetadata(
        DataSource.NETWORK,
        (
            ExperienceMeta("hero", "Hero", ExperienceStatus.ACTIVE),
            ExperienceMeta("promo", "", ExperienceStatus.UNKNOWN),
            ExperienceMeta("bar", "", ExperienceStatus.UNKNOWN),
        ),
    )


@pytest.mark.parametrize("data", [None, [], {}, {"metadata": []}, {"metadata": {"experiences": {}}}], ids=repr)
def test_a_response_without_metadata_is_refused(data):
    """A response without the list of experiences raises InvalidResponseError."""
    with pytest.raises(InvalidResponseError, match="metadata"):
        read_metadata(build_body(data))


@pytest.mark.parametrize(("size", "is_shared"), [(10, True), (20_000, False)])
def test_calls_share_the_results_of_small_bodies(size, is_shared):
    """Equal small bodies give one result. A large body is read each time, so that it doesn't fill the memory."""
    bodies = [build_body({"experiences": {"hero": {"payload": {"Text": "x" * size}}}}) for _ in range(2)]
    first, second = map(read_fetch, bodies)
    assert first == second
    assert (first is second) is is_shared


@patiently
@given(data=near_answers | json_values)
def test_any_json_is_read_or_refused(data):
    """No JSON value makes the reader raise anything but InvalidResponseError."""
    for read, kind in ((read_fetch, ExperiencesResult), (read_metadata, ExperiencesMetadata)):
        with contextlib.suppress(InvalidResponseError):
            assert isinstance(read(build_body(data)), kind)


@patiently
@given(data=near_entries.filter(lambda entry: isinstance(entry, dict)))
def test_reading_changes_nothing(data):
    """The reader doesn't change an entry, and reads it the same way every time."""
    before = json.dumps(data)
    first = read_experience("hero", data)
    assert read_experience("hero", data) == first
    assert json.dumps(data) == before

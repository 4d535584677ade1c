"""The reader: tolerant about everything the contract leaves open (contract §2, §3, §5)."""

from __future__ import annotations

import contextlib
import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize.exceptions import InvalidResponseError
from django_moe_personalize.moengage.reader import parse_json, read_experience, read_experiences, read_metadata
from django_moe_personalize.moengage.types import (
    DataSource,
    ExperiencesMetadata,
    ExperiencesResult,
    ExperienceStatus,
    FailureReason,
)
from tests.anything import json_values, near_answers, near_entries, patiently, same

CONTEXT = {
    "cid": "65ea_F_T_WP_AB_2_P_0_AU_42D",
    "experience": "Hero",
    "moe_locale_id": "0",
    "moe_variation_id": "2",
    "audience_name": "Runners",
    "audience_id": "42D",
    "type": "Web Personalization",
    "experience_type": "API based Experience",
    "a_field_of_tomorrow": {"kept": ["whole"]},
}
OFFERING = {
    "dp_offering_id": "off-1",
    "offering_content": {"type": "json", "payload": {"title": "Trail shoe", "cta_label": "Buy"}},
    "offering_context": {"moe_offering_id": "moe-1", "moe_offering_name": "Trail shoe"},
    "a_field_of_tomorrow": 1,
}


def read_value(variable: object) -> object:
    """Return what a payload variable becomes, as the plain value that a copy of it is."""
    return copy.deepcopy(read_experience("hero", {"payload": {"it": variable}})["it"])


# -- values


@pytest.mark.parametrize(
    ("data_type", "value", "expected"),
    [
        pytest.param("string", "Welcome", "Welcome", id="string"),
        pytest.param("string", "5", "5", id="string-of-digits-stays-text"),
        pytest.param("string", 5, 5, id="string-that-is-a-number-as-it-came"),
        pytest.param("number", 5, 5, id="number"),
        pytest.param("number", "5", 5, id="number-as-string"),
        pytest.param("number", " -5.25 ", -5.25, id="number-as-string-with-blanks"),
        pytest.param("number", "1e3", 1000.0, id="number-with-exponent"),
        pytest.param("number", "007", "007", id="no-json-number-leading-zero"),
        pytest.param("number", "1_000", "1_000", id="no-json-number-underscore"),
        pytest.param("number", "٣", "٣", id="no-json-number-arabic-digit"),
        pytest.param("number", "NaN", "NaN", id="nan-as-it-came"),
        pytest.param("number", "1e999", "1e999", id="infinite-as-it-came"),
        pytest.param("number", "", "", id="empty-number"),
        pytest.param("number", "true", "true", id="boolean-is-no-number"),
        pytest.param("number", True, True, id="true-is-not-1"),
        pytest.param("number", None, None, id="null-number"),
        pytest.param("number", [1], [1], id="list-is-no-number"),
        pytest.param("float", "5", 5.0, id="float-as-string"),
        pytest.param("float", 5, 5.0, id="float-that-came-as-integer"),
        pytest.param("float", "five", "five", id="no-float"),
        pytest.param("boolean", True, True, id="boolean"),
        pytest.param("boolean", "true", True, id="boolean-as-string"),
        pytest.param("boolean", " False ", False, id="boolean-capitalised"),
        pytest.param("boolean", "yes", "yes", id="yes-is-no-boolean"),
        pytest.param("boolean", "1", "1", id="1-is-no-boolean"),
        pytest.param("boolean", 1, 1, id="number-is-no-boolean"),
        pytest.param("json", {"a": 1}, {"a": 1}, id="json-object"),
        pytest.param("json", [1], [1], id="json-array"),
        pytest.param("json", '{"a": [1, null]}', {"a": [1, None]}, id="json-object-in-string"),
        pytest.param("json", "null", None, id="json-null-in-string"),
        pytest.param("json", "{broken", "{broken", id="broken-json-as-it-came"),
        pytest.param("json", '{"a": 1, "a": 2}', '{"a": 1, "a": 2}', id="ambiguous-json-as-it-came"),
        pytest.param("json", "[" * 65 + "]" * 65, "[" * 65 + "]" * 65, id="deep-json-as-it-came"),
        pytest.param("date", "2030-01-01", "2030-01-01", id="unknown-type"),
        pytest.param(None, "5", "5", id="null-type"),
        pytest.param(["number"], "5", "5", id="type-that-is-a-list"),
        pytest.param("NUMBER", "5", 5, id="type-in-capitals"),
    ],
)
def test_a_value_is_typed_by_its_data_type_or_passed_through(data_type, value, expected):
    """A value takes the type its data_type names; one that does not fit stays as it came."""
    assert same(read_value({"value": value, "data_type": data_type}), expected)


@pytest.mark.parametrize("value", ["Hi", 5, 1.5, True, None, [1, 2], {"no": "value key"}, {}], ids=repr)
def test_what_is_not_wrapped_is_passed_through(value):
    """A bare scalar, a list and a dict without «value» are the variable's value themselves."""
    assert same(read_value(value), value)


def test_a_wrapped_value_without_data_type_is_unwrapped_as_it_is():
    """A missing data_type converts nothing."""
    assert read_value({"value": "5", "unit": "EUR"}) == "5"


@patiently
@given(number=st.integers(min_value=-(10**15), max_value=10**15) | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_sent_as_strings_arrive_as_the_numbers(number):
    """A number written as a JSON string is read back as the same number, of the same type."""
    assert same(read_value({"value": json.dumps(number), "data_type": "number"}), number)


@patiently
@given(value=st.dictionaries(st.text(), json_values) | st.lists(json_values))
def test_json_sent_as_a_string_arrives_as_the_value(value):
    """An object or array held by a string is read back as itself."""
    assert read_value({"value": json.dumps(value), "data_type": "json"}) == value


# -- experiences


def test_an_answer_as_documented_is_read_whole():
    """Payload unwrapped, context kept with fields of tomorrow, source network, no failures."""
    entry = {"payload": {"Title": {"value": "Hi", "data_type": "string"}}, "experience_context": CONTEXT, "new": 1}
    result = read_experiences({"experiences": {"hero": entry}, "next": 1})
    hero = result.experiences["hero"]
    assert (hero.experience_key, hero["Title"], hero.source) == ("hero", "Hi", DataSource.NETWORK)
    assert hero.experience_context == CONTEXT
    assert (hero.offerings, result.failures) == ((), ())


def test_no_experiences_is_a_success():
    """An empty object of experiences is an empty result."""
    assert read_experiences({"experiences": {}}).experiences == {}


@pytest.mark.parametrize("data", [None, [], "x", {}, {"experiences": None}, {"experiences": []}], ids=repr)
def test_an_answer_without_experiences_is_refused(data):
    """Something else than an object with an object «experiences» is an InvalidResponseError."""
    with pytest.raises(InvalidResponseError, match="«experiences»"):
        read_experiences(data)


@pytest.mark.parametrize("entry", [None, [], "x", 5, True], ids=repr)
def test_an_entry_that_is_no_object_is_skipped(entry):
    """One bad entry costs its own key alone."""
    assert list(read_experiences({"experiences": {"bad": entry, "good": {}}}).experiences) == ["good"]


@pytest.mark.parametrize("value", [None, [], "x", 5], ids=repr)
def test_a_payload_or_context_that_is_no_object_is_empty(value):
    """Missing and mistyped parts count as empty."""
    experience = read_experience("hero", {"payload": value, "experience_context": value}, source=DataSource.CACHE)
    assert (experience.payload, experience.experience_context) == ({}, {})
    assert experience.source is DataSource.CACHE
    assert read_experience("hero", {}) == read_experience("hero", {"payload": {}, "experience_context": {}})


def test_failures_sent_as_an_extension_are_read():
    """Reasons with keys are read; an unknown reason is UNKNOWN, what is no failure is skipped."""
    failures = [
        {"reason": "USER_IN_GLOBAL_CONTROL_GROUP", "experience_keys": ["a", 5, "b"]},
        {"reason": "MERCURY_RETROGRADE", "experience_keys": ["c"]},
        {"reason": ["x"], "experience_keys": []},
        {"reason": "USER_NOT_IN_SEGMENT", "experience_keys": "d"},
        "nonsense",
    ]
    read = read_experiences({"experiences": {}, "failures": failures}).failures
    assert [(failure.reason, failure.experience_keys) for failure in read] == [
        (FailureReason.USER_IN_GLOBAL_CONTROL_GROUP, ("a", "b")),
        (FailureReason.UNKNOWN, ("c",)),
        (FailureReason.UNKNOWN, ()),
    ]


@pytest.mark.parametrize("failures", [None, {}, "x", 5], ids=repr)
def test_failures_that_are_no_list_are_none(failures):
    """A mistyped extension is ignored."""
    assert read_experiences({"experiences": {}, "failures": failures}).failures == ()


# -- offerings


@pytest.mark.parametrize(
    "variable",
    [
        pytest.param([OFFERING], id="bare-array"),
        pytest.param({"offerings": [OFFERING]}, id="bare-object"),
        pytest.param(json.dumps([OFFERING]), id="bare-string"),
        pytest.param({"value": [OFFERING], "data_type": "json"}, id="array"),
        pytest.param({"value": "  " + json.dumps([OFFERING]), "data_type": "json"}, id="json-in-string"),
        pytest.param({"value": json.dumps([OFFERING]), "data_type": "string"}, id="string"),
        pytest.param({"value": {"offerings": [OFFERING]}, "data_type": "json"}, id="object"),
        pytest.param({"value": json.dumps({"offerings": [OFFERING]}), "data_type": "string"}, id="object-in-string"),
    ],
)
def test_offerings_are_found_in_every_documented_shape(variable):
    """An array, a string holding one and an object {"offerings": […]} all give the offering, whole."""
    (offering,) = read_experience("hero", {"payload": {"offer_payload": variable}}).offerings
    assert (offering.offering_id, offering["title"]) == ("off-1", "Trail shoe")
    assert offering.context == OFFERING["offering_context"]
    assert offering.raw == OFFERING


def test_a_variable_named_offerings_does_not_hide_the_offerings():
    """``experience["offerings"]`` is the offerings; the payload has the variable as it came."""
    experience = read_experience("hero", {"payload": {"offerings": [OFFERING]}})
    assert experience["offerings"] == experience.offerings
    assert experience.payload["offerings"] == [OFFERING]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param({"type": "json", "payload": {"title": "A"}}, {"title": "A"}, id="wrapped"),
        pytest.param({"type": "json", "payload": '{"title": "A"}'}, {"title": "A"}, id="wrapped-string"),
        pytest.param({"title": "A", "payload": "mine"}, {"title": "A", "payload": "mine"}, id="bare"),
        pytest.param('{"title": "A"}', {"title": "A"}, id="string"),
        pytest.param('{"type": "json", "payload": {"title": "A"}}', {"title": "A"}, id="wrapped-in-string"),
        pytest.param("just text", {}, id="text"),
        pytest.param("{broken", {}, id="broken"),
        pytest.param({"type": "json", "payload": [1]}, {}, id="payload-of-another-type"),
        pytest.param(None, {}, id="null"),
    ],
)
def test_the_content_of_an_offering_is_unwrapped(content, expected):
    """The marketer's payload is found in the wrapper, bare or in a string; else it is empty."""
    (offering,) = read_experience("hero", {"payload": {"it": [OFFERING | {"offering_content": content}]}}).offerings
    assert offering.content == expected


@pytest.mark.parametrize(
    ("offering_id", "expected"),
    [
        pytest.param("off-1", "off-1", id="text"),
        pytest.param(17, "17", id="number"),
        pytest.param("", "moe-1", id="empty"),
        pytest.param(None, "moe-1", id="null"),
        pytest.param(True, "moe-1", id="boolean"),
    ],
)
def test_the_id_of_an_offering_falls_back_to_its_context(offering_id, expected):
    """Without a usable dp_offering_id the context's moe_offering_id names the offering."""
    (offering,) = read_experience("hero", {"payload": {"it": [OFFERING | {"dp_offering_id": offering_id}]}}).offerings
    assert offering.offering_id == expected


@pytest.mark.parametrize("context", [None, {}, [], "x", 5], ids=repr)
def test_only_a_non_empty_context_makes_an_offering(context):
    """An entry without a non-empty dict «offering_context» is no offering."""
    entries = [OFFERING | {"offering_context": context}, "nonsense", {}, OFFERING]
    assert len(read_experience("hero", {"payload": {"it": entries}}).offerings) == 1


@pytest.mark.parametrize("variable", [[], "[]", {"offerings": []}, {"offerings": "x"}, "[broken", 5, None], ids=repr)
def test_no_offerings_is_an_answer(variable):
    """An empty list, or none, gives no offerings."""
    assert read_experience("hero", {"payload": {"it": variable}}).offerings == ()


def test_offerings_of_several_variables_are_collected_in_order():
    """Every variable is looked at, in the order of the payload."""
    entries = [OFFERING | {"dp_offering_id": f"off-{number}"} for number in range(3)]
    experience = read_experience("hero", {"payload": {"one": entries[:2], "two": json.dumps(entries[2:])}})
    assert [offering.offering_id for offering in experience.offerings] == ["off-0", "off-1", "off-2"]


# -- metadata


def test_metadata_is_read():
    """Rows keep key, name and status; an unknown status is UNKNOWN, a missing name empty."""
    rows = [
        {"experience_name": "Hero", "experience_key": "hero", "status": "Active"},
        {"experience_key": "promo", "status": "Archived"},
        {"experience_key": "bar", "status": ["x"]},
    ]
    metadata = read_metadata({"metadata": {"count": 3, "experiences": rows}})
    assert metadata.source is DataSource.NETWORK
    assert [(row.experience_key, row.experience_name, row.status) for row in metadata.experiences] == [
        ("hero", "Hero", ExperienceStatus.ACTIVE),
        ("promo", "", ExperienceStatus.UNKNOWN),
        ("bar", "", ExperienceStatus.UNKNOWN),
    ]


def test_metadata_rows_without_a_key_are_skipped():
    """A row that is no object or has no text for a key is left out."""
    rows = [None, "x", {}, {"experience_key": 5}, {"experience_key": "hero"}]
    assert [row.experience_key for row in read_metadata({"metadata": {"experiences": rows}}).experiences] == ["hero"]


@pytest.mark.parametrize("data", [None, [], {}, {"metadata": []}, {"metadata": {"experiences": {}}}], ids=repr)
def test_an_answer_without_metadata_is_refused(data):
    """Something else than an object with the list is an InvalidResponseError."""
    with pytest.raises(InvalidResponseError, match="metadata"):
        read_metadata(data)


# -- anything at all


@patiently
@given(data=near_answers | json_values)
def test_any_json_is_read_or_refused(data):
    """No JSON value makes the reader raise anything but InvalidResponseError."""
    data = parse_json(json.dumps(data).encode())
    for read, kind in ((read_experiences, ExperiencesResult), (read_metadata, ExperiencesMetadata)):
        with contextlib.suppress(InvalidResponseError):
            assert isinstance(read(data), kind)


@patiently
@given(data=near_entries.filter(lambda entry: isinstance(entry, dict)))
def test_reading_twice_gives_the_same(data):
    """An entry is not changed by reading it: a cached one reads as it did the first time."""
    before = json.dumps(data)
    first = read_experience("hero", data)
    assert read_experience("hero", data) == first
    assert json.dumps(data) == before

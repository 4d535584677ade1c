"""Experiences and offerings keep the laws of a mapping; the other types are frozen values."""

import copy
import dataclasses
import json
import pickle
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_moe_personalize.moengage.client import read_experience
from django_moe_personalize.moengage.json_values import Budget
from django_moe_personalize.moengage.types import (
    DataSource,
    Experience,
    ExperienceFailure,
    ExperienceMeta,
    ExperiencesMetadata,
    ExperiencesResult,
    ExperienceStatus,
    FailureReason,
    Offering,
    find_offerings,
)
from tests.anything import json_values, near_variables, patiently

OFFERING = {
    "dp_offering_id": "off-1",
    "offering_content": {"type": "json", "payload": {"title": "Trail shoe", "cta_label": "Buy"}},
    "offering_context": {"moe_offering_id": "moe-1", "moe_offering_name": "Trail shoe"},
    "a_future_field": 1,
}
NAMES = sorted({*dir(Experience), *dir(Offering)})
"""All names of attributes and methods, dunders too."""

MISSING = object()


def name_everything(values: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    """Return payloads in which all names of attributes and methods, some of them, and other names are variables."""
    some = st.dictionaries(st.sampled_from(NAMES) | st.text(), values)
    return st.builds(lambda value, more: dict.fromkeys(NAMES, value) | more, values, some) | some


def check_laws(mapping: Mapping[str, object], expected: dict[str, object]) -> None:
    """Assert that every way to read a mapping agrees with a dict."""
    assert isinstance(mapping, Mapping)
    assert dict(mapping) == {**mapping} == dict(mapping.items()) == expected
    assert list(mapping) == list(mapping.keys()) == list(expected)
    assert list(mapping.values()) == list(expected.values())
    assert len(mapping) == len(expected)
    for name in [*NAMES, *expected, "", "no such name"]:
        assert (name in mapping) == (name in expected)
        assert mapping.get(name, MISSING) is expected.get(name, MISSING)
        if name in expected:
            assert mapping[name] is expected[name]
        else:
            with pytest.raises(KeyError):
                mapping[name]


def check_plain(value: object) -> None:
    """Assert that plain data survives JSON unchanged."""
    assert json.loads(json.dumps(value)) == value
    assert "Frozen" not in {type(part).__name__[:6] for part in walk(value)}


def walk(value: object) -> list[object]:
    """Return a value and all its parts."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value, *(deeper for part in parts for deeper in walk(part))]


@settings(patiently)
@given(payload=name_everything(near_variables), context=st.dictionaries(st.text(), json_values))
def test_an_experience_is_a_mapping_of_its_payload(payload, context):
    """All ways to read a variable agree, for every name; only «offerings» has another value than the payload."""
    entry = {"payload": payload, "experience_context": context}
    hero = read_experience("hero", entry, budget=Budget(1_000_000))
    check_laws(hero, dict(hero.payload) | ({"offerings": hero.offerings} if "offerings" in payload else {}))
    check_plain(hero.to_dict())
    assert hero.to_dict()["experience_context"] == context


@settings(patiently)
@given(content=name_everything(json_values), context=st.dictionaries(st.text(), json_values, min_size=1))
def test_an_offering_is_a_mapping_of_its_content(content, context):
    """All ways to read the content agree, for every name."""
    entry = OFFERING | {"offering_content": {"type": "json", "payload": content}, "offering_context": context}
    (offering,) = read_experience("hero", {"payload": {"it": [entry]}}).offerings
    check_laws(offering, dict(offering.content))
    check_plain(offering.to_dict())
    assert offering.to_dict() == {"offering_id": "off-1", "content": content, "context": context}


def test_an_experience_becomes_plain_data():
    """The data has each offering once: unwrapped, and not in the variable that it came in."""
    variables = {"Title": "Hi", "offerings": [OFFERING], "more": json.dumps({"offerings": [OFFERING]}), "empty": []}
    hero = read_experience("hero", {"payload": variables, "experience_context": {"cid": "1"}}, source=DataSource.CACHE)
    content, context = OFFERING["offering_content"]["payload"], OFFERING["offering_context"]
    offering = {"offering_id": "off-1", "content": content, "context": context}
    assert hero.to_dict() == {
        "experience_key": "hero",
        "payload": {"Title": "Hi", "empty": []},
        "experience_context": {"cid": "1"},
        "source": "cache",
        "offerings": [offering, offering],
    }
    assert Experience("hero", {"it": [OFFERING], "pair": ("a", "b")}).to_dict()["payload"] == {
        "it": [OFFERING],
        "pair": ["a", "b"],
    }


HERO = Experience("hero", {"Title": "Hi"}, {"cid": "secret"}, DataSource.NETWORK, (Offering("off-1", {"a": 1}),))
VALUES = [
    HERO,
    Offering("off-1", {"title": "A"}, {"cid": "secret"}, {"raw": "secret"}),
    ExperienceFailure(FailureReason.USER_NOT_IN_SEGMENT, ("hero",)),
    ExperiencesResult({"hero": HERO}, ()),
    ExperienceMeta("hero", "Hero", ExperienceStatus.ACTIVE),
    ExperiencesMetadata(DataSource.CACHE, ()),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_types_are_frozen_values(value):
    """A type compares by all its fields, survives copy and pickle, and refuses changes."""
    assert value == copy.copy(value) == copy.deepcopy(value) == pickle.loads(pickle.dumps(value))
    assert value != dict.fromkeys(field.name for field in dataclasses.fields(value))
    assert not hasattr(value, "__dict__")
    for field in dataclasses.fields(value):
        assert value != dataclasses.replace(value, **{field.name: None})
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, None)


@pytest.mark.parametrize("value", VALUES[:2], ids=lambda value: type(value).__name__)
def test_mappings_are_true_and_unhashable(value):
    """Experiences and offerings are true even if empty, have no hash, and hide their context in the repr."""
    assert value
    assert type(value)("x", {})
    with pytest.raises(TypeError, match=f"unhashable type: '{type(value).__name__}'"):
        hash(value)
    assert "secret" not in repr(value)


def test_small_types_have_a_hash_and_a_repr():
    """Failures and metadata can be in a set, and show their fields."""
    assert len({VALUES[2], copy.copy(VALUES[2]), VALUES[4], VALUES[5]}) == 3
    assert repr(VALUES[2]) == (
        f"ExperienceFailure(reason={FailureReason.USER_NOT_IN_SEGMENT!r}, experience_keys=('hero',))"
    )


def find(variable: object) -> list[Offering]:
    """Return the offerings of a payload with one variable."""
    return list(find_offerings({"it": variable}))


@pytest.mark.parametrize("dump", [lambda value: value, json.dumps, lambda value: "  " + json.dumps(value)])
@pytest.mark.parametrize("variable", [[OFFERING], {"offerings": [OFFERING]}], ids=["array", "object"])
def test_every_documented_form_is_read(variable, dump):
    """An array and an object, as JSON or in a string, give the complete offering."""
    (offering,) = find(dump(variable))
    assert (offering.offering_id, offering["title"]) == ("off-1", "Trail shoe")
    assert offering.context == OFFERING["offering_context"]
    assert offering.raw == OFFERING


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"type": "json", "payload": {"title": "A"}}, {"title": "A"}),
        ({"type": "json", "payload": '{"title": "A"}'}, {"title": "A"}),
        ({"title": "A", "payload": "mine"}, {"title": "A", "payload": "mine"}),
        ('{"title": "A"}', {"title": "A"}),
        ('{"type": "json", "payload": {"title": "A"}}', {"title": "A"}),
        ("just text", {}),
        ("{broken", {}),
        ({"type": "json", "payload": [1]}, {}),
        (None, {}),
    ],
    ids=repr,
)
def test_content_is_unwrapped(content, expected):
    """The content is found in its wrapper, bare or in a string, and is empty otherwise."""
    (offering,) = find([OFFERING | {"offering_content": content}])
    assert dict(offering) == offering.content == expected


@pytest.mark.parametrize(("given", "expected"), [("a", "a"), (7, "7"), ("", "moe-1"), (None, "moe-1"), (True, "moe-1")])
def test_the_id_falls_back_to_the_context(given, expected):
    """Without a usable dp_offering_id, the context's moe_offering_id is the id."""
    (offering,) = find([OFFERING | {"dp_offering_id": given}])
    assert offering.offering_id == expected


@pytest.mark.parametrize("context", [None, {}, [], "x", 5], ids=repr)
def test_an_offering_has_a_context(context):
    """Only entries with a non-empty «offering_context» are offerings."""
    assert len(find([OFFERING | {"offering_context": context}, "nonsense", {}, OFFERING])) == 1


@pytest.mark.parametrize("variable", [[], "[]", {"offerings": []}, {"offerings": "x"}, "[broken", 5, None], ids=repr)
def test_a_variable_without_offerings_is_read(variable):
    """A variable without offerings gives none."""
    assert find(variable) == []


def test_offerings_of_several_variables_keep_their_order():
    """Offerings come in the order of the payload."""
    entries = [OFFERING | {"dp_offering_id": f"off-{number}"} for number in range(3)]
    offerings = find_offerings({"one": entries[:2], "two": json.dumps(entries[2:])})
    assert [offering.offering_id for offering in offerings] == ["off-0", "off-1", "off-2"]

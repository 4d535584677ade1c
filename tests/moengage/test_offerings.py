"""Offerings are found in every form that they come in (contract §5)."""

import json

import pytest

from django_moe_personalize.moengage.types import Offering, find_offerings

OFFERING = {
    "dp_offering_id": "off-1",
    "offering_content": {"type": "json", "payload": {"title": "Trail shoe", "cta_label": "Buy"}},
    "offering_context": {"moe_offering_id": "moe-1", "moe_offering_name": "Trail shoe"},
    "a_future_field": 1,
}


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

"""All visitors with the same variation share one copy of its content, which is unchangeable."""

import copy
import json
import pickle

import pytest
from hypothesis import given

from django_moe_personalize.moengage.client import read_experience
from django_moe_personalize.moengage.json_values import encode, freeze, thaw
from tests.anything import json_values, patiently


@patiently
@given(value=json_values)
def test_frozen_values_equal_plain_ones(value):
    """A frozen value has the same JSON, and copies of it are plain."""
    frozen = freeze(value)
    assert freeze(frozen) == frozen == value
    assert encode(frozen) == encode(frozen) == json.dumps(value, separators=(",", ":"))
    for plain in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen)), thaw(frozen)):
        assert plain == value
        assert type(plain) is type(value)


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.payload.update(Title="x"),
        lambda e: e.payload.__setitem__("Title", "x"),
        lambda e: e.payload.pop("Title"),
        lambda e: e.payload.__ior__({"Title": "x"}),
        lambda e: e.payload["list"].append(1),
        lambda e: e.payload["list"].sort(),
        lambda e: e.payload["list"].__iadd__([1]),
        lambda e: e.payload["list"][0]["offering_content"].clear(),
        lambda e: e.experience_context.setdefault("b_id", "x"),
        lambda e: e.offerings[0].content.update(title="x"),
        lambda e: e.offerings[1].context.popitem(),
        lambda e: e.offerings[1].raw.__delitem__("dp_offering_id"),
    ],
)
def test_an_experience_is_unchangeable(change):
    """A change at any depth raises TypeError, and a later change of the source has no effect."""
    offering = {"dp_offering_id": "1", "offering_content": {"title": "a"}, "offering_context": {"cid": "1"}}
    entry = {
        "payload": {"Title": "Hello", "list": [offering], "text": json.dumps([offering])},
        "experience_context": {"cid": "1"},
    }
    experience, before = read_experience("hero", entry), read_experience("hero", copy.deepcopy(entry))
    with pytest.raises(TypeError, match=r"Change a copy: copy\.deepcopy"):
        change(experience)
    offering.clear()
    entry["payload"]["list"].clear()
    entry["experience_context"].clear()
    assert experience == before


def test_only_json_is_encoded():
    """A value that JSON doesn't have raises TypeError."""
    with pytest.raises(TypeError, match="set is not a JSON type"):
        encode({"a": {1}})

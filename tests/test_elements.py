"""How events are written: each once, for good, and those of one customer as one element (contract §4)."""

from __future__ import annotations

import dataclasses
import json
import pickle
import uuid
from collections import Counter
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize.moengage.client import write_elements
from django_moe_personalize.moengage.frozen import freeze
from django_moe_personalize.moengage.types import Event
from tests.test_client import build_event, patiently


@patiently
@given(customers=st.lists(st.sampled_from(["a", "b", "ß", '"', ',"actions":[', ']}"\\'])))
def test_elements_keep_every_event_once_and_in_order(customers):
    """Grouping loses, repeats and reorders no event of a customer, and names each customer once."""
    events = [build_event(customer) for customer in customers]
    elements = [json.loads(text) for text in write_elements(events)]
    assert [element["customer_id"] for element in elements] == list(dict.fromkeys(customers))
    for element in elements:
        sent = [action["moe_event_uuid"] for action in element["actions"]]
        assert sent == [event.event_uuid for event in events if event.customer_id == element["customer_id"]]
    assert [Event.read(event.element) for event in events] == events
    sent = Counter(action["moe_event_uuid"] for element in elements for action in element["actions"])
    assert sent == Counter(event.event_uuid for event in events)
    assert all(uuid.UUID(event_uuid).version == 4 for event_uuid in sent)


def test_an_event_is_written_once():
    """What is sent again is the same text; it is no part of what the event is, says or hands on to a copy."""
    event = build_event(attributes={"cid": "c"})
    same = dataclasses.replace(event)
    assert event.element is event.element
    assert Event.read(event.element).element is event.element
    assert event == same == pickle.loads(pickle.dumps(event))
    assert "_element" not in repr(event)
    assert dataclasses.replace(event, customer_id="43").element == event.element.replace('"42"', '"43"')


@pytest.mark.parametrize(
    "attributes",
    [MappingProxyType({"a": MappingProxyType({"b": 1})}), freeze({"a": {"b": 1}}), {"a": {"b": 1}}],
    ids=["proxy", "frozen", "dict"],
)
def test_any_mapping_is_written(attributes):
    """Attributes are whatever mapping a caller has, and may be several events'."""
    for event in (build_event("1", attributes=attributes), build_event("2", attributes=attributes)):
        assert json.loads(event.element)["actions"][0]["attributes"] == {"a": {"b": 1}}


@pytest.mark.parametrize("fields", [{"attributes": {"b_id": object()}}, {"event_time": 1.5}, {"event_time": "1"}])
def test_what_is_no_json_is_not_written(fields):
    """Nor is a time that is not in whole seconds."""
    with pytest.raises(TypeError):
        write_elements([build_event(**fields)])

"""An event has one JSON, written once; the events of a customer make one element (contract §4)."""

import copy
import dataclasses
import json
import pickle
import uuid
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize.moengage.client import write_elements
from django_moe_personalize.moengage.json_values import freeze
from django_moe_personalize.moengage.types import Action, Event
from tests.anything import patiently


def build_event(customer_id: str = "42", **fields: object) -> Event:
    """Return an impression of a customer."""
    given = {
        "action": Action.SHOWN,
        "customer_id": customer_id,
        "attributes": {"cid": "c"},
        "event_time": 1_700_000_000,
    }
    return Event(**given | fields)


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
    assert all(uuid.UUID(event.event_uuid).version == 4 for event in events)


def test_an_event_remembers_its_json():
    """The JSON is written once. It doesn't belong to the event's value, repr or changed copies."""
    event = build_event(attributes={"cid": "c"})
    changed = dataclasses.replace(event, customer_id="43")
    assert event.element is event.element
    assert Event.read(event.element).element is event.element
    assert event == dataclasses.replace(event) == pickle.loads(pickle.dumps(event)) == copy.copy(event)
    assert changed.element == event.element.replace('"42"', '"43"')
    assert event != changed
    assert repr(event) == (
        f"Event(action={Action.SHOWN!r}, event_time=1700000000, event_uuid='{event.event_uuid}', platform='web')"
    )


@pytest.mark.parametrize("wrap", [dict, MappingProxyType, freeze])
def test_any_mapping_is_written(wrap):
    """Attributes may be any mapping, and several events may share it."""
    attributes = wrap({"a": wrap({"b": 1})})
    for event in (build_event("1", attributes=attributes), build_event("2", attributes=attributes)):
        assert json.loads(event.element)["actions"][0]["attributes"] == {"a": {"b": 1}}


@pytest.mark.parametrize("fields", [{"attributes": {"b_id": object()}}, {"event_time": 1.5}, {"event_time": "1"}])
def test_an_event_that_is_not_json_is_refused(fields):
    """An attribute that JSON doesn't have and a time not in whole seconds raise TypeError, but the event has a size."""
    event = build_event(**fields)
    with pytest.raises(TypeError):
        write_elements([event])
    assert event.size > len(repr(event.attributes))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"actions": []}', '{"actions": [{"action": "X"}]}'])
def test_other_texts_are_refused(text):
    """Any text but an event's JSON raises LookupError, TypeError or ValueError."""
    with pytest.raises((LookupError, TypeError, ValueError)):
        Event.read(text)

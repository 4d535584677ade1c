"""A conversion's arguments, its JSON, and its call (contract §8)."""

import json
import time
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from django_moe_personalize.moengage.data_api import MAX_EVENT_BYTES, DataClient, build_conversion
from django_moe_personalize.moengage.http1 import Response
from django_moe_personalize.moengage.types import Conversion, Event
from django_moe_personalize.resilience import Deadline

NOW = datetime.now(UTC)


class Transport:
    def __init__(self):
        self.requests = []

    def send(self, request, *, deadline):
        self.requests.append(request)
        return Response(200, {}, b'{"status": "success", "message": "m"}')


def test_call():
    """The actions of one customer travel in one call, with times in milliseconds as texts, and the UUID inside."""
    transport = Transport()
    client = DataClient(workspace_id="W/1", api_key="data", transport=transport)
    first = build_conversion("user-1", "Order placed", {"total": Decimal("12.50")}, at=datetime(2026, 1, 2, tzinfo=UTC))
    second = build_conversion("user-1", 'Äb,"actions":[')
    client.send_events([first, second], deadline=Deadline(1.0))
    (request,) = transport.requests
    assert (request.method, request.path) == ("POST", "/event/W%2F1")
    body = json.loads(request.body)
    assert (body["type"], body["customer_id"]) == ("event", "user-1")
    assert body["actions"][0] == {
        "action": "Order placed",
        "attributes": {"total": 12.5, "event_uuid": first.event_uuid},
        "platform": "web",
        "current_time": "1767312000000",
        "user_time": "1767312000000",
    }
    assert body["actions"][1]["action"] == 'Äb,"actions":['
    with pytest.raises(ValueError, match="unpack"):
        client.send_events([first, build_conversion("user-2", "Order placed")], deadline=Deadline(1.0))


def test_event_is_read_again():
    """The JSON in an outbox or a queue gives the same event, at another time too."""
    conversion = build_conversion("user-1", "Order placed", {"a": [1, {"b": None}]})
    read = Event.read(conversion.element)
    assert read == conversion
    assert read.element is conversion.element
    assert isinstance(read.move(5), Conversion)
    assert json.loads(read.move(5).element)["actions"][0]["user_time"] == "5000"


def test_values():
    """Numbers, texts, dates, lists and mappings become JSON. A whole Decimal stays a whole number."""
    given = {
        "a": Decimal(3),
        "b": Decimal("0.1"),
        "c": date(2026, 1, 2),
        "d": NOW,
        "e": (True, None, 1.5),
        "f": {"x": Decimal("1e2")},
    }
    assert build_conversion("user-1", "n", given).attributes == {
        "a": 3,
        "b": 0.1,
        "c": "2026-01-02",
        "d": NOW.isoformat(),
        "e": [True, None, 1.5],
        "f": {"x": 100},
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "name must be a string"),
        ({"name": 7}, "name must be a string"),
        ({"name": "Moe_order"}, "must not begin with 'moe_'"),
        ({"attributes": {"moe_total": 1}}, r"attributes\['moe_total'\]: the name must not begin with 'moe_'"),
        ({"attributes": {7: 1}}, r"attributes\[7\]: the name must be a string"),
        ({"attributes": {"event_uuid": 1}}, "the package uses this name"),
        ({"attributes": ["total"]}, "attributes must be a mapping, not list"),
        ({"attributes": {"a": [object()]}}, r"attributes\['a'\]\[0\] is a object that JSON can't express"),
        ({"attributes": {"a": float("nan")}}, "is a float that JSON"),
        ({"attributes": {"a": Decimal("NaN")}}, "is a float that JSON"),
        ({"attributes": {"a": {1: 2}}}, "is a dict that JSON"),
        ({"attributes": {"a": "x" * MAX_EVENT_BYTES}}, "MoEngage takes 131,072"),
        ({"at": NOW + timedelta(hours=1)}, "must not be in the future"),
        ({"at": NOW.replace(tzinfo=None)}, "at must be an aware datetime"),
        ({"at": time.time()}, "at must be an aware datetime"),
        *[({"customer_id": name}, "forbids this customer_id") for name in ("", "7", " x ", "Guest", "-1")],
    ],
)
def test_mistakes(arguments, message):
    """A mistake is an error at the call, which quotes no value."""
    given = {"customer_id": "user-1", "name": "Order placed"} | arguments
    with pytest.raises(ValueError, match=message):
        build_conversion(**given)

"""The contract suite of the Data API, in the process and over HTTP (contract §8)."""

import json

import pytest

from django_moe_personalize.moengage.http1 import Request
from django_moe_personalize.sandbox.ledger import CONVERSIONS
from tests.sandbox.ways import API_KEY, NOW, WORKSPACE_ID, HttpWay, action, basic, batch, element, post

KEY = "sandbox-data-key"
UUID = "0a4b7c9e-1111-4222-8333-444455556666"


def order(**changes):
    at = str(int(NOW) * 1000)
    fields = {"action": "Order placed", "attributes": {}, "current_time": at, "user_time": at}
    return {name: value for name, value in {**fields, **changes}.items() if value is not ...}


def call(body, *, key=KEY, workspace_id=WORKSPACE_ID):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Request("POST", f"/event/{workspace_id}", headers={"Authorization": basic(password=key)}, body=body)


def report(*actions, **changes):
    return {"type": "event", "customer_id": "user-1", "actions": list(actions) or [order()], **changes}


@pytest.fixture(params=["in the process", "over HTTP"])
def way(request, shipped, shipped_server):
    if request.param == "in the process":
        yield shipped.handle
    else:
        with HttpWay(shipped_server) as way:
            yield way


@pytest.mark.parametrize("at", [str(int(NOW) * 1000), int(NOW) * 1000, str(int(NOW)), int(NOW)], ids=repr)
def test_accepted(way, shipped, at):
    """Both forms of a time are accepted, as texts and as numbers. The ledger keeps the event and its attributes."""
    response = way(call(report(order(current_time=at, user_time=at, platform="ios", attributes={"total": 1.5}))))
    assert (response.status, json.loads(response.body)["status"]) == (200, "success")
    (entry,) = shipped.ledger.entries()
    assert (entry.action, entry.customer_id, entry.event_time) == ("Order placed", "user-1", int(NOW))
    assert (entry.platform, entry.attributes, entry.experience_key) == ("ios", {"total": 1.5}, CONVERSIONS)
    assert shipped.ledger.counts()[CONVERSIONS].conversions == 1


def test_repeat(way, shipped):
    """A conversion with a known UUID counts once, and the ledger says that it came again. Others count each time."""
    for _ in range(3):
        way(
            call(
                report(
                    order(attributes={"event_uuid": UUID}),
                    order(attributes=...),
                    order(attributes={"event_uuid": "no"}),
                )
            )
        )
    assert (len(shipped.ledger.entries()), shipped.ledger.repeats) == (7, 2)
    assert way(post("/experiences/events", batch(element(action())))).status == 200
    assert shipped.ledger.counts()[CONVERSIONS].conversions == 7
    shipped.ledger.clear()
    assert shipped.ledger.repeats == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (report(type="events"), 400),
        (report(customer_id="7"), 400),
        (report(customer_id="guest"), 400),
        (report(customer_id=17), 400),
        (report(actions=[]), 400),
        (report(actions={}), 400),
        (report("x"), 400),
        (report(order(action="moe_order")), 400),
        (report(order(action=" ")), 400),
        (report(order(action=...)), 400),
        (report(order(attributes=[])), 400),
        (report(order(attributes={"MOE_total": 1})), 400),
        (report(order(platform="fridge")), 400),
        (report(order(platform=["web"])), 400),
        (report(order(current_time=...)), 400),
        (report(order(user_time="soon")), 400),
        (report(order(user_time=-1)), 400),
        (report(order(user_time=1.5)), 400),
        (report(order(user_time=True)), 400),
        (report(order(user_time=int(NOW) + 3600)), 400),
        (report(order(), order(current_time=(int(NOW) + 3600) * 1000)), 400),
        (b"[]", 400),
        (b'"' + b"x" * 131_072 + b'"', 413),
    ],
)
def test_refused(way, shipped, body, status):
    """A bad action fails the whole request."""
    assert way(call(body)).status == status
    assert shipped.ledger.entries() == []


def test_credentials(way):
    """Only the Data key opens the Data API, and only that of the workspace in the address."""
    assert way(call(report(), key=API_KEY)).status == 401
    assert way(call(report(), workspace_id="OTHER")).status == 404
    assert way(Request("GET", f"/event/{WORKSPACE_ID}")).status == 405

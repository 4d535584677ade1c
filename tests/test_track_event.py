"""request.personalization.track_event(): whose events count, when, and in which transaction."""

import json
from datetime import timedelta
from types import SimpleNamespace

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Group
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction
from django.http import HttpResponse
from django.utils import timezone

from django_moe_personalize import api
from django_moe_personalize.delivery.base import DeliveryCounts, get_delivery
from django_moe_personalize.models import OutboxEvent
from django_moe_personalize.testing import override_experiences, override_personalize
from django_moe_personalize.visitor import Identity
from tests.pages import BROWSER

OUTBOX = {"BACKEND": "django_moe_personalize.delivery.database.DatabaseDelivery"}
PERSON = {"User-Agent": BROWSER}


def order(request):
    request.personalization.track_event("Order placed", {"total": 12.5})
    return HttpResponse(status=302)


async def aorder(request):
    await request.personalization.atrack_event("Order placed", {"total": 12.5})
    return HttpResponse(status=302)


def preview(request):
    request.is_preview = True
    return order(request)


def identify(request):
    name = request.GET.get("name")
    return Identity(name) if name else None


@pytest.fixture
def seen():
    with override_experiences({"hero-banner": {"Title": "Hello"}}, IDENTIFY="tests.test_track_event.identify") as given:
        yield given


@pytest.mark.parametrize("view", [order, aorder], ids=["sync view", "async view"])
def test_visitors(seen, visit, serve, view):
    """A known customer and an anonymous visitor convert. The response is private, and brings the visitor's cookie."""
    serve(view)
    visit("/page/?name=user-1", method="post", headers=PERSON)
    response = visit("/page/", method="post", headers=PERSON)
    seen.events.assert_tracked("Order placed", times=2)
    seen.events.assert_tracked("Order placed", customer_id="user-1", attributes={"total": 12.5}, times=1)
    assert response["Cache-Control"] == "private, no-store"
    assert "moe_id" in response.cookies


@pytest.mark.parametrize("view", [order, aorder], ids=["sync view", "async view"])
@pytest.mark.parametrize(
    ("moe", "query", "headers"),
    [
        ({"CONSENT": "tests.site.deny_everything"}, "?name=user-1", {}),
        ({"ENABLED": False}, "?name=user-1", {}),
        ({"ANONYMOUS_EVENTS": "returning"}, "", {}),
        ({"ANONYMOUS_ID": False}, "", {}),
        ({}, "?name=user-1", {"User-Agent": "Googlebot"}),
        ({}, "?name=user-1", {"Sec-Purpose": "prefetch"}),
        ({}, "?name=7", {}),
    ],
    ids=["consent", "off", "new", "no id", "robot", "prefetch", "forbidden id"],
)
def test_nothing_counts(seen, visit, serve, caplog, view, moe, query, headers):
    """The same rules hold as for a click. A visitor's forbidden id is no error of the page."""
    serve(view)
    with override_personalize(**moe):
        assert visit(f"/page/{query}", headers=PERSON | headers).status_code == 302
    seen.events.assert_not_tracked()
    assert ("track_event() reports nothing for some visitors" in caplog.text) == (query == "?name=7")


def test_preview(seen, visit, serve):
    serve(preview)
    visit("/page/?name=user-1", headers=PERSON)
    seen.events.assert_not_tracked()


def test_sealed_page(seen, visit, serve):
    """After the response, the visitor is unknown, and nothing counts."""
    kept = []

    def view(request):
        kept.append(request)
        return HttpResponse()

    serve(view)
    visit("/page/?name=user-1", headers=PERSON)
    kept[0].personalization.track_event("Order placed")
    seen.events.assert_not_tracked()


@pytest.mark.parametrize("arguments", [("moe_order",), ("Order placed", {"a": object()})], ids=["name", "value"])
def test_mistakes(seen, visit, serve, arguments):
    """A mistake in the code is an error, even for a visitor who doesn't count."""
    serve(lambda request: request.personalization.track_event(*arguments))
    with pytest.raises(ValueError, match=r"moe_|JSON"):
        visit("/page/", headers={"User-Agent": "Googlebot"})
    with pytest.raises(ValueError, match="in the future"):
        api.track_event("user-1", "Order placed", at=timezone.now() + timedelta(minutes=1))
    with pytest.raises(ValueError, match="non-empty string"):
        api.track_event(7, "Order placed")


def test_event_loop(seen, rf):
    """The sync method would block the event loop, so its error names the async one."""

    async def call(request):
        from django_moe_personalize.context import Personalization

        Personalization(request).track_event("Order placed")

    with pytest.raises(SynchronousOnlyOperation, match="atrack_event"):
        async_to_sync(call)(rf.get("/"))


def test_api(seen):
    """Both forms report at once. With ENABLED off nothing is reported."""
    api.track_event("user-1", "Order placed", at=timezone.now() - timedelta(days=1))
    async_to_sync(api.atrack_event)("user-1", "Order placed", {"total": 1})
    with override_personalize(ENABLED=False):
        api.track_event("user-1", "Order placed")
    assert seen.events.tracked == {"Order placed": 2}
    times = [entry.received - entry.event_time for entry in seen.engine.ledger.entries()]
    assert [round(seconds / 86_400) for seconds in times] == [1, 0]


@pytest.mark.django_db
def test_transaction(visit, serve):
    """In an outbox the event is a part of the view's transaction: a rollback of the order removes the event."""

    def view(request):
        with transaction.atomic():
            Group.objects.create(name="order")
            order(request)
            if "fail" in request.GET:
                transaction.set_rollback(True)
        return HttpResponse()

    serve(view)
    with override_experiences({}, DELIVERY=OUTBOX, IDENTIFY="tests.test_track_event.identify"):
        visit("/page/?name=user-1&fail=1", headers=PERSON)
        assert get_delivery().counts() == DeliveryCounts()
        visit("/page/?name=user-1", headers=PERSON)
        (row,) = OutboxEvent.objects.all()
        assert (row.is_conversion, json.loads(row.body)["actions"][0]["action"]) == (True, "Order placed")
        assert Group.objects.count() == 1


def test_broken_delivery(seen, visit, serve, caplog):
    """If the delivery can't be built, the page is complete, and the log says so once."""
    serve(order)
    with override_personalize(DELIVERY={"BACKEND": "django_moe_personalize.delivery.dummy.DummyDelivery"}):
        get_delivery().record_conversions = SimpleNamespace  # raises a TypeError
        for _ in range(2):
            assert visit("/page/?name=user-1", headers=PERSON).status_code == 302
    assert caplog.text.count("so events are lost") == 1

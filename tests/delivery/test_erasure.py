"""Events of a customer who withdraws between recording and sending are not sent."""

import time
from io import StringIO

import pytest
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.db import connection

from django_moe_personalize import api
from django_moe_personalize.delivery import sending
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.delivery.immediate import ImmediateDelivery
from django_moe_personalize.delivery.sending import MAX_SKEW, mark_withdrawal, split_withdrawn
from django_moe_personalize.delivery.thread import ThreadDelivery
from django_moe_personalize.moengage.types import Action, Event
from django_moe_personalize.signals import events_delivered
from django_moe_personalize.testing import override_personalize
from tests.delivery.events import CONTEXT


def build_event(customer_id, *, seconds=0):
    """Return an impression that happens ``seconds`` from now."""
    return Event(Action.SHOWN, customer_id, CONTEXT, int(time.time()) + seconds)


def list_sent(upstream):
    return [entry.customer_id for entry in upstream.engine.ledger.entries()]


def test_earlier_events_are_not_sent(upstream):
    """Events in the memory of another process are dropped when they are due. Other customers' events are sent."""
    delivery = ThreadDelivery(interval=60)
    try:
        delivery.record([build_event("ada"), build_event("grace")])
        mark_withdrawal("ada")
        counts = delivery.flush(timeout=10)
    finally:
        delivery.close()
    assert list_sent(upstream) == ["grace"]
    assert (counts.delivered, counts.dropped, counts.pending) == (1, {"erased": 1}, 0)


def test_later_events_are_sent():
    """A customer who agrees again needs no second call. The clocks of machines may differ a little."""
    mark_withdrawal("ada")
    before, after = build_event("ada", seconds=MAX_SKEW - 1), build_event("ada", seconds=MAX_SKEW + 2)
    assert split_withdrawn([before, after]) == ([after], [before])


def test_the_mark_does_not_contain_the_customer():
    """The cache doesn't reveal who has withdrawn."""
    mark_withdrawal("canary-customer")
    assert "canary" not in repr(cache._cache)
    assert len(cache._cache) == 1


def test_events_are_sent_when_the_cache_fails(settings, caplog):
    """Without the cache, the event is sent: the customer had given consent when the event happened."""
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    assert not mark_withdrawal("ada")
    event = build_event("ada")
    assert split_withdrawn([event]) == ([event], ())
    assert "ada" not in caplog.text


def test_a_foreign_value_is_not_a_mark(monkeypatch):
    """The value of another program under our key withdraws nothing."""
    event = build_event("ada")
    monkeypatch.setattr(sending, "get_many", lambda names: dict.fromkeys(names, "garbage"))
    assert split_withdrawn([event]) == ([event], [])


@pytest.mark.parametrize("backend", ["thread.ThreadDelivery", "immediate.ImmediateDelivery"])
def test_api_erases_and_marks(upstream, backend):
    """One call of a site's consent banner stops all earlier events. A batch of withdrawn events causes no call."""
    with override_personalize(DELIVERY={"BACKEND": f"django_moe_personalize.delivery.{backend}"}):
        late = build_event("ada")
        assert api.erase(customer_id="ada") == 0
        get_delivery().record([late])
        assert get_delivery().flush(timeout=10).dropped == {"erased": 1}
        assert upstream.requests == []


def test_an_id_is_required():
    """An empty id is the caller's mistake: nothing is erased."""
    for customer_id in ("", None, 7):
        with pytest.raises(ValueError, match="non-empty string"):
            api.erase(customer_id=customer_id)
    for customer_id in ("", "  "):
        with pytest.raises(CommandError, match="The customer id is empty"):
            call_command("moe_erase", customer_id)


class CountingDelivery(ImmediateDelivery):
    """Say that one customer has one waiting event, and that each other customer has two."""

    def erase(self, customer_id):
        return 1 if customer_id == "one-event" else 2


def test_command_erases_and_lists_the_remaining_data(upstream):
    """The command prints the number of erased events and the data elsewhere, and never the id."""
    with override_personalize(DELIVERY={"BACKEND": f"{__name__}.CountingDelivery"}):
        said = StringIO()
        call_command("moe_erase", "one-event", stdout=said)
        assert said.getvalue().startswith("Erased 1 waiting event.\n")
        assert "within 600 seconds" in said.getvalue()
        assert "one-event" not in said.getvalue()
        call_command("moe_erase", "ada", stdout=said)
        assert "Erased 2 waiting events." in said.getvalue()
        assert split_withdrawn([event := build_event("ada")]) == ([], [event])


@pytest.mark.django_db(transaction=True)
def test_a_restarted_database_hides_no_withdrawal(upstream):
    """The sending thread, whose cache or receivers may use the database, gets a new connection."""
    tried = []

    def receive(**kwargs):
        tried.append("failed")
        # Django never closes a database in memory.
        connection.is_in_memory_db = lambda: False
        connection.cursor().execute("SELECT 1").close()
        # A restart does this to existing connections.
        connection.connection.close()
        tried[-1] = "worked"

    delivery = ThreadDelivery(interval=0.01)
    events_delivered.connect(receive)
    try:
        for _ in range(3):
            delivery.record([build_event("ada")])
            delivery.flush(timeout=10)
    finally:
        delivery.close()
        events_delivered.disconnect(receive)
    assert tried == ["worked"] * 3

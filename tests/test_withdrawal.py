"""Who withdraws between recording and sending has nothing sent."""

import time
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from django_moe_personalize import api
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.delivery.erasure import MAX_SKEW, mark_withdrawal, split_withdrawn
from django_moe_personalize.delivery.immediate import ImmediateDelivery
from django_moe_personalize.delivery.thread import ThreadDelivery
from django_moe_personalize.moengage.types import Action, Event
from django_moe_personalize.signals import events_delivered
from django_moe_personalize.testing import override_personalize

CONTEXT = {
    "cid": "65ea_F_T_WP_AB_2_P_0_AU_42D",
    "experience": "Hero",
    "moe_locale_id": "0",
    "moe_variation_id": "2",
    "audience_name": "All",
    "audience_id": "42D",
}


def build_event(customer_id, *, seconds=0):
    """Return an impression that happens ``seconds`` from now."""
    return Event(Action.SHOWN, customer_id, CONTEXT, int(time.time()) + seconds)


def list_sent(upstream):
    """Return whose events were sent."""
    return [entry.customer_id for entry in upstream.engine.ledger.entries()]


def test_nothing_recorded_before_is_sent(upstream):
    """What waits in another process's memory is dropped when its turn comes; others' events go."""
    delivery = ThreadDelivery(interval=60)
    try:
        delivery.record([build_event("ada"), build_event("grace")])
        # Another process is told.
        mark_withdrawal("ada")
        counts = delivery.flush(timeout=10)
    finally:
        delivery.close()
    assert list_sent(upstream) == ["grace"]
    assert counts.delivered == 1
    assert counts.dropped == {"erased": 1}
    assert counts.pending == 0


def test_all_withdrawn_is_no_call(upstream):
    """A batch of which nothing is left is not sent at all."""
    mark_withdrawal("ada")
    delivery = ImmediateDelivery()
    delivery.record([build_event("ada")])
    assert upstream.requests == []
    assert delivery.counts().dropped == {"erased": 1}


def test_what_happens_afterwards_is_sent():
    """Whoever agrees again needs nothing undone; the clocks of machines may differ a little."""
    mark_withdrawal("ada")
    before, after = build_event("ada", seconds=MAX_SKEW - 1), build_event("ada", seconds=MAX_SKEW + 2)
    assert split_withdrawn([before, after]) == ([after], [before])


def test_mark_names_nobody(settings):
    """Who has withdrawn cannot be read from the cache."""
    from django.core.cache import cache

    mark_withdrawal("canary-customer")
    assert "canary" not in repr(cache._cache)
    assert len(cache._cache) == 1


def test_cache_that_fails_or_lies_lets_events_go(upstream, settings, caplog):
    """Without the cache an event is reported, as consent was given when it happened."""
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    assert not mark_withdrawal("ada")
    event = build_event("ada")
    assert split_withdrawn([event]) == ([event], ())
    assert "ada" not in caplog.text


def test_mark_that_is_not_ours_is_none(monkeypatch):
    """What another program left in our place withdraws nothing."""

    event = build_event("ada")
    monkeypatch.setattr(erasure, "get_many", lambda names: dict.fromkeys(names, "garbage"))
    assert split_withdrawn([event]) == ([event], [])


@pytest.mark.parametrize("backend", ["thread.ThreadDelivery", "immediate.ImmediateDelivery"])
def test_api_erases_and_marks(upstream, backend):
    """One call for a site's consent banner: nothing of the customer is sent that was recorded before it."""
    with override_personalize(DELIVERY={"BACKEND": f"django_moe_personalize.delivery.{backend}"}):
        late = build_event("ada")
        assert api.erase(customer_id="ada") == 0
        get_delivery().record([late])
        get_delivery().flush(timeout=10)
        assert list_sent(upstream) == []


@pytest.mark.parametrize("customer_id", ["", None, 7])
def test_api_wants_an_id(customer_id):
    """An empty id is a mistake of the caller's."""
    with pytest.raises(ValueError, match="non-empty string"):
        api.erase(customer_id=customer_id)


def test_command_erases_and_says_what_remains(upstream):
    """The command says how much was erased and what is elsewhere, and never repeats the id."""
    with override_personalize(DELIVERY={"BACKEND": f"{__name__}.CountingDelivery"}):
        said = StringIO()
        call_command("moe_erase", "one-event", stdout=said)
        assert said.getvalue().startswith("Erased 1 event that waited for delivery.\n")
        assert "within 600 seconds" in said.getvalue()
        assert "one-event" not in said.getvalue()
        call_command("moe_erase", "ada", stdout=said)
        assert "Erased 2 events that waited" in said.getvalue()
        assert split_withdrawn([event := build_event("ada")]) == ([], [event])


@pytest.mark.parametrize("customer_id", ["", "  "])
def test_command_wants_an_id(customer_id):
    """Without an id nothing is erased."""
    with pytest.raises(CommandError, match="it is empty"):
        call_command("moe_erase", customer_id)


@pytest.mark.django_db(transaction=True)
def test_database_that_was_restarted_hides_no_withdrawal(upstream):
    """The delivering thread, whose cache or receivers may use the database, gets a new connection."""
    tried = []

    def receive(**kwargs):
        tried.append("failed")
        # Django never closes a database in memory.
        connection.is_in_memory_db = lambda: False
        connection.cursor().execute("SELECT 1").close()
        # As a restart does to the connections that are there.
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


class CountingDelivery(ImmediateDelivery):
    """Hold one event of one customer, two of any other."""

    def erase(self, customer_id):
        """Say so."""
        return 1 if customer_id == "one-event" else 2

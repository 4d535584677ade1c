"""The engine: to which experience an event belongs, which actions it accepts, and text that UTF-8 can't have."""

import uuid
from typing import Any

from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.ledger import UNKNOWN_EXPERIENCE, Counts, Ledger, LedgerEntry
from django_moe_personalize.sandbox.profiles import Profiles
from django_moe_personalize.sandbox.responses import build_json_response
from tests.processes import together
from tests.sandbox.ways import CONTEXT, EVENTS, action, batch, build_engine, build_workspace, element, fetch, post

PLAIN = {"key": "plain", "name": "Plain one", "payload": {"T": "x"}}
OTHER = {"key": "other", "payload": {}}


def record(engine: Engine, **attributes: Any) -> str:
    """Send one event and return the experience key of its ledger entry."""
    sent = batch(element(action(attributes={**CONTEXT, **attributes})))
    assert engine.handle(post(EVENTS, sent)).status == 200
    return engine.ledger.entries()[-1].experience_key


def test_an_event_belongs_to_the_experience_of_its_context() -> None:
    """The ``cid`` decides, or the name or the key. The ledger counts events with an unknown context separately."""
    engine = build_engine(PLAIN, OTHER)
    context = fetch(engine, {"experience_key": ["plain"]})["plain"]["experience_context"]
    assert record(engine, **context) == "plain"
    assert record(engine, cid=context["cid"], experience="renamed") == "plain"
    keys = {"Plain one": "plain", "plain": "plain", "other": "other", "invented": UNKNOWN_EXPERIENCE}
    assert {name: record(engine, experience=name) for name in keys} == keys


def test_a_workspace_can_turn_on_offering_actions() -> None:
    """The ledger has such actions, with only the offering's context. They count as neither impressions nor clicks."""
    engine = build_engine(PLAIN, offering_actions=True)
    context = {"moe_offering_id": "7", "moe_offering_name": "Mug"}
    sent = batch(element(*(action(action=f"MOE_OFFERING_{each}", attributes=context) for each in ("SHOWN", "CLICKED"))))
    assert engine.handle(post(EVENTS, sent)).status == 200
    assert [entry.attributes for entry in engine.ledger.entries()] == [context, context]
    assert engine.ledger.counts() == {UNKNOWN_EXPERIENCE: Counts(0, 0)}


def test_a_lone_surrogate_breaks_nothing() -> None:
    """JSON may contain a lone surrogate, but UTF-8 can't. The response has a question mark instead."""
    assert fetch(build_engine(PLAIN), {"identifiers": {"customer_id": "\ud800"}})
    assert build_json_response({"a": "\ud800"}).body == b'{"a":"?"}'


def entry(number: int, kind: str = "SHOWN") -> LedgerEntry:
    """Return an entry with ``number`` as its UUID."""
    return LedgerEntry(
        event_uuid=str(uuid.UUID(int=number)),
        action=f"MOE_PERSONALIZATION_MESSAGE_{kind}",
        experience_key="k",
        customer_id="42",
        event_time=1,
        received=2.0,
        platform="web",
        attributes={"secret": 42},
    )


def test_the_oldest_entries_are_dropped_but_stay_counted() -> None:
    """The ledger remembers UUIDs for longer than entries."""
    ledger = Ledger(max_entries=2, max_uuids=4)
    assert ledger.record(entry(number) for number in range(3)) == 3
    assert [each.event_uuid[-1] for each in ledger.entries()] == ["1", "2"]
    assert ledger.counts() == {"k": Counts(3, 0)}
    assert ledger.record([entry(0)]) == 0
    ledger.record([entry(3), entry(4)])
    assert ledger.record([entry(0), entry(4)]) == 1


def test_clear_removes_everything() -> None:
    """After clear() even known UUIDs are new. The counts that a caller got earlier are a copy."""
    ledger = Ledger()
    ledger.record([entry(1), entry(2, "CLICKED")])
    ledger.counts()["k"].clicks = 99
    assert ledger.counts() == {"k": Counts(1, 1)}
    ledger.clear()
    assert (ledger.entries(), ledger.counts()) == ([], {})
    assert ledger.record([entry(1)]) == 1


def test_threads_that_record_the_same_events_count_each_once() -> None:
    """Eight threads record the same 300 events."""
    ledger = Ledger()
    together(8, lambda index: [ledger.record([entry(number)]) for number in range(300)])
    assert ledger.counts() == {"k": Counts(300, 0)}
    assert len(ledger.entries()) == 300


def test_the_repr_has_no_personal_data() -> None:
    """An entry in a log names neither the customer nor the attributes."""
    assert "42" not in repr(entry(1))


def test_the_oldest_profile_from_events_is_dropped() -> None:
    """The customers of the workspace stay; an update makes a profile the newest."""
    profiles = Profiles(build_workspace(customers={"1": {"a": "stored"}}), max_added=2)
    profiles.update("1", {"a": "changed", "b": None})
    profiles.update("2", {"u_em": "two@example.com"})
    assert profiles.attributes("1") == {"a": "changed"}
    profiles.update("1", {"c": 1})
    profiles.update("3", {"u_em": "three@example.com"})
    assert profiles.attributes("1") == {"a": "changed", "c": 1}
    assert profiles.attributes("2") == {}
    assert profiles.resolve(None, {"u_em": "two@example.com"}) is None
    assert profiles.resolve("x", {"u_em": "three@example.com"}) == "3"
    assert profiles.resolve("3", {"u_em": "unknown@example.com"}) == "3"


def test_only_the_identifiers_of_the_workspace_find_a_customer() -> None:
    """Numbers are compared as text."""
    customers = {"1": {"card": 77, "u_em": "ada@example.com"}}
    profiles = Profiles(build_workspace(customers=customers, identity_resolution=["card"]))
    assert profiles.resolve(None, {"card": "77"}) == "1"
    assert profiles.resolve(None, "77") == "1"
    assert profiles.resolve(None, {"u_em": "ada@example.com"}) is None
    assert profiles.resolve(None, "") is None

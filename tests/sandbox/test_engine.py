"""The engine: to which experience an event belongs, which actions it accepts, and text that UTF-8 can't have."""

from typing import Any

from django_moe_personalize.sandbox import Engine
from django_moe_personalize.sandbox.ledger import UNKNOWN_EXPERIENCE, Counts
from django_moe_personalize.sandbox.responses import build_json_response
from tests.sandbox.ways import CONTEXT, EVENTS, action, batch, build_engine, element, fetch, post

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
    assert record(engine, experience="Plain one") == "plain"
    assert record(engine, experience="plain") == "plain"
    assert record(engine, experience="other") == "other"
    assert record(engine, experience="invented") == UNKNOWN_EXPERIENCE


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

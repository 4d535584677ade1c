"""The engine: assignment, groups, schedules, reasons, profiles and the ledger."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import uuid
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_moe_personalize.moengage.types import FailureReason
from django_moe_personalize.sandbox.decisions import bucket
from django_moe_personalize.sandbox.engine import UNKNOWN_EXPERIENCE, Engine
from django_moe_personalize.sandbox.errors import RefusedError, json_response
from django_moe_personalize.sandbox.ledger import Counts, Ledger, LedgerEntry
from django_moe_personalize.sandbox.profiles import Profiles
from django_moe_personalize.sandbox.workspace import load_workspace
from tests.sandbox_ways import (
    CONTEXT,
    EVENTS,
    NOW,
    action,
    batch,
    build_engine,
    build_workspace,
    element,
    fetch,
    get_metadata,
    post,
)

PLAIN = {"key": "plain", "payload": {"T": "x"}}
VISITORS = 2000


def split(*weights: float) -> dict[str, Any]:
    """Return an experience whose variations have these weights."""
    return {"key": "split", "variations": [{"weight": weight, "payload": {}} for weight in weights]}


def variation_of(engine: Engine, **fields: Any) -> str:
    """Return the id of the variation of ``split``."""
    found = fetch(engine, {"experience_key": ["split"], **fields})
    return found["split"]["experience_context"]["moe_variation_id"]


def tail(count: int, share: float) -> float:
    """Return by how many standard deviations a binomial count differs from its share."""
    return abs(count - VISITORS * share) / math.sqrt(VISITORS * share * (1 - share))


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (70, 20, 10), (0.5, 4.5)])
def test_weights_are_kept(weights: tuple[float, ...]) -> None:
    """Over many customers each variation gets its share, within four standard deviations."""
    engine = build_engine(split(*weights))
    found = Counter(variation_of(engine, identifiers={"customer_id": f"c{number}"}) for number in range(VISITORS))

    for index, weight in enumerate(weights):
        assert tail(found[str(index + 1)], weight / sum(weights)) < 4


@settings(max_examples=50)
@given(customer=st.text(min_size=1), attributes=st.dictionaries(st.text(min_size=1).map("x{}".format), st.text()))
def test_a_customer_keeps_the_variation(customer: str, attributes: dict[str, str]) -> None:
    """In-session attributes and a restart change nothing."""
    identifiers = {"customer_id": customer}

    first = variation_of(build_engine(split(1, 1)), identifiers=identifiers)

    assert variation_of(build_engine(split(1, 1)), identifiers=identifiers, **attributes) == first


def test_without_a_customer_address_and_user_agent_decide() -> None:
    """The same browser at the same address keeps its variation; others get the other one."""
    engine = build_engine(split(1, 1))
    fields = [{"USER_IP_ADDRESS": f"203.0.113.{number}", "USER_AGENT": "A"} for number in range(40)]

    found = [variation_of(engine, **each) for each in fields]

    assert found == [variation_of(engine, **each, utm_medium="email") for each in fields]
    assert set(found) == {"1", "2"}


def test_experiences_are_split_independently() -> None:
    """A customer's place in one experience says nothing of the place in another."""
    both = [split(1, 1), {**split(1, 1), "key": "other"}]
    engine = build_engine(*both)
    pairs = Counter()
    for number in range(VISITORS):
        found = fetch(engine, {"identifiers": {"customer_id": f"c{number}"}})
        pairs[tuple(found[key]["experience_context"]["moe_variation_id"] for key in ("split", "other"))] += 1

    assert all(tail(count, 0.25) < 4 for count in pairs.values())
    assert len(pairs) == 4


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_buckets_tell_their_parts_apart(first: list[str], second: list[str]) -> None:
    """A bucket is in range, and the same only for the same parts."""
    assert 0 <= bucket(*first) < 1
    assert (bucket(*first) == bucket(*second)) is (first == second)


def test_a_control_group_gets_nothing() -> None:
    """A percentage of the audience is left out, the same people each time."""
    engine = build_engine({**PLAIN, "control_group": 20}, split(1))
    bodies = [{"identifiers": {"customer_id": f"c{number}"}} for number in range(VISITORS)]
    found = [fetch(engine, body) for body in bodies]
    held_back = [body for body, each in zip(bodies, found, strict=True) if "plain" not in each]

    assert tail(len(held_back), 0.2) < 4
    assert all("split" in each for each in found)
    decision = engine.explain(held_back[0])[0]
    assert decision.reason is FailureReason.USER_IN_CAMPAIGN_CONTROL_GROUP
    assert decision.sentence == "audience “All users” → matched, but the visitor is in its control group (20 %)."


def test_the_global_control_group_gets_nothing_at_all() -> None:
    """Whoever is in it is left out of every experience."""
    engine = build_engine(PLAIN, split(1), global_control_group=10)
    sizes = Counter(len(fetch(engine, {"identifiers": {"customer_id": f"c{n}"}})) for n in range(VISITORS))

    assert set(sizes) == {0, 2}
    assert tail(sizes[0], 0.1) < 4
    assert build_engine(PLAIN, global_control_group=100).explain({})[0].reason is (
        FailureReason.USER_IN_GLOBAL_CONTROL_GROUP
    )


def iso(seconds: float) -> str:
    """Return the ISO time so many seconds from NOW."""
    return datetime.fromtimestamp(NOW + seconds, UTC).isoformat()


@pytest.mark.parametrize(
    ("fields", "reason", "status"),
    [
        ({}, None, "Active"),
        ({"status": "Paused"}, "EXPERIENCE_NOT_ACTIVE", "Paused"),
        ({"status": "Scheduled"}, "EXPERIENCE_NOT_ACTIVE", "Scheduled"),
        ({"start": iso(1)}, "EXPERIENCE_NOT_ACTIVE", "Scheduled"),
        ({"start": iso(0)}, None, "Active"),
        ({"start": iso(0), "status": "Scheduled"}, None, "Active"),
        ({"start": iso(-9), "end": iso(1)}, None, "Active"),
        ({"start": iso(-9), "end": iso(0)}, "EXPERIENCE_EXPIRED", None),
        ({"end": iso(-1), "status": "Paused"}, "EXPERIENCE_NOT_ACTIVE", "Paused"),
    ],
)
def test_a_schedule_goes_by_the_clock(fields: Any, reason: str | None, status: str | None) -> None:
    """From its start to before its end an experience is active; ended, it is listed no more."""
    engine = build_engine({**PLAIN, **fields})

    (decision,) = engine.explain({"experience_key": ["plain"]})
    rows = json.loads(engine.handle(get_metadata()).body)["metadata"]["experiences"]

    assert (decision.reason and decision.reason.value) == reason
    assert decision.served is (reason is None) is ("plain" in fetch(engine, {"experience_key": ["plain"]}))
    assert [row["status"] for row in rows] == ([status] if status else [])


def test_explain_has_a_sentence_for_every_key() -> None:
    """What was decided, by which audience, and why not by those before it."""
    engine = Engine(load_workspace(), clock=lambda: NOW)
    body = {
        "experience_key": ["hero-banner", "promo-strip", "cart-upsell", "nope", "winter-gala", "spring-sale"],
        "utm_medium": "email",
        "locale": "de",
        "identifiers": {"customer_id": "visitor"},
    }

    hero, promo, cart, nope, gala, spring = engine.explain(body)

    assert hero.sentence == "audience “Email visitors”: utm_medium is email → matched; variation A the only one."
    assert (hero.audience, hero.variation_id) == ("Email visitors", "4")
    assert len(hero.checks) == 4
    assert hero.checks[0] == "audience “Gold members”: the customer's loyalty is gold (it is absent) → not matched"
    assert promo.sentence == "audience “All users” → matched; variation A the only one; locale de."
    assert cart.reason is FailureReason.USER_NOT_IN_SEGMENT
    assert cart.sentence.startswith("The visitor is in no audience of it: audience “Free delivery reached”: ")
    assert nope.reason is FailureReason.INVALID_EXPERIENCE_KEY
    assert gala.sentence == "It is scheduled and starts at 2099-12-01 18:00:00+01:00."
    assert spring.sentence == "It is paused."


def test_explain_tells_a_split_by_its_variation() -> None:
    """A variation that weights chose says so."""
    (decision,) = build_engine(split(1, 1)).explain({"identifiers": {"customer_id": "c1"}})

    name = "AB"[int(decision.variation_id) - 1]
    assert decision.sentence == f"audience “All users” → matched; variation {name} by weight."


def test_explain_shows_what_a_fetch_with_no_keys_leaves_out() -> None:
    """Without a customer only what is for everybody is considered."""
    (decision,) = build_engine({**PLAIN, "audience": {"a": "1"}}).explain({"a": "1"})

    assert decision.reason is FailureReason.USER_NOT_IN_SEGMENT
    assert "neither keys nor a customer were given → left out" in decision.sentence


def test_explain_names_the_keys_beyond_the_limit() -> None:
    """The 26th key is there with its reason; a key asked for twice counts once."""
    keys = [f"k{number}" for number in range(25)]

    decisions = build_engine(PLAIN).explain({"experience_key": [*keys, *keys, "plain"]})

    assert [decision.experience_key for decision in decisions] == [*keys, "plain"]
    assert decisions[-1].reason is FailureReason.MAX_LIMIT_BREACHED


def test_explain_refuses_what_a_fetch_refuses() -> None:
    """The mistake is the one the endpoint would tell."""
    with pytest.raises(RefusedError, match="DAY_OF_THE_WEEK"):
        build_engine(PLAIN).explain({"DAY_OF_THE_WEEK": "Someday"})


def test_a_locale_of_the_customer_is_taken_when_the_session_has_none() -> None:
    """In-session wins; a locale the variation has no content for gives the default."""
    plain = {"key": "plain", "payload": {"T": "x"}, "locales": {"fr": {"T": "f"}, "de-AT": {"T": "a"}}}
    engine = build_engine(plain, locales=["de_AT", "fr"], customers={"1": {"locale": "fr"}, "2": {}})

    def context(**fields: Any) -> tuple[str, str]:
        entry = fetch(engine, {"experience_key": ["plain"], **fields})["plain"]
        return entry["payload"]["T"]["value"], entry["experience_context"]["moe_locale_id"]

    assert context(identifiers={"customer_id": "1"}) == ("f", "2")
    assert context(identifiers={"customer_id": "1"}, locale="de-at") == ("a", "1")
    assert context(identifiers={"customer_id": "2"}) == ("x", "0")
    assert context(locale="de") == ("x", "0")


# -- events


def record(engine: Engine, **attributes: Any) -> str:
    """Send one event and return the experience the ledger took it for."""
    sent = batch(element(action(attributes={**CONTEXT, **attributes})))
    assert engine.handle(post(EVENTS, sent)).status == 200
    return engine.ledger.entries()[-1].experience_key


def test_an_event_belongs_to_the_experience_of_its_context() -> None:
    """By the cid, else by name or key; an invented context is counted apart."""
    engine = build_engine({**PLAIN, "name": "Plain one"}, split(1))
    context = fetch(engine, {"experience_key": ["plain"]})["plain"]["experience_context"]

    assert record(engine, **context) == "plain"
    assert record(engine, cid=context["cid"], experience="renamed") == "plain"
    assert record(engine, experience="Plain one") == "plain"
    assert record(engine, experience="plain") == "plain"
    assert record(engine, experience="split") == "split"
    assert record(engine, experience="invented") == UNKNOWN_EXPERIENCE


def test_offering_actions_are_taken_where_the_workspace_turns_them_on() -> None:
    """They are recorded, with the offering's context alone, and are no impression or click."""
    engine = build_engine(PLAIN, offering_actions=True)
    context = {"moe_offering_id": "7", "moe_offering_name": "Mug"}
    sent = batch(element(*(action(action=f"MOE_OFFERING_{each}", attributes=context) for each in ("SHOWN", "CLICKED"))))

    assert engine.handle(post(EVENTS, sent)).status == 200
    assert [entry.attributes for entry in engine.ledger.entries()] == [context, context]
    assert engine.ledger.counts() == {UNKNOWN_EXPERIENCE: Counts(0, 0)}


def entry(number: int, *, key: str = "k", kind: str = "SHOWN") -> LedgerEntry:
    """Return an entry whose UUID is made of a number."""
    return LedgerEntry(
        event_uuid=str(uuid.UUID(int=number)),
        action=f"MOE_PERSONALIZATION_MESSAGE_{kind}",
        experience_key=key,
        customer_id="42",
        event_time=1,
        received=2.0,
        platform="web",
    )


def test_ledger_drops_the_oldest_entries_and_keeps_their_count() -> None:
    """Entries are bounded; counts and longer-remembered UUIDs are not lost with them."""
    ledger = Ledger(max_entries=2, max_uuids=4)
    assert ledger.record(entry(number) for number in range(3)) == 3

    assert [each.event_uuid[-1] for each in ledger.entries()] == ["1", "2"]
    assert ledger.counts() == {"k": Counts(3, 0)}
    assert ledger.record([entry(0)]) == 0
    ledger.record([entry(3), entry(4)])
    assert ledger.record([entry(0), entry(4)]) == 1


def test_ledger_can_be_emptied() -> None:
    """After clear() even known UUIDs are new."""
    ledger = Ledger()
    ledger.record([entry(1), entry(2, kind="CLICKED")])
    copied = ledger.counts()
    copied["k"].clicks = 99

    assert ledger.counts() == {"k": Counts(1, 1)}
    ledger.clear()
    assert (ledger.entries(), ledger.counts()) == ([], {})
    assert ledger.record([entry(1)]) == 1


def test_ledger_counts_once_from_many_threads() -> None:
    """Threads that report the same events count each once."""
    ledger = Ledger()
    threads = [threading.Thread(target=lambda: [ledger.record([entry(n)]) for n in range(300)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ledger.counts() == {"k": Counts(300, 0)}
    assert len(ledger.entries()) == 300


def test_personal_fields_are_not_in_a_repr() -> None:
    """An entry in a log does not name the customer."""
    assert "42" not in repr(dataclasses.replace(entry(1), attributes={"secret": 42}))


# -- profiles


def test_profiles_are_bounded_and_the_oldest_is_forgotten() -> None:
    """Customers of the workspace stay; what events added is dropped oldest first."""
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
    assert profiles.resolve("3", {"u_em": "nobody@example.com"}) == "3"


def test_identity_resolution_takes_the_attributes_the_workspace_names() -> None:
    """Others are not asked, and numbers are compared as the wire writes them."""
    customers = {"1": {"card": 77, "u_em": "ada@example.com"}}
    profiles = Profiles(build_workspace(customers=customers, identity_resolution=["card"]))

    assert profiles.resolve(None, {"card": "77"}) == "1"
    assert profiles.resolve(None, "77") == "1"
    assert profiles.resolve(None, {"u_em": "ada@example.com"}) is None
    assert profiles.resolve(None, "") is None


def test_text_without_utf_8_is_answered_all_the_same() -> None:
    """A lone surrogate, legal in JSON, breaks neither assignment nor answer."""
    engine = build_engine(split(1, 1))

    assert variation_of(engine, identifiers={"customer_id": "\ud800"})
    assert json_response({"a": "\ud800"}).body == b'{"a":"?"}'

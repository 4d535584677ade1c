"""Decisions: variations, control groups, schedules, locales, and the reasons that explain() gives."""

import json
import math
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_moe_personalize.moengage.types import FailureReason
from django_moe_personalize.sandbox.decisions import bucket
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.responses import RefusedError
from django_moe_personalize.sandbox.workspace import load_workspace
from tests.sandbox.ways import NOW, build_engine, fetch, get_metadata

PLAIN = {"key": "plain", "payload": {"T": "x"}}
VISITORS = 2000


def split(*weights: float) -> dict[str, Any]:
    """Return an experience whose variations have these weights."""
    return {"key": "split", "variations": [{"weight": weight, "payload": {}} for weight in weights]}


def variation_of(engine: Engine, **fields: Any) -> str:
    """Return the id of the variation that a fetch gets."""
    found = fetch(engine, {"experience_key": ["split"], **fields})
    return found["split"]["experience_context"]["moe_variation_id"]


def tail(count: int, share: float) -> float:
    """Return the distance of a binomial count from its share, in standard deviations."""
    return abs(count - VISITORS * share) / math.sqrt(VISITORS * share * (1 - share))


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (70, 20, 10), (0.5, 4.5)])
def test_weights_are_kept(weights: tuple[float, ...]) -> None:
    """Each variation gets its share of many customers, within four standard deviations."""
    engine = build_engine(split(*weights))
    found = Counter(variation_of(engine, identifiers={"customer_id": f"c{number}"}) for number in range(VISITORS))
    for index, weight in enumerate(weights):
        assert tail(found[str(index + 1)], weight / sum(weights)) < 4


@settings(max_examples=50)
@given(customer=st.text(min_size=1), attributes=st.dictionaries(st.text(min_size=1).map("x{}".format), st.text()))
def test_a_customer_keeps_the_variation(customer: str, attributes: dict[str, str]) -> None:
    """Neither in-session attributes nor a restart change it."""
    identifiers = {"customer_id": customer}
    first = variation_of(build_engine(split(1, 1)), identifiers=identifiers)
    assert variation_of(build_engine(split(1, 1)), identifiers=identifiers, **attributes) == first


def test_without_a_customer_address_and_user_agent_decide() -> None:
    """The same user agent at the same address keeps its variation; other addresses may get another one."""
    engine = build_engine(split(1, 1))
    fields = [{"USER_IP_ADDRESS": f"203.0.113.{number}", "USER_AGENT": "A"} for number in range(40)]
    found = [variation_of(engine, **each) for each in fields]
    assert found == [variation_of(engine, **each, utm_medium="email") for each in fields]
    assert set(found) == {"1", "2"}


def test_experiences_are_split_independently() -> None:
    """The variation of one experience doesn't depend on that of another."""
    both = [split(1, 1), {**split(1, 1), "key": "other"}]
    engine = build_engine(*both)
    pairs = Counter()
    for number in range(VISITORS):
        found = fetch(engine, {"identifiers": {"customer_id": f"c{number}"}})
        pairs[tuple(found[key]["experience_context"]["moe_variation_id"] for key in ("split", "other"))] += 1
    assert all(tail(count, 0.25) < 4 for count in pairs.values())
    assert len(pairs) == 4


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_only_the_same_parts_give_the_same_bucket(first: list[str], second: list[str]) -> None:
    """A bucket is at least 0 and below 1."""
    assert 0 <= bucket(*first) < 1
    assert (bucket(*first) == bucket(*second)) is (first == second)


def test_a_control_group_gets_nothing() -> None:
    """The percentage of the audience gets no experience, and only this experience is missing."""
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
    """A visitor in this group gets no experience."""
    engine = build_engine(PLAIN, split(1), global_control_group=10)
    sizes = Counter(len(fetch(engine, {"identifiers": {"customer_id": f"c{n}"}})) for n in range(VISITORS))
    assert set(sizes) == {0, 2}
    assert tail(sizes[0], 0.1) < 4
    assert build_engine(PLAIN, global_control_group=100).explain({})[0].reason is (
        FailureReason.USER_IN_GLOBAL_CONTROL_GROUP
    )


def iso(seconds: float) -> str:
    """Return the ISO time ``seconds`` after NOW."""
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
def test_a_schedule_follows_the_clock(fields: Any, reason: str | None, status: str | None) -> None:
    """An experience is active from its start to before its end; after its end the metadata doesn't list it."""
    engine = build_engine({**PLAIN, **fields})
    (decision,) = engine.explain({"experience_key": ["plain"]})
    rows = json.loads(engine.handle(get_metadata()).body)["metadata"]["experiences"]
    assert (decision.reason and decision.reason.value) == reason
    assert decision.served is (reason is None) is ("plain" in fetch(engine, {"experience_key": ["plain"]}))
    assert [row["status"] for row in rows] == ([status] if status else [])


def test_explain_has_a_sentence_for_every_key() -> None:
    """The sentence names the audience and the variation, and says why earlier audiences don't match."""
    engine = Engine(load_workspace(), clock=lambda: NOW)
    body = {
        "experience_key": ["hero-banner", "promo-strip", "cart-upsell", "nope", "winter-gala", "spring-sale"],
        "utm_medium": "email",
        "locale": "de",
        "identifiers": {"customer_id": "visitor"},
    }
    hero, promo, cart, nope, gala, spring = engine.explain(body)
    assert hero.sentence == "audience “Email visitors”: utm_medium is email → matched; variation 4 (the only one)."
    assert (hero.audience, hero.variation_id) == ("Email visitors", "4")
    assert len(hero.checks) == 4
    assert hero.checks[0] == "audience “Gold members”: the customer's loyalty is gold (it is absent) → not matched"
    assert promo.sentence == "audience “All users” → matched; variation 3 (the only one); locale de."
    assert cart.reason is FailureReason.USER_NOT_IN_SEGMENT
    assert cart.sentence.startswith("The visitor is in none of its audiences: audience “Free delivery reached”: ")
    assert nope.reason is FailureReason.INVALID_EXPERIENCE_KEY
    assert gala.sentence == "It is scheduled and starts at 2099-12-01 18:00:00+01:00."
    assert spring.sentence == "It is paused."


def test_explain_names_a_variation_chosen_by_weight() -> None:
    """The sentence has the id of the variation, as its context has, and the name from the file."""
    named = {"key": "split", "variations": [{"name": "Left", "payload": {}}, {"payload": {}}]}
    found = {}
    for number in range(20):
        (decision,) = build_engine(named).explain({"identifiers": {"customer_id": str(number)}})
        found[decision.variation_id] = decision.sentence
    assert {id: sentence.partition("; ")[2] for id, sentence in found.items()} == {
        "1": "variation 1 “Left” by weight.",
        "2": "variation 2 by weight.",
    }


def test_explain_says_what_a_fetch_without_keys_and_customer_skips() -> None:
    """Such a fetch skips content for an audience."""
    (decision,) = build_engine({**PLAIN, "audience": {"a": "1"}}).explain({"a": "1"})
    assert decision.reason is FailureReason.USER_NOT_IN_SEGMENT
    assert "the fetch has neither keys nor a customer → skipped" in decision.sentence


def test_explain_names_the_keys_beyond_the_limit() -> None:
    """The 26th key has its reason; a repeated key counts once."""
    keys = [f"k{number}" for number in range(25)]
    decisions = build_engine(PLAIN).explain({"experience_key": [*keys, *keys, "plain"]})
    assert [decision.experience_key for decision in decisions] == [*keys, "plain"]
    assert decisions[-1].reason is FailureReason.MAX_LIMIT_BREACHED


def test_explain_refuses_a_body_that_a_fetch_refuses() -> None:
    """The error is the same."""
    with pytest.raises(RefusedError, match="DAY_OF_THE_WEEK"):
        build_engine(PLAIN).explain({"DAY_OF_THE_WEEK": "Someday"})


def test_the_locale_comes_from_the_session_else_from_the_customer() -> None:
    """A locale without content of its own gives the default."""
    plain = {"key": "plain", "payload": {"T": "x"}, "locales": {"fr": {"T": "f"}, "de-AT": {"T": "a"}}}
    engine = build_engine(plain, locales=["de_AT", "fr"], customers={"1": {"locale": "fr"}, "2": {}})

    def context(**fields: Any) -> tuple[str, str]:
        entry = fetch(engine, {"experience_key": ["plain"], **fields})["plain"]
        return entry["payload"]["T"]["value"], entry["experience_context"]["moe_locale_id"]

    assert context(identifiers={"customer_id": "1"}) == ("f", "2")
    assert context(identifiers={"customer_id": "1"}, locale="de-at") == ("a", "1")
    assert context(identifiers={"customer_id": "2"}) == ("x", "0")
    assert context(locale="de") == ("x", "0")

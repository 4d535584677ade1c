"""The events and tokens of one page, and the way of events to the delivery."""

from unittest import mock

import pytest

from django_moe_personalize import api, tracking
from django_moe_personalize.moengage.types import Action, Experience, Offering
from django_moe_personalize.tracking import PageTracker, build_event, read_token
from django_moe_personalize.tracking.page import MAX_OFFERING_IDS

HERO = Experience("hero", {}, {"cid": "1", "experience": "The hero"})


def test_no_events_are_not_handed_over():
    """A call without events doesn't touch the delivery."""
    with mock.patch.object(tracking.page, "get_delivery") as get_delivery:
        api.experiences_shown([], customer_id="42")
    assert not get_delivery.called


@pytest.mark.parametrize(
    ("elements", "kept", "logged"),
    [
        (["a", "b"], 2, ""),
        ([f"element-{number}" for number in range(450)], 450, ""),
        ([f"element-{number}" for number in range(3000)], 1500, "3000 data-moe-click elements, and a token has room"),
    ],
    ids=["few", "many", "too many"],
)
def test_mark_of_many_elements(caplog, elements, kept, logged):
    """The impression counts however many elements can be clicked, and the log says which clicks are lost."""
    token = read_token(PageTracker("42").sign_mark(HERO, elements))
    assert (token.action, token.elements) == (Action.SHOWN.value, elements[:kept])
    assert logged in caplog.text
    assert bool(logged) == bool(caplog.text)


def test_mark_of_a_context_that_is_too_long(caplog):
    """Without its context no event counts, and the log says that the impressions are lost too."""
    name = "".join(map(chr, range(1000, 9000)))
    assert PageTracker("42").sign_mark(Experience("hero", {}, {"cid": name}), ["a"]) is None
    assert "so the browser reports neither its impressions nor its clicks" in caplog.text


@pytest.mark.parametrize(
    ("ids", "text", "logged"),
    [
        (["1", "2"], "1,2", ""),
        (["a,b", "50%", "", "ä"], "a%2Cb,50%25,ä", ""),
        ([""], None, ""),
        (
            [f"{number:09}" for number in range(200)],
            100,
            "200 offerings, and an impression has room for the ids of 100",
        ),
        (["x" * 2000], None, "shows 1 offerings, and an impression has room for the ids of 0"),
    ],
    ids=["two", "odd", "without an id", "many", "long"],
)
def test_offerings_of_an_impression_are_one_string(caplog, ids, text, logged):
    """MoEngage takes only strings, so the ids are a list with commas, of a bounded length."""
    offerings = tuple(Offering(offering_id, {}, {"moe_offering_id": offering_id}) for offering_id in ids)
    hero = Experience("hero", {}, {"cid": "1"}, offerings=offerings)
    listed = build_event(Action.SHOWN, hero, "42").attributes.get("moe_offering_ids")
    assert listed == text if text != 100 else (len(listed.split(",")), len(listed)) == (text, MAX_OFFERING_IDS - 1)
    assert logged in caplog.text
    assert read_token(PageTracker("42").sign_mark(hero, ())).attributes.get("moe_offering_ids") == listed


def test_context_of_an_offering_is_strings():
    """A click carries the offering's context. Values that aren't strings become JSON."""
    offering = Offering("1", {}, {"moe_offering_id": "1", "rank": 2, "tags": ["new"], "is_new": True})
    event = build_event(Action.CLICKED, HERO, "42", offering=offering)
    more = {"moe_offering_id": "1", "rank": "2", "tags": '["new"]', "is_new": "true", "b_id": "1"}
    assert event.attributes == {**HERO.experience_context, **more}

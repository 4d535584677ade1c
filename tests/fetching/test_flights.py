"""Single flight, with real threads and a real event loop."""

import asyncio
import gc
import threading
import weakref
from collections import Counter

import pytest

from django_moe_personalize.fetching.flight import Flights, Question
from django_moe_personalize.moengage.types import Experience
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import get_runtime
from tests.fetching.warm_vendor import build_visitor
from tests.test_resilience import SOON, together


def about(key):
    """Return a question about one key."""
    return Question(get_runtime(), build_visitor(), (key,), Deadline(10))


def test_first_leads_and_the_others_follow():
    """The first caller leads, all callers get its result, and the next caller leads again."""
    flights = Flights()
    lead, leads = flights.join(about("a"), {})
    follow, also_leads = flights.join(about("a"), {})
    assert (leads, also_leads) == (True, False)
    assert follow is lead
    assert not follow.done()
    flights.finish(lead, {"a": "result"})
    assert follow.join(0) == {"a": "result"}
    assert (len(flights), flights.landed) == (0, 1)
    assert flights.join(about("a"), {})[1]


def test_other_keys_are_another_flight():
    """A question about other keys shares nothing."""
    flights = Flights()
    (first, _), (second, leads) = flights.join(about("a"), {}), flights.join(about("b"), {})
    assert leads
    flights.finish(first, {})
    assert not second.done()


def test_a_thousand_at_once_have_one_leader():
    """Of a thousand threads that ask at the same moment one leads, and all get its result."""
    flights = Flights()
    started = threading.Barrier(1000)

    def ask(index):
        flight, leads = flights.join(about("a"), {})
        # The leader works until the last thread has joined.
        started.wait(SOON * 3)
        if leads:
            flights.finish(flight, {"a": index})
        return leads, flight.join(SOON * 3)["a"]

    answers = together(1000, ask)
    (leader,) = [result for leads, result in answers if leads]
    assert Counter(result for _, result in answers) == {leader: 1000}
    assert len(flights) == 0


def test_leader_that_never_finishes_is_replaced():
    """After the time of a flight another caller leads, and the late leader doesn't end the new flight."""
    flights = Flights(max_seconds=0)
    lost, _ = flights.join(about("a"), {})
    current, leads = flights.join(about("a"), {})
    assert leads
    assert len(flights) == 1
    flights.finish(lost, {"a": "late"})
    assert lost.join(0) == {"a": "late"}
    assert not current.done()
    assert len(flights) == 1


def test_memory_is_bounded():
    """Beyond the bound each caller leads alone, and the flights under way go on."""
    flights = Flights(max_flights=2)
    first, _ = flights.join(about("a"), {})
    flights.join(about("b"), {})
    alone, leads = flights.join(about("c"), {})
    assert leads
    assert flights.join(about("c"), {})[1]
    assert len(flights) == 2
    flights.finish(alone, {})
    flights.finish(first, {})
    flights.join(about("c"), {})
    assert not flights.join(about("c"), {})[1]


def test_nothing_is_held_after_a_flight():
    """The result is freed with the last reference to the flight."""

    class Large:
        """An object that can be watched."""

    flights = Flights()
    flight, _ = flights.join(about("a"), {})
    result = Large()
    watched = weakref.ref(result)
    flights.finish(flight, {"a": result})
    gc.disable()
    try:
        del flight, result
        assert watched() is None
    finally:
        gc.enable()


def test_follower_that_is_cancelled_cancels_no_other():
    """A task that is cancelled while it waits leaves the flight to the others."""
    flights = Flights()
    hero = Experience("a", {}, {})
    flight, _ = flights.join(about("a"), {})

    async def go_away():
        follower = asyncio.ensure_future(flight.ajoin(SOON))
        await asyncio.sleep(0)
        follower.cancel()
        with pytest.raises(asyncio.CancelledError):
            await follower

    asyncio.run(go_away())
    assert not flight.cancel()
    flights.finish(flight, {"a": hero})
    assert flight.join(0) == {"a": hero}

"""Single flight with real threads, a real event loop and a real fork; time on a virtual clock."""

import asyncio
import gc
import threading
import time
import weakref
from collections import Counter

import pytest

from django_moe_personalize.fetching.flight import SingleFlight
from tests.test_resilience import SOON, Clock, in_child, together


def test_first_leads_and_the_others_follow():
    """One caller is told to work, all get its result, and the next flight starts anew."""
    flights = SingleFlight()
    lead, leads = flights.join("a")
    follow, also_leads = flights.join("a")
    assert (leads, also_leads) == (True, False)
    assert follow is lead
    assert not follow.done()
    flights.finish("a", lead, "result")
    assert follow.result(0) == "result"
    assert len(flights) == 0
    assert flights.join("a")[1]


def test_keys_fly_apart():
    """Who asks for something else has nothing to do with it."""
    flights = SingleFlight()
    (first, _), (second, leads) = flights.join("a"), flights.join(("a", 1))
    assert leads
    flights.finish("a", first, 1)
    assert not second.done()


def test_a_thousand_at_once_have_one_leader():
    """However many threads come for a key at the same moment, one works and all have its result."""
    flights = SingleFlight()
    started = threading.Barrier(1000)

    def ask(index):
        flight, leads = flights.join("key")
        # The leader works until the last one came.
        started.wait(SOON * 3)
        if leads:
            flights.finish("key", flight, index)
        return leads, flight.result(SOON * 3)

    answers = together(1000, ask)
    (leader,) = [result for leads, result in answers if leads]
    assert Counter(result for _, result in answers) == {leader: 1000}
    assert len(flights) == 0


def test_flights_that_end_and_start_under_many_threads_have_one_leader_each():
    """While flights of a key come and go, no two leaders are ever at work."""

    class Slow:
        """A key that lets other threads run whenever it is looked up."""

        def __hash__(self):
            time.sleep(0)
            return 1

    flights = SingleFlight()
    key = Slow()
    at_work, most, calls = 0, 0, 0

    def ask(index):
        nonlocal at_work, most, calls
        for _ in range(300):
            flight, leads = flights.join(key)
            if leads:
                at_work += 1
                most, calls = max(most, at_work), calls + 1
                time.sleep(0)
                at_work -= 1
                flights.finish(key, flight, calls)
            assert 0 < flight.result(SOON) <= calls

    together(4, ask)
    assert most == 1


def test_leader_that_never_finishes_holds_up_nobody_for_long():
    """Followers wait as long as they like; after the time of a flight another leads, undisturbed by the first."""
    clock = Clock()
    flights = SingleFlight(max_seconds=30, clock=clock)
    lost, _ = flights.join("a")
    clock.now += 29.9
    follow, leads = flights.join("a")
    assert not leads
    with pytest.raises(TimeoutError):
        follow.result(0.001)
    clock.now += 0.1
    anew, leads = flights.join("a")
    assert leads
    flights.finish("a", lost, "late")
    assert follow.result(0) == "late"
    assert flights.join("a") == (anew, False)


def test_abandoned_flights_are_dropped():
    """What leaders leave behind is gone as soon as time is over and anyone leads, be it for another key."""
    clock = Clock()
    flights = SingleFlight(max_seconds=30, clock=clock)
    for index in range(100):
        flights.join(index)
    clock.now += 30
    flights.join("other")
    assert len(flights) == 1


def test_memory_is_bounded():
    """Beyond so many keys everyone leads alone, and those in flight go on."""
    flights = SingleFlight(max_flights=2)
    first, _ = flights.join("a")
    flights.join("b")
    alone, leads = flights.join("c")
    assert leads
    assert flights.join("c")[1]
    assert len(flights) == 2
    flights.finish("c", alone, 1)
    flights.finish("a", first, 1)
    assert len(flights) == 1
    flights.join("c")
    assert not flights.join("c")[1]


def test_nothing_is_held_after_a_flight():
    """A result is freed with the last of those who hold the flight."""

    class Large:
        """Something that can be watched."""

    flights = SingleFlight()
    flight, _ = flights.join("a")
    result = Large()
    watched = weakref.ref(result)
    flights.finish("a", flight, result)
    gc.disable()
    try:
        del flight, result
        assert watched() is None
    finally:
        gc.enable()


def test_follower_that_is_cancelled_cancels_nobody():
    """A visitor who goes away while an event loop waits for the flight leaves it to the others."""
    flights = SingleFlight()
    flight, _ = flights.join("a")

    async def go_away():
        follower = asyncio.ensure_future(asyncio.wrap_future(flights.join("a")[0]))
        await asyncio.sleep(0)
        follower.cancel()
        with pytest.raises(asyncio.CancelledError):
            await follower

    asyncio.run(go_away())
    flights.finish("a", flight, "result")
    assert flights.join("b")[0] is not flight
    assert flight.result(0) == "result"


def test_forked_child_has_nothing_in_flight():
    """A child follows no leader of its parent, though the lock was held at the fork; the parent goes on."""
    flights = SingleFlight()
    flights.join("a")
    with flights._lock:
        assert in_child(lambda: len(flights) == 0 and flights.join("a")[1])
    assert not flights.join("a")[1]

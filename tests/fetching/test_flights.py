"""The flights of a process, with real threads."""

import asyncio
import gc
import threading
import weakref
from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from django_moe_personalize.fetching import flights as flights_module
from django_moe_personalize.fetching.flights import Flights, Question
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import get_runtime
from tests.fetching.warm_vendor import build_visitor
from tests.processes import SOON, together
from tests.virtual_time import MACHINE, Clock, quarters


def about(key):
    """Return a question about one key."""
    return Question(get_runtime(), build_visitor(), (key,), Deadline(SOON))


def test_many_threads_have_one_leader():
    """If 200 threads ask at the same moment, one thread leads, and all threads get its result."""
    flights = Flights()
    joined = threading.Barrier(200)

    def ask(index):
        flight, leads = flights.join(about("a"), {})
        joined.wait(SOON)
        if leads:
            flights.finish(flight, {"a": index})
        return leads, flight.join(SOON)["a"]

    answers = together(200, ask)
    (leader,) = [result for leads, result in answers if leads]
    assert Counter(result for _, result in answers) == {leader: 200}
    assert len(flights._flights) == 0


def test_finished_flight_keeps_nothing_alive():
    """The result is freed with the last reference to the flight."""

    class Large:
        """An object that a weak reference can watch."""

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


def test_cancelled_follower_cancels_no_other():
    """A task that is cancelled leaves the flight to the other pages."""
    flights = Flights()
    flight, _ = flights.join(about("a"), {})

    async def leave():
        follower = asyncio.ensure_future(flight.ajoin(SOON))
        await asyncio.sleep(0)
        follower.cancel()
        with pytest.raises(asyncio.CancelledError):
            await follower

    asyncio.run(leave())
    flights.finish(flight, {"a": "result"})
    # A page may begin to follow at the moment when the flight ends.
    assert flight.join(0) == flights.follow(flight).result(0) == {"a": "result"}


class FlightsMachine(RuleBasedStateMachine):
    """At most three flights against a list of all flights so far."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(flights_module, "monotonic", self.clock)
        self.flights = Flights(max_seconds=8, max_flights=3)
        self.shared = {}
        self.leading = []
        self.finished = {}

    @rule(seconds=quarters(6))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @rule(key=st.sampled_from("abcde"))
    def join(self, key):
        flight, leads = self.flights.join(about(key), {})
        current = {k: (f, until) for k, (f, until) in self.shared.items() if self.clock.now < until}
        assert leads == (key not in current)
        assert not flight.done()
        if not leads:
            assert flight is current[key][0]
            return
        assert flight not in self.finished
        self.leading.append((key, flight))
        self.shared = current
        if len(current) < 3:
            current[key] = flight, self.clock.now + 8

    @precondition(lambda self: self.leading)
    @rule(data=st.data(), dies=st.booleans())
    def leader_ends(self, data, dies):
        key, flight = self.leading.pop(data.draw(st.integers(0, len(self.leading) - 1)))
        if dies:
            return
        result = {key: len(self.finished)}
        self.flights.finish(flight, result)
        self.finished[flight] = result
        if self.shared.get(key, (None, 0))[0] is flight:
            del self.shared[key]

    @invariant()
    def pages_have_their_leaders_result(self):
        assert all(flight.done() and flight.result() == result for flight, result in self.finished.items())
        assert self.flights.landed == len(self.finished)

    @invariant()
    def memory_is_bounded(self):
        assert len(self.flights._flights) <= 3

    def teardown(self):
        """After the time of the old flights, any page can lead."""
        self.clock.now += 8
        flight, leads = self.flights.join(about("a"), {})
        assert leads
        self.flights.finish(flight, {})
        assert len(self.flights._flights) == 0
        self.patch.undo()


TestFlightsMachine = FlightsMachine.TestCase
TestFlightsMachine.settings = MACHINE

"""Single flight and governor against simple models, over whatever order of events Hypothesis finds."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from django_moe_personalize.fetching.flight import SingleFlight
from django_moe_personalize.resilience.governor import SLOT_SECONDS, SLOTS, Governor
from tests.test_resilience import Clock
from tests.virtual_time import MACHINE, quarters


class FlightMachine(RuleBasedStateMachine):
    """Single flight against the list of all flights there ever were, at most three at a time."""

    KEYS = st.sampled_from("abcde")

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.flights = SingleFlight(max_seconds=8, max_flights=3, clock=self.clock)
        self.shared = {}
        self.leading = []
        self.following = []
        self.results = 0
        self.finished = {}

    def drop_what_is_over(self):
        self.shared = {key: (f, until) for key, (f, until) in self.shared.items() if self.clock.now < until}

    @rule(seconds=quarters(6))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @rule(key=KEYS)
    def join(self, key):
        flight, leads = self.flights.join(key)
        current = {k: f for k, (f, until) in self.shared.items() if self.clock.now < until}
        # Exactly one leader: whoever comes while a flight is under way follows it.
        assert leads == (key not in current)
        if leads:
            self.drop_what_is_over()
            assert all(flight is not other for _, other in self.leading)
            self.leading.append((key, flight))
            if len(self.shared) < 3:
                self.shared[key] = (flight, self.clock.now + 8)
        else:
            assert flight is current[key]
            assert not flight.done()
            self.following.append(flight)

    @precondition(lambda self: self.leading)
    @rule(data=st.data())
    def finish(self, data):
        key, flight = self.leading.pop(data.draw(st.integers(0, len(self.leading) - 1)))
        self.results += 1
        self.flights.finish(key, flight, self.results)
        if self.shared.get(key, (None, 0))[0] is flight:
            del self.shared[key]
        self.finished[flight] = self.results

    @precondition(lambda self: self.leading)
    @rule(data=st.data())
    def leader_dies(self, data):
        self.leading.pop(data.draw(st.integers(0, len(self.leading) - 1)))

    @precondition(lambda self: self.following)
    @rule()
    def follower_goes(self):
        flight = self.following.pop()
        assert flight.done() or not flight.cancel()

    @invariant()
    def followers_have_their_leaders_result(self):
        for flight in self.following:
            assert flight.done() == (flight in self.finished)
            assert not flight.done() or flight.result() == self.finished[flight]

    @invariant()
    def memory_is_bounded(self):
        assert len(self.flights) <= 3

    def teardown(self):
        """Lead any key, whatever happened, once the time of a flight is over, and leave nothing behind."""
        self.clock.now += 8
        flight, leads = self.flights.join("a")
        assert leads
        self.flights.finish("a", flight, 0)
        assert len(self.flights) == 0


class GovernorMachine(RuleBasedStateMachine):
    """Three processes' governors with one shared count, which may be away, under a limit of 39: 3 a slot.

    The guarantee: together they let at most the limit through in any 60 seconds, both ends
    included, when the count was never away; each of them does so, whatever the count does.
    """

    LIMIT = 39

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.numbers = {}
        self.away = self.was_away = False
        self.governors = [Governor(self.LIMIT, add=self.add, clock=self.clock, wall_clock=self.clock) for _ in range(3)]
        self.grants = []

    def add(self, key, amount, timeout):
        if self.away:
            return None
        self.numbers[key] = self.numbers.get(key, 0) + amount
        return self.numbers[key]

    @initialize(quarter=quarters(5))
    def start_anywhere_in_a_slot(self, quarter):
        self.clock.now += quarter

    @rule(seconds=quarters(10))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @rule()
    def a_slot_begins(self):
        self.clock.now = (self.clock.now // SLOT_SECONDS + 1) * SLOT_SECONDS

    @rule(index=st.integers(0, 2), count=st.integers(1, 4), times=st.integers(1, 6))
    def take(self, index, count, times):
        for _ in range(times):
            if self.governors[index].take(count):
                self.grants.append((self.clock.now, index, count))
            elif count == 1 and not self.was_away:
                # Refused for a reason only: nothing of the slot is left to borrow.
                slot = int(self.clock.now // SLOT_SECONDS)
                assert self.numbers[f"governor:{slot}"] >= self.LIMIT // SLOTS

    @rule(index=st.integers(0, 2))
    def take_all(self, index):
        self.take(index, 1, 50)

    @rule()
    def count_goes_away(self):
        self.away = self.was_away = True

    @rule()
    def count_comes_back(self):
        self.away = False

    @invariant()
    def limit_holds_in_any_minute(self):
        for start, _, _ in self.grants:
            minute = [(i, count) for moment, i, count in self.grants if start <= moment <= start + 60]
            for index in range(3):
                assert sum(count for i, count in minute if i == index) <= self.LIMIT
            assert self.was_away or sum(count for _, count in minute) <= self.LIMIT

    def teardown(self):
        """Let requests through again, whatever happened, after a minute of rest."""
        self.away = False
        self.clock.now += 61
        assert all(governor.take() for governor in self.governors)


TestFlightMachine = FlightMachine.TestCase
TestGovernorMachine = GovernorMachine.TestCase
TestFlightMachine.settings = TestGovernorMachine.settings = MACHINE

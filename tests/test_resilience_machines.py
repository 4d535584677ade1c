"""Breaker, single flight and governor against simple models, over whatever order of events Hypothesis finds.

Time is virtual and moves in quarters of a second, which floats hold exactly, so the models compare for equality.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from django_moe_personalize.breaker import CircuitBreaker
from django_moe_personalize.flight import SingleFlight
from django_moe_personalize.governor import SLOT_SECONDS, SLOTS, Governor
from django_moe_personalize.resilience import MAX_GATE_SECONDS
from tests.test_resilience import Clock

LONG_AGO = float("-inf")


def quarters(seconds):
    """Return a strategy for times up to ``seconds``."""
    return st.integers(0, seconds * 4).map(lambda quarter: quarter / 4)


class BreakerMachine(RuleBasedStateMachine):
    """The breaker against a model of what its callers may see.

    The model knows what was reported and when; it says when the breaker may open and why, who may
    ask, and who is the probe.
    """

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.jitter = 0.0
        self.changes = []
        self.breaker = CircuitBreaker(
            failure_threshold=3,
            failure_rate=0.4,
            rate_calls=6,
            rate_seconds=10,
            open_seconds=4,
            max_open_seconds=20,
            probe_seconds=8,
            clock=self.clock,
            draw=lambda: self.jitter,
            on_change=lambda *change: self.changes.append(change),
        )
        self.callers = 0
        self.reports = []
        self.cause = None
        self.failed_probes = 0
        self.due = self.gate = LONG_AGO
        self.probe = None
        self.lost = []

    # What the model knows

    @property
    def now(self):
        return self.clock.now

    def find_cause(self):
        """Say why a failure that was just reported is one too many."""
        if len(self.reports) >= 3 and all(failed for _, failed in self.reports[-3:]):
            row = 0
            for _, failed in reversed(self.reports):
                if not failed:
                    break
                row += 1
            return f"{row} failures in a row"
        # Ten seconds, counted in slots of one.
        recent = [failed for moment, failed in self.reports if moment >= self.now // 1 - 10]
        if len(recent) >= 6 and sum(recent) / len(recent) >= 0.4:
            return f"{100 * sum(recent) / len(recent):.0f} % of {len(recent)} calls failed"
        return None

    def trip(self):
        self.due = self.now + min(20, 4 * 2**self.failed_probes) * (1 - self.jitter / 2)
        self.probe = None

    def recover(self):
        self.cause = self.probe = None
        self.reports, self.failed_probes, self.due = [], 0, LONG_AGO

    def check_change(self, before, after, reason):
        """Compare with what was announced since, which is at most one change."""
        expected = [] if before == after else [(before, after, reason)]
        assert self.changes == expected
        self.changes.clear()
        assert self.breaker.state == after

    @property
    def limited(self):
        return self.now < self.gate

    def settled(self):
        """Say which state remains when nothing has failed."""
        return "open" if self.limited else "closed"

    # What can happen

    @rule(seconds=quarters(25))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @rule(jitter=st.sampled_from([0.0, 0.5, 1.0]))
    def dice_fall(self, jitter):
        self.jitter = jitter

    @rule(times=st.integers(1, 3))
    def pages_ask(self, times):
        before = self.breaker.state
        for _ in range(times):
            allowed = self.breaker.allow()
            assert allowed == (self.cause is None and not self.limited)
            self.callers += allowed
        self.check_change(before, self.settled() if self.cause is None else before, "the rate limit is over")

    @rule(times=st.integers(1, 3))
    def workers_claim(self, times):
        before = self.breaker.state
        tickets = [ticket for _ in range(times) if (ticket := self.breaker.claim_probe())]
        due = self.cause is not None and self.now >= max(self.due, self.gate)
        assert len(tickets) == due
        if due:
            if self.probe is not None:
                # At most one probe at a time, but for one that is lost.
                assert self.now >= self.probe_until
                self.lost.append(self.probe)
            self.probe, self.probe_until = tickets[0], self.now + 8
            self.due = self.probe_until
        self.check_change(before, "half-open" if due else before, self.breaker.reason)

    @precondition(lambda self: self.callers)
    @rule(times=st.integers(1, 4))
    def callers_are_answered(self, times):
        before = self.breaker.state
        for _ in range(min(times, self.callers)):
            self.callers -= 1
            self.breaker.success()
            if before == "closed":
                self.reports.append((self.now, False))
        self.check_change(before, before, "")

    @precondition(lambda self: self.callers)
    @rule()
    def caller_fails(self):
        self.callers -= 1
        before = after = self.breaker.state
        self.breaker.failure()
        if before == "closed":
            self.reports.append((self.now, True))
            self.cause = self.find_cause()
            if self.cause is not None:
                after = "open"
                self.trip()
        self.check_change(before, after, self.cause)

    def limit(self, seconds):
        gate = self.now + min(seconds, MAX_GATE_SECONDS)
        if gate > self.gate:
            self.gate = gate
            self.gate_reason = f"rate limited for {min(seconds, MAX_GATE_SECONDS):.0f} s"

    @precondition(lambda self: self.callers)
    @rule(seconds=quarters(400))
    def caller_is_limited(self, seconds):
        self.callers -= 1
        before = self.breaker.state
        self.breaker.close_gate(seconds)
        self.limit(seconds)
        if before == "closed":
            self.reports.append((self.now, False))
        after = before if self.cause is not None else self.settled()
        self.check_change(before, after, self.gate_reason if after == "open" else "the probe was answered")

    @precondition(lambda self: self.probe)
    @rule()
    def probe_is_answered(self):
        self.breaker.success(self.probe)
        self.recover()
        after = self.settled()
        self.check_change("half-open", after, self.gate_reason if self.limited else "the probe was answered")

    @precondition(lambda self: self.probe)
    @rule()
    def probe_fails(self):
        self.breaker.failure(self.probe)
        self.failed_probes += 1
        self.trip()
        self.check_change("half-open", "open", self.breaker.reason)

    @precondition(lambda self: self.probe)
    @rule(seconds=quarters(30))
    def probe_is_limited(self, seconds):
        self.breaker.close_gate(seconds, self.probe)
        self.limit(seconds)
        self.recover()
        after = self.settled()
        self.check_change("half-open", after, self.gate_reason if self.limited else "the probe was answered")

    @precondition(lambda self: self.probe)
    @rule()
    def probe_is_returned(self):
        self.breaker.return_probe(self.probe)
        self.probe, self.due = None, self.now
        self.check_change("half-open", "open", self.breaker.reason)

    @precondition(lambda self: self.lost and self.breaker.state != "closed")
    @rule(data=st.data())
    def lost_probe_reports_after_all(self, data):
        ticket = self.lost.pop()
        before = self.breaker.state
        data.draw(st.sampled_from([self.breaker.success, self.breaker.failure, self.breaker.return_probe]))(ticket)
        self.check_change(before, before, "")

    # What holds at any time

    @invariant()
    def state_and_reason_are_what_the_model_knows(self):
        state, reason = self.breaker.state, self.breaker.reason
        if self.cause is None:
            assert (state, reason) in [("closed", ""), ("open", getattr(self, "gate_reason", None))]
            assert state == "open" or not self.limited
        else:
            assert state == ("half-open" if self.probe else "open")
            assert reason.startswith(self.cause)
            assert ("failed probe" in reason) == bool(self.failed_probes)

    @invariant()
    def it_says_when_to_come_again(self):
        if self.breaker.state == "closed":
            assert self.breaker.retry_in == 0.0
        else:
            assert self.breaker.retry_in == max(0.0, max(self.due, self.gate) - self.now)

    def teardown(self):
        """Recover, whatever happened, within one open interval and a probe, or when the rate limit is over."""
        wait = self.breaker.retry_in
        assert wait <= max(20, 8, self.gate - self.now)
        self.clock.now += wait
        if not self.breaker.allow():
            self.breaker.success(self.breaker.claim_probe())
        assert self.breaker.allow()


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


TestBreakerMachine = BreakerMachine.TestCase
TestFlightMachine = FlightMachine.TestCase
TestGovernorMachine = GovernorMachine.TestCase
TestBreakerMachine.settings = TestFlightMachine.settings = TestGovernorMachine.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None
)

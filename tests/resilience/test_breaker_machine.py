"""The breaker against a simple model, in any order of events that Hypothesis finds."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from django_moe_personalize.resilience import MAX_GATE_SECONDS, CircuitBreaker
from tests.resilience.test_breaker import find_due
from tests.virtual_time import MACHINE, Clock, quarters

LONG_AGO = float("-inf")


class BreakerMachine(RuleBasedStateMachine):
    """The breaker against a model of its callers.

    The model knows each report and its time. So it knows when the breaker may open and why, which callers may call,
    and which one makes the probe.
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

    # The model.

    @property
    def now(self):
        return self.clock.now

    def find_cause(self):
        """Return why the failure that was just reported opens the breaker."""
        if len(self.reports) >= 3 and all(failed for _, failed in self.reports[-3:]):
            row = 0
            for _, failed in reversed(self.reports):
                if not failed:
                    break
                row += 1
            return f"{row} failures in a row"
        # Ten seconds, in slots of one second.
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
        """Compare with the change that the breaker announced, if any."""
        expected = [] if before == after else [(before, after, reason)]
        assert self.changes == expected
        self.changes.clear()
        assert self.breaker.state == after

    @property
    def limited(self):
        return self.now < self.gate

    def settled(self):
        """Return the state of a breaker without failures."""
        return "open" if self.limited else "closed"

    # The events.

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
                # There is one probe at a time, unless it is lost.
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

    @precondition(lambda self: self.lost and self.breaker.state != "closed")
    @rule(data=st.data())
    def lost_probe_reports_after_all(self, data):
        ticket = self.lost.pop()
        before = self.breaker.state
        data.draw(st.sampled_from([self.breaker.success, self.breaker.failure]))(ticket)
        self.check_change(before, before, "")

    # Always true.

    @invariant()
    def state_and_reason_equal_the_models(self):
        state, reason = self.breaker.state, self.breaker.reason
        if self.cause is None:
            assert (state, reason) in [("closed", ""), ("open", getattr(self, "gate_reason", None))]
            assert state == "open" or not self.limited
        else:
            assert state == ("half-open" if self.probe else "open")
            assert reason.startswith(self.cause)
            assert ("failed probe" in reason) == bool(self.failed_probes)

    @invariant()
    def retry_time_equals_the_models(self):
        assert find_due(self.breaker) == max(0.0, max(self.due, self.gate) - self.now)

    def teardown(self):
        """Recover after one open interval and a probe, or after the rate limit."""
        wait = find_due(self.breaker)
        assert wait <= max(20, 8, self.gate - self.now)
        self.clock.now += wait
        if not self.breaker.allow():
            self.breaker.success(self.breaker.claim_probe())
        assert self.breaker.allow()


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = MACHINE

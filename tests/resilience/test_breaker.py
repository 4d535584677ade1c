"""The circuit breaker on a virtual clock."""

import pytest

from django_moe_personalize.resilience import CircuitBreaker, RecentCalls
from tests.processes import together


@pytest.fixture
def changes():
    """Give the changes that a breaker announced, as text."""
    return []


@pytest.fixture
def build(clock, changes):
    """Return a function that builds breakers on the clock, without jitter; they write down their changes."""

    def build(**options):
        return CircuitBreaker(
            clock=clock,
            draw=lambda: 0.0,
            on_change=lambda old, new, reason: changes.append(f"{old} to {new}: {reason}"),
            **options,
        )

    return build


@pytest.fixture
def breaker(build):
    """Give a breaker that one failure opens, for five seconds."""
    return build(failure_threshold=1, open_seconds=5)


def find_due(breaker):
    """Return in how many seconds the breaker allows a call or a probe."""
    return max(0.0, breaker._find_due() - breaker.clock())


def fail(breaker, times=1):
    """Report failures of callers that the breaker let through."""
    for _ in range(times):
        assert breaker.allow()
        breaker.failure()


def probe(breaker, report):
    """Claim the probe and report on it."""
    ticket = breaker.claim_probe()
    assert ticket
    report(ticket)


def test_opens_after_failures_in_a_row(build, changes):
    """A success starts the count again. The last failure opens the breaker, which announces it."""
    breaker = build(failure_threshold=3)
    fail(breaker, 2)
    breaker.success()
    fail(breaker, 2)
    assert (breaker.state, breaker.reason, find_due(breaker)) == ("closed", "", 0.0)
    fail(breaker)
    assert (breaker.state, breaker.reason, find_due(breaker)) == ("open", "3 failures in a row", 5.0)
    assert not breaker.allow()
    assert changes == ["closed to open: 3 failures in a row"]


@pytest.mark.parametrize(("age", "state"), [(0.0, "open"), (1.0, "open"), (2.0, "closed"), (60.0, "closed")])
def test_late_failure(breaker, clock, age, state):
    """A failure doesn't count if its caller left before the last success: the upstream works again."""
    clock.now += 60
    breaker.success()
    clock.now += 1
    breaker.failure(age=age)
    assert breaker.state == state
    if state == "open":
        clock.now += 5
        probe(breaker, breaker.success)
        clock.now += 1
        breaker.failure(age=age + 1.5)
        assert breaker.state == "closed"


def test_hastened_probe(breaker):
    """A sign of life makes the probe due at once, unless the breaker is closed or a probe is under way."""
    assert not breaker.hasten()
    fail(breaker)
    assert not breaker.claim_probe()
    assert breaker.hasten()
    ticket = breaker.claim_probe()
    assert ticket
    assert not breaker.hasten()
    breaker.success(ticket)
    assert breaker.state == "closed"


def test_opens_when_too_many_of_many_calls_fail(build, clock):
    """Failures that are never in a row open it too, once there are enough calls for a rate."""
    breaker = build()
    for _ in range(9):
        fail(breaker)
        breaker.success()
        clock.now += 1
    fail(breaker)
    assert breaker.state == "closed", "19 calls are too few for a rate"
    breaker.success()
    fail(breaker)
    assert breaker.reason == "52 % of 21 calls failed"


def test_old_calls_count_for_no_rate(build, clock):
    """Old responses don't outweigh new failures, and failures don't add up over hours."""
    breaker = build(failure_threshold=100)
    for _ in range(1000):
        breaker.success()
    clock.now += 33
    fail(breaker, 19)
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.reason == "100 % of 20 calls failed"
    patient = build(failure_threshold=1000)
    for _ in range(100):
        fail(patient)
        clock.now += 2
    assert patient.state == "closed"


def test_one_caller_makes_the_probe(breaker, clock, changes):
    """Pages never may. After the open time one other caller gets the ticket, and its success closes the breaker."""
    assert not breaker.claim_probe(), "a closed breaker needs no probe"
    fail(breaker)
    clock.now += 4.9
    assert not breaker.claim_probe()
    clock.now += 3600
    assert [breaker.allow() for _ in range(3)] == [False] * 3
    assert find_due(breaker) == 0.0
    tickets = [breaker.claim_probe() for _ in range(3)]
    assert [bool(ticket) for ticket in tickets] == [True, False, False]
    assert (breaker.state, find_due(breaker), breaker.allow()) == ("half-open", 30.0, False)
    breaker.success(tickets[0])
    assert (breaker.state, breaker.reason, find_due(breaker)) == ("closed", "", 0.0)
    assert changes == [
        "closed to open: 1 failure in a row",
        "open to half-open: 1 failure in a row",
        "half-open to closed: the probe was answered",
    ]


def test_failed_probes_double_the_open_time(build, clock, changes):
    """The open time doubles up to the maximum, however long the outage. It starts small again after a recovery."""
    breaker = build(failure_threshold=1, open_seconds=5, max_open_seconds=12)
    fail(breaker)
    for seconds in (5, 10, *[12] * 3000):
        assert find_due(breaker) == seconds
        clock.now += seconds
        probe(breaker, breaker.failure)
    assert breaker.reason == "1 failure in a row, then 3002 failed probes"
    assert changes[2] == "half-open to open: 1 failure in a row, then 1 failed probe"
    clock.now += 12
    probe(breaker, breaker.success)
    fail(breaker)
    assert find_due(breaker) == 5


def test_reports_from_before_it_opened(breaker, clock):
    """Without the ticket no report closes, opens or prolongs anything."""
    fail(breaker)
    breaker.success()
    clock.now += 4
    breaker.failure()
    assert (breaker.state, find_due(breaker)) == ("open", 1.0)
    clock.now += 1
    ticket = breaker.claim_probe()
    breaker.success()
    breaker.failure()
    assert breaker.state == "half-open"
    breaker.success(ticket)
    assert breaker.state == "closed"


def test_recovery_forgets_old_calls(build, clock):
    """After a recovery only new calls count for the rate."""
    breaker = build(open_seconds=5)
    for _ in range(14):
        breaker.success()
    fail(breaker, 5)
    clock.now += 5
    probe(breaker, breaker.success)
    fail(breaker, 4)
    assert breaker.state == "closed"
    for _ in range(5):
        breaker.success()
        breaker.success()
        fail(breaker)
    breaker.success()
    fail(breaker, 2)
    assert breaker.reason == "50 % of 22 calls failed"


def test_lost_probe(breaker, clock):
    """A probe that never reports is lost after its time, and a late report changes nothing."""
    fail(breaker)
    clock.now += 5
    lost = breaker.claim_probe()
    clock.now += 29
    assert not breaker.claim_probe()
    clock.now += 1
    ticket = breaker.claim_probe()
    assert ticket
    breaker.failure(lost)
    breaker.success(lost)
    assert breaker.state == "half-open"
    breaker.success(ticket)
    assert breaker.state == "closed"


def test_rate_limit_opens_it_for_its_time(build, clock, changes):
    """During a rate limit no caller may call. Then all may, without a probe."""
    breaker = build()
    breaker.close_gate(30)
    breaker.close_gate(1)
    assert (breaker.state, breaker.reason, find_due(breaker)) == ("open", "rate limited for 30 s", 30.0)
    clock.now += 29
    assert not breaker.allow()
    assert not breaker.claim_probe()
    clock.now += 1
    assert not breaker.claim_probe()
    assert breaker.allow()
    assert breaker.reason == ""
    assert changes == ["closed to open: rate limited for 30 s", "open to closed: the rate limit is over"]


@pytest.mark.parametrize("seconds", [10, 0])
def test_rate_limited_probe(breaker, clock, changes, seconds):
    """A rate limit answers the probe. The breaker closes when the limit is over."""
    fail(breaker)
    clock.now += 5
    probe(breaker, lambda ticket: breaker.close_gate(seconds, ticket))
    assert find_due(breaker) == seconds
    clock.now += seconds
    assert breaker.allow()
    assert changes[2:] == (
        ["half-open to open: rate limited for 10 s", "open to closed: the rate limit is over"]
        if seconds
        else ["half-open to closed: the probe was answered"]
    )


def test_late_rate_limit_delays_the_probe(breaker, clock):
    """A rate limit for a call from before the breaker opened delays the probe, but doesn't replace it."""
    fail(breaker)
    breaker.close_gate(20)
    assert (breaker.reason, find_due(breaker)) == ("1 failure in a row", 20.0)
    clock.now += 19
    assert not breaker.claim_probe()
    clock.now += 1
    assert not breaker.allow()
    ticket = breaker.claim_probe()
    breaker.close_gate(20)
    assert breaker.state == "half-open"
    breaker.success(ticket)
    assert (breaker.state, breaker.reason) == ("open", "rate limited for 20 s")


def test_many_threads(breaker, clock):
    """Threads that claim at the same moment get one ticket together, and no report of theirs is lost."""
    fail(breaker)
    clock.now += 5
    tickets = together(8, lambda index: breaker.claim_probe())
    assert sorted(map(bool, tickets)) == [False] * 7 + [True]
    patient = CircuitBreaker(failure_threshold=4001, rate_calls=10_000, clock=clock)
    together(4, lambda index: [patient.failure() for _ in range(1000)])
    assert patient.state == "closed"
    patient.failure()
    assert patient.reason == "4001 failures in a row"


def test_recent_calls_are_those_of_the_last_seconds_and_one_slot_more():
    """A call counts for the whole time, and for at most one slot longer. Counts of many calls fill one slot each."""
    calls = RecentCalls(10.0)
    calls.add(0.9, is_failure=True)
    calls.add(1.0, is_failure=True)
    for _ in range(5):
        calls.add(1.5, is_failure=False)
    assert [calls.total(now) for now in (10.9, 11.0, 11.9, 12.0)] == [(7, 2), (6, 1), (6, 1), (0, 0)]
    for moment in range(10_000):
        calls.add(moment / 100, is_failure=False)
    assert (calls.total(100.0), len(calls._slots)) == ((1000, 0), 11)

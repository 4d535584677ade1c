"""The circuit breaker on a virtual clock, with real threads and a real fork where it matters."""

import pytest

from django_moe_personalize.resilience import MAX_GATE_SECONDS
from django_moe_personalize.resilience.breaker import CircuitBreaker
from tests.test_resilience import Clock, in_child, together


@pytest.fixture
def clock():
    """A clock that stands still until it is moved."""
    return Clock()


@pytest.fixture
def changes():
    """What a breaker announced, as text."""
    return []


@pytest.fixture
def build(clock, changes):
    """Build breakers on the clock, without jitter, that write down their changes."""

    def build(**options):
        return CircuitBreaker(
            clock=clock,
            draw=lambda: 0.0,
            on_change=lambda old, new, reason: changes.append(f"{old} to {new}: {reason}"),
            **options,
        )

    return build


def fail(breaker, times):
    """Report failures of callers that were let through."""
    for _ in range(times):
        assert breaker.allow()
        breaker.failure()


def probe(breaker, report):
    """Claim the probe and report on it."""
    ticket = breaker.claim_probe()
    assert ticket
    report(ticket)


def test_opens_after_failures_in_a_row(build, changes):
    """A success in between starts the count again; the threshold in a row opens, and says so."""
    breaker = build(failure_threshold=3)
    fail(breaker, 2)
    breaker.success()
    fail(breaker, 2)
    assert (breaker.state, breaker.reason, breaker.retry_in) == ("closed", "", 0.0)
    fail(breaker, 1)
    assert (breaker.state, breaker.reason, breaker.retry_in) == ("open", "3 failures in a row", 5.0)
    assert not breaker.allow()
    assert changes == ["closed to open: 3 failures in a row"]


def test_opens_when_too_many_of_many_calls_fail(build, clock):
    """Failures that never come in a row open it too, once enough calls tell a rate."""
    breaker = build()
    for _ in range(9):
        fail(breaker, 1)
        breaker.success()
        clock.now += 1
    fail(breaker, 1)
    assert breaker.state == "closed", "19 calls tell nothing yet"
    breaker.success()
    fail(breaker, 1)
    assert (breaker.state, breaker.reason) == ("open", "52 % of 21 calls failed")


def test_opens_at_exactly_the_rate(build):
    """Half of the calls is enough when the rate is a half."""
    breaker = build()
    for _ in range(10):
        breaker.success()
        fail(breaker, 1)
    assert breaker.reason == "50 % of 20 calls failed"


def test_stays_closed_below_the_rate(build, clock):
    """A few failures among many answers are the way of networks."""
    breaker = build()
    for _ in range(100):
        breaker.success()
        breaker.success()
        fail(breaker, 1)
        clock.now += 0.1
    assert breaker.state == "closed"


def test_old_calls_count_for_no_rate(build, clock):
    """Answers from before the window do not outweigh what fails now, nor do failures pile up over hours."""
    breaker = build(failure_threshold=100)
    for _ in range(1000):
        breaker.success()
    clock.now += 33
    fail(breaker, 19)
    assert breaker.state == "closed"
    fail(breaker, 1)
    assert breaker.reason == "100 % of 20 calls failed"
    patient = build(failure_threshold=1000)
    for _ in range(100):
        fail(patient, 1)
        clock.now += 2
    assert patient.state == "closed"


def test_a_page_is_never_the_probe(build, clock):
    """When the open time is over pages are still told not to ask, until a probe in the background was answered."""
    breaker = build(failure_threshold=1)
    fail(breaker, 1)
    clock.now += 3600
    assert [breaker.allow() for _ in range(3)] == [False] * 3
    assert breaker.retry_in == 0.0
    ticket = breaker.claim_probe()
    assert breaker.state == "half-open"
    assert not breaker.allow()
    breaker.success(ticket)
    assert breaker.allow()


def test_gives_one_probe_after_the_open_time(build, clock, changes):
    """Not before the time, one caller has the ticket, and its success closes the breaker."""
    breaker = build(failure_threshold=1, open_seconds=5)
    assert not breaker.claim_probe(), "a closed breaker needs no probe"
    fail(breaker, 1)
    clock.now += 4.9
    assert not breaker.claim_probe()
    clock.now += 0.1
    tickets = [breaker.claim_probe() for _ in range(3)]
    assert [bool(ticket) for ticket in tickets] == [True, False, False]
    assert breaker.retry_in == 30.0
    breaker.success(tickets[0])
    assert (breaker.state, breaker.reason, breaker.retry_in) == ("closed", "", 0.0)
    assert changes == [
        "closed to open: 1 failure in a row",
        "open to half-open: 1 failure in a row",
        "half-open to closed: the probe was answered",
    ]


def test_stays_open_twice_as_long_after_each_failed_probe(build, clock, changes):
    """The open time doubles up to the maximum, and starts small again after a recovery."""
    breaker = build(failure_threshold=1, open_seconds=5, max_open_seconds=12)
    fail(breaker, 1)
    for seconds in (5, 10, 12, 12):
        assert breaker.retry_in == seconds
        clock.now += seconds
        probe(breaker, breaker.failure)
    assert breaker.reason == "1 failure in a row, then 4 failed probes"
    assert changes[2] == "half-open to open: 1 failure in a row, then 1 failed probe"
    clock.now += 12
    probe(breaker, breaker.success)
    fail(breaker, 1)
    assert breaker.retry_in == 5


def test_open_time_stays_finite_however_long_the_outage(build, clock):
    """Thousands of failed probes overflow nothing."""
    breaker = build(failure_threshold=1, max_open_seconds=60)
    fail(breaker, 1)
    for _ in range(3000):
        clock.now += 60
        probe(breaker, breaker.failure)
    assert breaker.retry_in == 60


def test_jitter_halves_the_open_time_at_most(clock):
    """With the largest draw the breaker is open for half the time."""
    breaker = CircuitBreaker(failure_threshold=1, open_seconds=4, clock=clock, draw=lambda: 1.0)
    fail(breaker, 1)
    clock.now += 1.9
    assert not breaker.claim_probe()
    clock.now += 0.1
    assert breaker.claim_probe()


def test_ignores_reports_of_callers_from_before_it_opened(build, clock):
    """Without the ticket nothing closes an open or half-open breaker, and nothing opens or prolongs it."""
    breaker = build(failure_threshold=1, open_seconds=5)
    fail(breaker, 1)
    breaker.success()
    clock.now += 4
    breaker.failure()
    assert (breaker.state, breaker.retry_in) == ("open", 1.0)
    clock.now += 1
    ticket = breaker.claim_probe()
    breaker.success()
    breaker.failure()
    assert breaker.state == "half-open"
    breaker.success(ticket)
    assert breaker.state == "closed"


def test_forgets_the_failures_of_an_outage(build, clock):
    """After a recovery the rate is of new calls alone: neither old failures nor old answers weigh."""
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
        fail(breaker, 1)
    breaker.success()
    fail(breaker, 2)
    assert breaker.reason == "50 % of 22 calls failed"


def test_gives_up_a_probe_that_never_reports(build, clock):
    """A lost probe does not keep it half-open for ever; should it report after all, nothing happens."""
    breaker = build(failure_threshold=1, open_seconds=5, probe_seconds=30)
    fail(breaker, 1)
    clock.now += 5
    lost = breaker.claim_probe()
    clock.now += 29
    assert not breaker.claim_probe()
    clock.now += 1
    ticket = breaker.claim_probe()
    assert ticket
    breaker.failure(lost)
    breaker.success(lost)
    breaker.return_probe(lost)
    assert breaker.state == "half-open"
    breaker.success(ticket)
    assert breaker.state == "closed"


def test_takes_a_ticket_back(build, clock, changes):
    """A probe that could not be sent leaves the next caller to try at once, and costs no doubling."""
    breaker = build(failure_threshold=1, open_seconds=5)
    fail(breaker, 1)
    clock.now += 5
    breaker.return_probe(breaker.claim_probe())
    assert (breaker.state, breaker.retry_in) == ("open", 0.0)
    breaker.success(1)
    breaker.return_probe(1)
    assert (breaker.state, len(changes)) == ("open", 3)
    probe(breaker, breaker.failure)
    assert breaker.retry_in == 10.0
    assert changes[2] == "half-open to open: 1 failure in a row"


def test_no_ticket_is_nothing_to_take_back(build, clock):
    """Who gives back the 0 of a caller that was no probe changes nothing, whatever the state."""
    breaker = build(failure_threshold=1, open_seconds=5)
    breaker.return_probe(0)
    assert breaker.allow()
    fail(breaker, 1)
    breaker.return_probe(0)
    assert (breaker.state, breaker.retry_in) == ("open", 5.0)
    clock.now += 5
    breaker.claim_probe()
    breaker.return_probe(0)
    assert (breaker.state, breaker.claim_probe()) == ("half-open", 0)


def test_gate_holds_until_the_rate_limit_is_over(build, clock, changes):
    """A rate limit lets nobody through for its time; then all may ask, without a probe."""
    breaker = build()
    breaker.close_gate(30)
    breaker.close_gate(1)
    assert (breaker.state, breaker.reason, breaker.retry_in) == ("open", "rate limited for 30 s", 30.0)
    clock.now += 29
    assert not breaker.allow()
    assert not breaker.claim_probe()
    clock.now += 1
    assert not breaker.claim_probe()
    assert breaker.allow()
    assert breaker.reason == ""
    assert changes == ["closed to open: rate limited for 30 s", "open to closed: the rate limit is over"]


def test_gate_is_capped(build, clock):
    """Nothing that an answer says silences a process for a day."""
    breaker = build()
    breaker.close_gate(86_400)
    assert breaker.reason == "rate limited for 300 s"
    clock.now += MAX_GATE_SECONDS
    assert breaker.allow()


def test_gate_of_no_time_lets_through(build, changes):
    """A Retry-After of nothing closes nothing."""
    breaker = build()
    breaker.close_gate(0)
    assert breaker.allow()
    assert changes == []


def test_gate_starts_the_count_of_failures_again(build, clock):
    """A rate limit is an answer: failures before and after it are not in a row."""
    breaker = build(failure_threshold=2)
    fail(breaker, 1)
    breaker.close_gate(1)
    clock.now += 1
    fail(breaker, 1)
    assert breaker.state == "closed"


def test_gate_answers_a_probe(build, clock, changes):
    """A rate-limited probe shows that the vendor lives: only the gate is left."""
    breaker = build(failure_threshold=1, open_seconds=5)
    fail(breaker, 1)
    clock.now += 5
    probe(breaker, lambda ticket: breaker.close_gate(10, ticket))
    assert (breaker.state, breaker.reason, breaker.retry_in) == ("open", "rate limited for 10 s", 10.0)
    clock.now += 10
    assert breaker.allow()
    assert changes[2:] == ["half-open to open: rate limited for 10 s", "open to closed: the rate limit is over"]


def test_gate_of_no_time_answers_a_probe(build, clock, changes):
    """A probe told to come back at once closes the breaker."""
    breaker = build(failure_threshold=1, open_seconds=5)
    fail(breaker, 1)
    clock.now += 5
    probe(breaker, lambda ticket: breaker.close_gate(0, ticket))
    assert changes[2:] == ["half-open to closed: the probe was answered"]


def test_late_gate_holds_back_the_probe(build, clock):
    """A rate limit told to a caller from before the opening puts the probe off, and does not replace it."""
    breaker = build(failure_threshold=1, open_seconds=5)
    fail(breaker, 1)
    breaker.close_gate(20)
    assert (breaker.reason, breaker.retry_in) == ("1 failure in a row", 20.0)
    clock.now += 19
    assert not breaker.claim_probe()
    clock.now += 1
    assert not breaker.allow()
    ticket = breaker.claim_probe()
    breaker.close_gate(20)
    assert breaker.state == "half-open"
    breaker.success(ticket)
    assert (breaker.state, breaker.reason) == ("open", "rate limited for 20 s")


def test_gives_one_probe_among_many_threads(build, clock):
    """Threads that ask at the same moment get one ticket between them."""
    breaker = build(failure_threshold=1)
    fail(breaker, 1)
    clock.now += 5
    tickets = together(8, lambda index: breaker.claim_probe())
    assert sorted(map(bool, tickets)) == [False] * 7 + [True]


def test_counts_right_under_many_threads(clock):
    """No report is lost between threads: the last of so many failures opens, none before."""
    breaker = CircuitBreaker(failure_threshold=4001, rate_calls=10_000, clock=clock)
    together(4, lambda index: [breaker.failure() for _ in range(1000)])
    assert breaker.state == "closed"
    breaker.failure()
    assert breaker.reason == "4001 failures in a row"


def test_forked_breaker_starts_closed_behind_the_same_gate():
    """A child works though the lock was held at the fork; failures are forgotten, the rate limit is not."""
    broken = CircuitBreaker(failure_threshold=1)
    fail(broken, 1)
    limited = CircuitBreaker()
    limited.close_gate(60)
    with broken._lock, limited._lock:
        assert in_child(
            lambda: (
                (broken.state, broken.allow(), limited.allow(), limited.reason)
                == ("closed", True, False, "rate limited for 60 s")
            )
        )
    assert broken.state == "open"

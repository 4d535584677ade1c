"""The breaker on a virtual clock, the pool with real threads and real forks."""

import gc
import os
import signal
import threading
import time
import warnings
import weakref
from concurrent.futures import CancelledError, wait
from contextlib import contextmanager

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from django_moe_personalize.resilience import (
    MAX_GATE_SECONDS,
    Backoff,
    CircuitBreaker,
    Deadline,
    PoolBusy,
    WorkerPool,
)

SOON = 10.0
"""Seconds after which a thing that should have happened at once is taken not to happen."""


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def whole():
    """Draw no jitter at all for a breaker, and nothing for a backoff."""
    return 0.0


def in_child(check):
    """Run ``check`` in a forked child and return whether it was true there."""
    with warnings.catch_warnings():
        # Python warns of a fork beside threads; that it goes well is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        # A child that hangs is one that failed.
        signal.alarm(30)
        passed = False
        try:
            passed = bool(check())
        finally:
            os._exit(0 if passed else 1)
    return os.waitpid(pid, 0)[1] == 0


# -- Deadline, Backoff


def test_deadline_counts_down_and_stops_at_zero():
    """The remaining time follows the clock, is never negative, and says when nothing is left."""
    clock = Clock()
    deadline = Deadline(2.0, clock=clock)
    assert (deadline.remaining(), deadline.expired) == (2.0, False)
    clock.now += 1.5
    assert (deadline.remaining(), deadline.expired) == (0.5, False)
    clock.now += 9
    assert (deadline.remaining(), deadline.expired) == (0.0, True)


def test_no_deadline_never_expires():
    """A deadline of None leaves all the time of the world."""
    deadline = Deadline(None)
    assert deadline.remaining() is None
    assert not deadline.expired


@pytest.mark.parametrize(("attempt", "ceiling"), [(0, 0.5), (1, 1.0), (3, 4.0), (7, 60.0), (10_000, 60.0)])
def test_backoff_doubles_up_to_the_maximum(attempt, ceiling):
    """The wait lies between nothing and a ceiling that doubles up to the maximum."""
    assert Backoff(draw=lambda: 1.0).delay(attempt) == ceiling
    assert Backoff(draw=lambda: 0.0).delay(attempt) == 0.0
    assert 0.0 <= Backoff().delay(attempt) <= ceiling


# -- CircuitBreaker


def fail(breaker, times):
    """Report failures of callers that were let through."""
    for _ in range(times):
        assert breaker.allow()
        breaker.failure()


def test_breaker_opens_after_failures_in_a_row():
    """A success in between starts the count again; the threshold in a row opens."""
    changes = []
    breaker = CircuitBreaker(failure_threshold=3, on_change=lambda old, new: changes.append((old, new)))
    fail(breaker, 2)
    breaker.success()
    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker, 1)
    assert breaker.state == "open"
    assert not breaker.allow()
    assert changes == [("closed", "open")]


def test_breaker_lets_one_probe_through_and_closes_on_its_success():
    """After the open time one caller is let through; all others wait for its report."""
    clock = Clock()
    changes = []
    breaker = CircuitBreaker(
        failure_threshold=1,
        open_seconds=5,
        clock=clock,
        draw=whole,
        on_change=lambda old, new: changes.append(f"{old} to {new}"),
    )
    fail(breaker, 1)
    clock.now += 4.9
    assert not breaker.allow()
    clock.now += 0.1
    assert [breaker.allow() for _ in range(3)] == [True, False, False]
    assert breaker.state == "half-open"
    breaker.success()
    assert breaker.allow()
    assert changes == ["closed to open", "open to half-open", "half-open to closed"]


def test_breaker_stays_open_twice_as_long_after_each_failed_probe():
    """The open time doubles up to the maximum, and starts small again after a recovery."""
    clock = Clock()
    breaker = CircuitBreaker(failure_threshold=1, open_seconds=5, max_open_seconds=12, clock=clock, draw=whole)
    for seconds in (5, 10, 12, 12):
        fail(breaker, 1)
        clock.now += seconds - 0.1
        assert not breaker.allow()
        clock.now += 0.1
    assert breaker.allow()
    breaker.success()
    fail(breaker, 1)
    clock.now += 5
    assert breaker.allow()


def test_breaker_jitter_halves_the_open_time_at_most():
    """With the largest draw the breaker is open for half the time, never longer than the whole."""
    clock = Clock()
    breaker = CircuitBreaker(failure_threshold=1, open_seconds=4, clock=clock, draw=lambda: 1.0)
    fail(breaker, 1)
    clock.now += 1.9
    assert not breaker.allow()
    clock.now += 0.1
    assert breaker.allow()


def test_breaker_ignores_reports_of_callers_from_before_it_opened():
    """A late success does not close an open breaker, a late failure does not prolong it."""
    clock = Clock()
    breaker = CircuitBreaker(failure_threshold=1, open_seconds=5, clock=clock, draw=whole)
    fail(breaker, 1)
    breaker.success()
    assert breaker.state == "open"
    clock.now += 4
    breaker.failure()
    clock.now += 1
    assert breaker.allow()


def test_breaker_gives_up_a_probe_that_never_reports():
    """A lost probe does not keep the breaker half-open for ever: another is let through."""
    clock = Clock()
    breaker = CircuitBreaker(failure_threshold=1, open_seconds=5, max_open_seconds=60, clock=clock, draw=whole)
    fail(breaker, 1)
    clock.now += 5
    assert breaker.allow()
    clock.now += 59
    assert not breaker.allow()
    clock.now += 1
    assert [breaker.allow(), breaker.allow()] == [True, False]


def test_gate_holds_until_the_rate_limit_is_over():
    """A rate limit lets nobody through for its time, capped; a shorter one does not shorten it."""
    clock = Clock()
    breaker = CircuitBreaker(clock=clock)
    breaker.close_gate(30)
    breaker.close_gate(1)
    clock.now += 29
    assert not breaker.allow()
    clock.now += 1
    assert breaker.allow()
    breaker.close_gate(86_400)
    clock.now += MAX_GATE_SECONDS
    assert breaker.allow()


def test_gate_answers_a_probe():
    """A rate-limited probe shows that the vendor lives: the breaker closes, the gate holds."""
    clock = Clock()
    breaker = CircuitBreaker(failure_threshold=1, open_seconds=5, clock=clock, draw=whole)
    fail(breaker, 1)
    clock.now += 5
    assert breaker.allow()
    breaker.close_gate(10)
    assert breaker.state == "closed"
    assert not breaker.allow()


def test_breaker_admits_one_probe_among_many_threads():
    """Threads that ask at the same moment get one probe between them."""
    clock = Clock()
    breaker = CircuitBreaker(failure_threshold=1, clock=clock, draw=whole)
    fail(breaker, 1)
    clock.now += 5
    together = threading.Barrier(8)
    answers = []

    def ask():
        together.wait(SOON)
        answers.append(breaker.allow())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert sorted(answers) == [False] * 7 + [True]


def test_forked_breaker_starts_closed_behind_the_same_gate():
    """A child works though the lock was held at the fork; failures are forgotten, the rate limit is not."""
    broken = CircuitBreaker(failure_threshold=1)
    fail(broken, 1)
    limited = CircuitBreaker()
    limited.close_gate(60)
    with broken._lock:
        assert in_child(lambda: broken.state == "closed" and broken.allow() and not limited.allow())
    assert broken.state == "open"


class BreakerMachine(RuleBasedStateMachine):
    """The breaker against a model of what its callers may see."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.changes = []
        self.breaker = CircuitBreaker(
            failure_threshold=3,
            open_seconds=4,
            max_open_seconds=20,
            clock=self.clock,
            on_change=lambda old, new: self.changes.append((old, new)),
        )
        self.calls = 0
        self.failures_in_a_row = 0
        self.opened_at = None
        self.gate_until = 0.0

    @rule(seconds=st.floats(0.01, 25))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @rule()
    def ask(self):
        before = self.breaker.state
        if self.breaker.allow():
            self.calls += 1
            assert self.clock.now >= self.gate_until
            assert (before == "closed") == (self.breaker.state == "closed")
            if before != "closed":
                assert self.clock.now - self.opened_at >= 2
                assert not self.breaker.allow()
        elif before != "half-open" and self.clock.now >= self.gate_until:
            assert before == "open"
            assert self.clock.now - self.opened_at < 20

    @precondition(lambda self: self.calls)
    @rule()
    def succeed(self):
        self.calls -= 1
        before = self.breaker.state
        self.breaker.success()
        assert self.breaker.state == ("open" if before == "open" else "closed")
        if before != "open":
            self.failures_in_a_row = 0

    @precondition(lambda self: self.calls)
    @rule()
    def fail(self):
        self.calls -= 1
        before = self.breaker.state
        self.failures_in_a_row += 1
        self.breaker.failure()
        opens = before != "closed" or self.failures_in_a_row >= 3
        assert self.breaker.state == ("open" if opens else "closed")
        if opens and before != "open":
            self.opened_at = self.clock.now

    @precondition(lambda self: self.calls)
    @rule(seconds=st.floats(0, 1000))
    def limit(self, seconds):
        self.calls -= 1
        before = self.breaker.state
        self.breaker.close_gate(seconds)
        self.gate_until = max(self.gate_until, self.clock.now + min(seconds, MAX_GATE_SECONDS))
        if before != "open":
            self.failures_in_a_row = 0

    @invariant()
    def changes_form_a_chain(self):
        states = ["closed", *(new for _, new in self.changes)]
        assert [old for old, _ in self.changes] == states[:-1]
        assert self.breaker.state == states[-1]
        assert not {("closed", "half-open"), ("open", "closed")} & set(self.changes)

    def teardown(self):
        """Whatever happened, a vendor that is well again is asked again."""
        self.clock.now += MAX_GATE_SECONDS + 60
        assert self.breaker.allow()
        self.breaker.success()
        assert self.breaker.state == "closed"


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


# -- WorkerPool


@pytest.fixture
def gate():
    """An event that releases every blocked worker at the latest at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


def threads_of(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_pool_starts_no_thread_before_work_comes():
    """A pool that is only built has no threads; work starts a daemon that does not hold the exit."""
    pool = WorkerPool(2, name="lazy")
    assert threads_of("lazy") == []
    assert pool.submit(lambda a, *, b: (a, b), 1, b=2).result(SOON) == (1, 2)
    assert [thread.daemon for thread in threads_of("lazy")] == [True]


def test_pool_reuses_an_idle_thread():
    """One piece of work after another runs on one thread, even if submitted as soon as the result is there."""
    pool = WorkerPool(1, name="reuse")
    assert len({pool.submit(threading.get_ident).result(SOON) for _ in range(50)}) == 1


def test_pool_refuses_at_once_when_all_workers_are_busy(gate):
    """Work beyond the width is refused without waiting, and taken again when a place is free."""
    pool = WorkerPool(2, name="narrow")
    futures = [pool.submit(gate.wait, SOON) for _ in range(2)]
    assert pool.in_flight == 2
    with pytest.raises(PoolBusy, match="narrow: all 2 workers are busy"):
        pool.submit(print)
    gate.set()
    assert not wait(futures, SOON).not_done
    assert pool.in_flight == 0
    assert pool.submit(int).result(SOON) == 0


def test_pool_keeps_the_place_of_abandoned_work(gate):
    """A caller that stops waiting frees nothing: the worker is still hung."""
    pool = WorkerPool(1, name="abandoned")
    future = pool.submit(gate.wait, SOON)
    with pytest.raises(TimeoutError):
        future.result(0)
    with pytest.raises(PoolBusy):
        pool.submit(print)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_pool_carries_any_error_in_the_future(error):
    """An error, even one that would end a thread, reaches the caller; the worker lives on."""
    pool = WorkerPool(1, name="errors")

    def fail():
        raise error

    assert pool.submit(fail).exception(SOON) is error
    assert pool.submit(int).result(SOON) == 0


def test_pool_skips_cancelled_work(gate):
    """Work cancelled before a worker got to it does not run, and gives its place back."""
    pool = WorkerPool(2, name="cancelled")
    ran = []
    callback_entered = threading.Event()

    def linger(future):
        callback_entered.set()
        gate.wait(SOON)

    first_may_end = threading.Event()
    first = pool.submit(first_may_end.wait, SOON)
    first.add_done_callback(linger)
    first_may_end.set()
    assert callback_entered.wait(SOON)
    # The only thread is held up in the callback, so this work waits in the queue.
    second = pool.submit(ran.append, 1)
    assert second.cancel()
    gate.set()
    assert pool.submit(int).result(SOON) == 0
    with pytest.raises(CancelledError):
        second.result(0)
    assert (ran, pool.in_flight) == ([], 0)


def test_pool_lets_idle_threads_go():
    """A thread without work leaves, and new work starts another."""
    pool = WorkerPool(1, name="leaving", idle_seconds=0.01)
    pool.submit(int).result(SOON)
    for thread in threads_of("leaving"):
        thread.join(SOON)
    assert threads_of("leaving") == []
    assert pool.submit(int).result(SOON) == 0


def test_pool_never_loses_work_to_a_thread_that_is_leaving():
    """Work submitted at the moment the idle time ends is run all the same."""
    pool = WorkerPool(1, name="race", idle_seconds=0.0)
    assert [pool.submit(int, "7").result(SOON) for _ in range(300)] == [7] * 300


def test_pool_keeps_a_thread_that_is_about_to_get_work():
    """A worker whose wait ends while work is on its way does not leave."""
    pool = WorkerPool(1, name="promised", idle_seconds=0.02)
    pool.submit(int).result(SOON)
    crew = pool._crew
    with crew.lock:
        # What submit() does first; the work itself comes when the wait has ended several times.
        crew.in_flight += 1
        (thread,) = threads_of("promised")
    thread.join(0.2)
    assert thread.is_alive()
    with crew.lock:
        crew.in_flight -= 1
    thread.join(SOON)
    assert not thread.is_alive()


def test_pool_holds_no_result_after_the_caller_let_it_go():
    """An idle worker keeps neither arguments nor results nor errors alive."""

    class Large(Exception):
        """Something that can be watched, returned and raised."""

    def fail(given):
        raise Large(given)

    pool = WorkerPool(1, name="memory")
    argument = Large()
    future = pool.submit(lambda given: [given, Large()], argument)
    watched = [weakref.ref(argument), weakref.ref(future.result(SOON)[1])]
    error = pool.submit(fail, argument).exception(SOON)
    watched.append(weakref.ref(error))
    pool.submit(int).result(SOON)
    gc.disable()
    try:
        del argument, future, error
        assert [reference() for reference in watched] == [None, None, None]
    finally:
        gc.enable()


@contextmanager
def no_threads():
    """Make every new thread ask for more stack than there is address space."""
    previous = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(previous)


def test_pool_without_a_thread_to_be_had_is_busy():
    """When the system gives no thread the work is refused, and the place is free for later."""
    pool = WorkerPool(1, name="starved")
    with no_threads(), pytest.raises(PoolBusy, match="starved: no thread could be started"):
        pool.submit(int)
    assert pool.submit(int).result(SOON) == 0


def test_forked_pool_starts_empty(gate):
    """A child has all places free and threads of its own, though the parent's are busy and locked."""
    pool = WorkerPool(1, name="forked")
    pool.submit(gate.wait, SOON)
    with pool._crew.lock:
        assert in_child(lambda: pool.in_flight == 0 and pool.submit(os.getpid).result(SOON) == os.getpid())
    assert pool.in_flight == 1


def test_pool_counts_right_under_many_threads():
    """Submitters that compete never see more than the width at work, and every accepted call runs once."""
    pool = WorkerPool(3, name="crowd")
    lock = threading.Lock()
    now, most, ran, accepted = 0, 0, 0, []

    def work():
        nonlocal now, most, ran
        with lock:
            now, ran = now + 1, ran + 1
            most = max(most, now)
        time.sleep(0)
        with lock:
            now -= 1

    def submit_many():
        for _ in range(200):
            try:
                accepted.append(pool.submit(work))
            except PoolBusy:
                time.sleep(0)

    threads = [threading.Thread(target=submit_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert not wait(accepted, SOON).not_done
    assert (pool.in_flight, ran) == (0, len(accepted))
    assert 1 <= most <= 3

"""Deadline, backoff and counts on a virtual clock, the pool with real threads and real forks."""

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

from django_moe_personalize.resilience import Backoff, Deadline, PoolBusy, SlidingCount, WorkerPool
from tests.wire import wait_until

SOON = 10.0
"""Seconds after which a thing that should have happened at once is taken not to happen."""


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def together(number, call):
    """Call ``call(index)`` in so many threads that start at the same moment; return what they returned."""
    start = threading.Barrier(number)
    answers = []

    def run(index):
        start.wait(SOON)
        answers.append(call(index))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON * 3)
    assert len(answers) == number
    return answers


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


# -- SlidingCount


def test_sliding_count_holds_the_last_seconds_and_a_slot_more():
    """What happened counts for the whole time, and for no more than one slot longer."""
    count = SlidingCount(10.0, slots=5)
    count.add(1.9)
    count.add(2.0, 5)
    assert count.total(11.9) == 6
    assert count.total(12.0) == 5
    assert count.total(13.9) == 5
    assert count.total(14.0) == 0


def test_sliding_count_takes_no_more_memory_for_more_events():
    """However much is counted, there is one number a slot; after silence they are all dropped at once."""
    count = SlidingCount(10.0)
    for moment in range(10_000):
        count.add(moment / 100)
    assert count.total(100.0) == 1000
    assert len(count._counts) == 10
    count.add(10_000.0)
    assert (count.total(10_000.0), len(count._counts)) == (1, 1)


def test_sliding_count_can_start_again():
    """Cleared, it holds nothing."""
    count = SlidingCount(10.0)
    count.add(1.0)
    count.clear()
    assert count.total(1.0) == 0


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


def test_an_offer_is_taken_by_a_free_worker_or_by_nobody(gate):
    """What may be left undone is offered: the answer says whether it is done, and nothing is raised."""
    pool, done = WorkerPool(1, name="offered"), []
    assert pool.offer(gate.wait, SOON) is True
    assert pool.offer(done.append, 1) is False
    gate.set()
    wait_until(lambda: pool.in_flight == 0)
    assert pool.offer(done.append, 2) is True
    wait_until(lambda: done == [2])


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

"""The pool of threads, with real threads; deadline and backoff, on a virtual clock."""

import gc
import threading
import time
import weakref
from concurrent.futures import CancelledError, wait

import pytest

from django_moe_personalize.resilience import Backoff, Deadline, PoolBusy, WorkerPool
from tests.processes import SOON, no_threads, recorded_contexts, together
from tests.wire import wait_until


def find_threads(name):
    """Return the running threads of a pool."""
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_first_work_starts_a_daemon_thread():
    """A pool that is only built has no threads. A daemon thread doesn't keep the process from exiting."""
    pool = WorkerPool(2, name="lazy")
    assert find_threads("lazy") == []
    assert pool.submit(lambda a, *, b: (a, b), 1, b=2).result(SOON) == (1, 2)
    assert [thread.daemon for thread in find_threads("lazy")] == [True]


def test_thread_does_not_belong_to_the_page_that_starts_it():
    """The thread works for other visitors too, so it doesn't take over the context of one page."""
    with recorded_contexts() as values:
        WorkerPool(1, name="context").submit(int).result(SOON)
    assert values == [None]


def test_one_thread_does_one_job_after_another():
    """A caller that submits as soon as it has the result gets the same thread."""
    pool = WorkerPool(1, name="reuse")
    assert len({pool.submit(threading.get_ident).result(SOON) for _ in range(50)}) == 1


def test_full_pool_refuses_at_once(gate):
    """submit() raises and offer() returns False while all threads are busy; later both work again."""
    pool = WorkerPool(2, name="narrow")
    futures = [pool.submit(gate.wait, SOON) for _ in range(2)]
    assert pool.in_flight == 2
    with pytest.raises(PoolBusy, match="narrow: all 2 workers are busy"):
        pool.submit(print)
    assert not pool.offer(print)
    gate.set()
    assert not wait(futures, SOON).not_done
    assert pool.in_flight == 0
    done = []
    assert pool.offer(done.append, 1)
    wait_until(lambda: done == [1])


def test_abandoned_work_keeps_its_place(gate):
    """A caller that stops waiting doesn't free the thread."""
    pool = WorkerPool(1, name="abandoned")
    with pytest.raises(TimeoutError):
        pool.submit(gate.wait, SOON).result(0)
    with pytest.raises(PoolBusy):
        pool.submit(print)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_future_carries_every_error(error):
    """The caller gets even an error that would end a thread, and the thread goes on."""
    pool = WorkerPool(1, name="errors")

    def fail():
        raise error

    assert pool.submit(fail).exception(SOON) is error
    assert pool.submit(int).result(SOON) == 0


def test_cancelled_work_does_not_run(gate):
    """Work that is cancelled before a thread begins it frees its place."""
    pool = WorkerPool(2, name="cancelled")
    ran, entered, go_on = [], threading.Event(), threading.Event()
    first = pool.submit(go_on.wait, SOON)
    first.add_done_callback(lambda future: (entered.set(), gate.wait(SOON)))
    go_on.set()
    assert entered.wait(SOON)
    # The only thread is in the callback, so this work waits in the queue.
    second = pool.submit(ran.append, 1)
    assert second.cancel()
    gate.set()
    assert pool.submit(int).result(SOON) == 0
    with pytest.raises(CancelledError):
        second.result(0)
    assert (ran, pool.in_flight) == ([], 0)


def test_idle_threads_end():
    """A thread without work ends, and new work starts another one."""
    pool = WorkerPool(1, name="leaving", idle_seconds=0.01)
    for _ in range(2):
        assert pool.submit(int).result(SOON) == 0
        wait_until(lambda: not find_threads("leaving"))


def test_thread_that_ends_loses_no_work():
    """Work that is submitted at the end of a thread's idle time runs all the same."""
    pool = WorkerPool(1, name="race", idle_seconds=0.0)
    assert [pool.submit(int, "7").result(SOON) for _ in range(300)] == [7] * 300


def test_thread_stays_for_work_that_is_on_its_way():
    """A thread whose idle time ends between the two steps of submit() doesn't end."""
    pool = WorkerPool(1, name="promised", idle_seconds=0.01)
    pool.submit(int).result(SOON)
    with pool._lock:
        # The first step of submit(). The second one, putting the job, never comes.
        pool.in_flight += 1
        (thread,) = find_threads("promised")
    thread.join(0.1)
    assert thread.is_alive()
    with pool._lock:
        pool.in_flight -= 1
    thread.join(SOON)
    assert not thread.is_alive()


def test_idle_thread_keeps_nothing_alive():
    """Arguments, results and errors are freed with the caller's last reference."""

    class Large(Exception):
        """An object that can be watched, returned and raised."""

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


def test_system_without_threads():
    """If the system starts no thread, the pool refuses the work and keeps its place free."""
    pool = WorkerPool(1, name="starved")
    with no_threads(), pytest.raises(PoolBusy, match="starved: no thread could be started"):
        pool.submit(int)
    assert pool.submit(int).result(SOON) == 0


def test_counts_of_competing_threads():
    """Never more calls than threads are at work, and each accepted call runs once."""
    pool = WorkerPool(3, name="crowd")
    lock, at_work, ran, accepted = threading.Lock(), [0], [], []

    def work():
        with lock:
            at_work[0] += 1
            ran.append(at_work[0])
        time.sleep(0)
        with lock:
            at_work[0] -= 1

    def submit_many(index):
        for _ in range(200):
            try:
                accepted.append(pool.submit(work))
            except PoolBusy:
                time.sleep(0)

    together(4, submit_many)
    assert not wait(accepted, SOON).not_done
    assert (pool.in_flight, len(ran)) == (0, len(accepted))
    assert 1 <= max(ran) <= 3


def test_deadline_counts_down_to_zero(clock):
    """The remaining time follows the clock and is never negative."""
    deadline = Deadline(2.0, clock=clock)
    for seconds, remaining, expired in ((0.0, 2.0, False), (1.5, 0.5, False), (9.0, 0.0, True)):
        clock.now += seconds
        assert (deadline.remaining(), deadline.expired) == (remaining, expired)


def test_no_deadline_never_expires():
    """A deadline of None leaves unlimited time."""
    assert Deadline(None).remaining() is None
    assert not Deadline(None).expired


@pytest.mark.parametrize(("attempt", "ceiling"), [(0, 0.5), (1, 1.0), (3, 4.0), (7, 60.0), (10_000, 60.0)])
def test_backoff_doubles_up_to_the_maximum(attempt, ceiling):
    """The wait lies between 0 and a ceiling that doubles up to the maximum."""
    assert Backoff(draw=lambda: 1.0).delay(attempt) == ceiling
    assert Backoff(draw=lambda: 0.0).delay(attempt) == 0.0
    assert 0.0 <= Backoff().delay(attempt) <= ceiling

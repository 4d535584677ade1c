"""Time, forks and threads: deadline, backoff, sliding count, abandonable pool. No Django."""

from __future__ import annotations

import os
import queue
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MAX_GATE_SECONDS = 300.0
"""The longest a rate limit may silence this process, whatever its Retry-After says."""


class Forkable(Protocol):
    """A part that holds locks or threads, neither of which survives a fork."""

    def after_fork(self) -> None:
        """Start afresh in the child process."""
        ...


_forkables: weakref.WeakSet[Any] = weakref.WeakSet()


def renew_after_fork(part: Forkable) -> None:
    """Call ``part.after_fork()`` in every process forked from now on, as long as the part lives."""
    _forkables.add(part)


def _renew_all() -> None:
    for part in list(_forkables):
        part.after_fork()


os.register_at_fork(after_in_child=_renew_all)


class Deadline:
    """A moment on a monotonic clock by which something must be over.

    ``seconds`` may be ``None`` for no deadline. One deadline is handed down every step of a call,
    and each step waits at most ``remaining()`` seconds.
    """

    __slots__ = ("_at", "_clock")

    def __init__(self, seconds: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = None if seconds is None else clock() + seconds

    def remaining(self) -> float | None:
        """Return the seconds left, never below 0.0; ``None`` when there is no deadline."""
        return None if self._at is None else max(0.0, self._at - self._clock())

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self._at is not None and self._clock() >= self._at


class Backoff:
    """Waiting times that double from ``base`` to ``maximum`` seconds, with full jitter.

    Full jitter (a uniform draw between nothing and the ceiling) spreads the retries of many
    processes best: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    def __init__(self, base: float = 0.5, maximum: float = 60.0, *, draw: Callable[[], float] = random.random) -> None:
        self._base = base
        self._maximum = maximum
        self._draw = draw

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait before retry number ``attempt``, counted from 0."""
        return self._draw() * min(self._maximum, self._base * 2.0 ** min(attempt, 32))


class SlidingCount:
    """How much happened in the last ``seconds``, in constant memory. Not thread-safe: its owner has the lock.

    Time is cut into slots of ``seconds / slots``. The total is of the current slot and the ``slots``
    before it, so it never misses anything of the last ``seconds``, and holds up to one slot more.
    """

    __slots__ = ("_counts", "_slots", "_total", "_width")

    def __init__(self, seconds: float, *, slots: int = 10) -> None:
        self._width = seconds / slots
        self._slots = slots
        self.clear()

    def clear(self) -> None:
        """Count from 0 again."""
        self._counts: deque[list[int]] = deque()
        self._total = 0

    def add(self, now: float, amount: int = 1) -> None:
        """Count ``amount`` at ``now``, seconds on a clock that never goes back."""
        slot = int(now // self._width)
        counts = self._counts
        if not counts or counts[-1][0] != slot:
            self._expire(slot)
            counts.append([slot, 0])
        counts[-1][1] += amount
        self._total += amount

    def total(self, now: float) -> int:
        """Return how much was counted in the last ``seconds`` before ``now``."""
        self._expire(int(now // self._width))
        return self._total

    def _expire(self, slot: int) -> None:
        counts = self._counts
        while counts and counts[0][0] < slot - self._slots:
            self._total -= counts.popleft()[1]


class PoolBusy(RuntimeError):
    """Every worker of a pool is busy; the work was not taken."""


class _Crew:
    """The threads, the work and the counts of one pool in one process."""

    __slots__ = ("in_flight", "jobs", "lock", "threads")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self.threads = 0
        self.in_flight = 0

    def work(self, idle_seconds: float) -> None:
        """Run jobs until none has come for ``idle_seconds``."""
        while True:
            try:
                self.run(*self.jobs.get(timeout=idle_seconds))
            except queue.Empty:
                with self.lock:
                    if self.threads > self.in_flight:
                        self.threads -= 1
                        return

    def run(self, future: Future[Any], call: Callable[[], Any]) -> None:
        """Run one job and put its outcome into the future."""
        result, error = None, None
        try:
            if future.set_running_or_notify_cancel():
                result = call()
        except BaseException as caught:
            error = caught
        # Free the place before the caller learns of the outcome: it may submit again at once.
        with self.lock:
            self.in_flight -= 1
        try:
            if error is not None:
                future.set_exception(error)
            elif not future.cancelled():
                future.set_result(result)
        finally:
            # The traceback holds this frame, and the future the error: break the cycle.
            del future, call, result, error


class WorkerPool:
    """A bounded pool of daemon threads that a caller can abandon: a bulkhead.

    Threads start when they are first needed, are reused, and leave after ``idle_seconds`` without
    work. A function that hangs keeps its place until it returns, and never the process's exit.
    A forked child starts with an empty pool; futures of the parent never complete there.
    """

    def __init__(self, max_workers: int, *, name: str, idle_seconds: float = 30.0) -> None:
        self._max_workers = max_workers
        self._name = name
        self._idle_seconds = idle_seconds
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Start with no threads and no work."""
        self._crew = _Crew()

    @property
    def in_flight(self) -> int:
        """How many functions are taken and not yet over."""
        return self._crew.in_flight

    def submit(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn(*args, **kwargs)`` on a worker at once and return its future.

        Raises PoolBusy, without waiting, when ``max_workers`` functions are in flight or the
        system gives no thread. Callbacks added to the future run on the worker: keep them short.
        """
        crew = self._crew
        with crew.lock:
            if crew.in_flight >= self._max_workers:
                raise PoolBusy(f"{self._name}: all {self._max_workers} workers are busy")
            crew.in_flight += 1
            hire = crew.threads < crew.in_flight
            crew.threads += hire
        if hire:
            self._hire(crew)
        future: Future[T] = Future()
        crew.jobs.put((future, partial(fn, *args, **kwargs)))
        return future

    def offer(self, fn: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Run ``fn(*args, **kwargs)`` beside the caller if a worker is free; return whether one was. See submit()."""
        try:
            self.submit(fn, *args, **kwargs)
        except PoolBusy:
            return False
        return True

    def _hire(self, crew: _Crew) -> None:
        try:
            threading.Thread(target=crew.work, args=(self._idle_seconds,), name=self._name, daemon=True).start()
        except RuntimeError as error:
            with crew.lock:
                crew.in_flight -= 1
                crew.threads -= 1
            raise PoolBusy(f"{self._name}: no thread could be started") from error

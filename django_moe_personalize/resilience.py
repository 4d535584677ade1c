"""Time, failure and threads: deadline, backoff, circuit breaker, abandonable pool. No Django."""

from __future__ import annotations

import os
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

BreakerState = Literal["closed", "open", "half-open"]

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


class CircuitBreaker:
    """Stop asking an upstream that keeps failing, and find out cheaply when it is back.

    ``closed`` until ``failure_threshold`` failures in a row; then ``open``, asking nothing, for
    between a half and the whole of ``open_seconds``; then ``half-open``: one caller is let through
    as the probe. Its success closes the breaker, its failure opens it for twice as long, up to
    ``max_open_seconds``. A probe that is never reported on is given up after ``max_open_seconds``.
    ``on_change(old, new)`` is called outside the lock, in the thread that caused the change.
    """

    def __init__(
        self,
        *,
        failure_threshold: int = 5,
        open_seconds: float = 5.0,
        max_open_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
        on_change: Callable[[str, str], None] | None = None,
    ) -> None:
        self._threshold = failure_threshold
        self._open_seconds = open_seconds
        self._max_open_seconds = max_open_seconds
        self._clock = clock
        self._draw = draw
        self._on_change = on_change
        self._gate_until = float("-inf")
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Start closed: a child has seen no failure itself; a rate limit is of the workspace and stays."""
        self._lock = threading.Lock()
        self._state: BreakerState = "closed"
        self._failures = 0
        self._openings = 0
        self._until = float("-inf")

    @property
    def state(self) -> BreakerState:
        """The state as of the last call: ``closed``, ``open`` or ``half-open``."""
        return self._state

    def allow(self) -> bool:
        """Return whether the caller may ask now; in ``half-open`` a True makes the caller the probe.

        Whoever was let through reports with ``success``, ``failure`` or ``close_gate``.
        """
        with self._lock:
            now = self._clock()
            old = self._state
            if now < self._gate_until or (old != "closed" and now < self._until):
                return False
            if old != "closed":
                self._state = "half-open"
                self._until = now + self._max_open_seconds
        self._announce(old, self._state)
        return True

    def success(self) -> None:
        """Report an answer. One that comes late, from before the breaker opened, changes nothing."""
        with self._lock:
            old = new = self._state
            if old != "open":
                self._failures = self._openings = 0
                self._state = new = "closed"
        self._announce(old, new)

    def failure(self) -> None:
        """Report that no usable answer came."""
        with self._lock:
            old = new = self._state
            self._failures += 1
            if old == "half-open" or (old == "closed" and self._failures >= self._threshold):
                seconds = min(self._max_open_seconds, self._open_seconds * 2.0 ** min(self._openings, 32))
                self._openings += 1
                self._until = self._clock() + seconds * (1.0 - self._draw() / 2)
                self._state = new = "open"
        self._announce(old, new)

    def close_gate(self, seconds: float) -> None:
        """Let nobody through for ``seconds``, at most MAX_GATE_SECONDS: the vendor's rate limit (contract §1).

        A rate limit is an answer of a living upstream, so it counts as a success besides.
        """
        with self._lock:
            self._gate_until = max(self._gate_until, self._clock() + min(seconds, MAX_GATE_SECONDS))
        self.success()

    def _announce(self, old: BreakerState, new: BreakerState) -> None:
        if old != new and self._on_change is not None:
            self._on_change(old, new)


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

    def _hire(self, crew: _Crew) -> None:
        try:
            threading.Thread(target=crew.work, args=(self._idle_seconds,), name=self._name, daemon=True).start()
        except RuntimeError as error:
            with crew.lock:
                crew.in_flight -= 1
                crew.threads -= 1
            raise PoolBusy(f"{self._name}: no thread could be started") from error

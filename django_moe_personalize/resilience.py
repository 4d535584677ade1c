"""Limit calls to an upstream: deadlines, waits between retries, a circuit breaker and a pool. Without Django."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, ParamSpec, TypeVar

MAX_GATE_SECONDS = 300.0
"""The longest time for which a rate limit stops calls. A longer Retry-After counts as this time."""

SLOTS = 10

BreakerState = Literal["closed", "open", "half-open"]

P = ParamSpec("P")
T = TypeVar("T")

# Not time.monotonic(): freezegun stops it in a site's tests. A loop that waits for a stopped clock would never end.
monotonic: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_MONOTONIC)


class Deadline:
    """The time on a monotonic clock when a call must be over. Without a limit if ``seconds`` is ``None``.

    All steps of a call share one deadline. Each step waits at most ``remaining()`` seconds.
    """

    __slots__ = ("_at", "_clock")

    def __init__(self, seconds: float | None, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._at = None if seconds is None else clock() + seconds

    def remaining(self) -> float | None:
        """Return how many seconds are left, at least 0.0, or ``None`` without a limit."""
        return None if self._at is None else max(0.0, self._at - self._clock())

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self._at is not None and self._clock() >= self._at

    @property
    def overdue(self) -> float:
        """How many seconds ago the deadline passed, or 0.0."""
        return 0.0 if self._at is None else max(0.0, self._clock() - self._at)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Random waits between retries. The limit of the waits doubles, from ``base`` to ``maximum`` seconds.

    A wait is a random time between 0 and the limit (full jitter), which spreads the retries of many processes best:
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    base: float = 0.5
    maximum: float = 60.0
    draw: Callable[[], float] = field(default=random.random, kw_only=True)

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait before retry number ``attempt``, counted from 0."""
        return self.draw() * min(self.maximum, self.base * 2.0 ** min(attempt, 32))


class RecentCalls:
    """Count calls and failures in constant memory. Not thread-safe: the breaker holds a lock.

    Time is divided into slots of ``seconds / SLOTS``, and each slot has its own counts. total() adds the current slot
    and the SLOTS slots before it. So the sum covers at least the last ``seconds``, and at most one slot more.
    """

    __slots__ = ("_slots", "_width")

    def __init__(self, seconds: float) -> None:
        self._width = seconds / SLOTS
        # Each item is the number of a slot, and the counts [successes, failures].
        self._slots: deque[tuple[int, list[int]]] = deque(maxlen=SLOTS + 1)

    def add(self, now: float, *, is_failure: bool) -> None:
        """Count a call at the time ``now`` of a monotonic clock."""
        slot = int(now // self._width)
        if not self._slots or self._slots[-1][0] != slot:
            self._slots.append((slot, [0, 0]))
        self._slots[-1][1][is_failure] += 1

    def total(self, now: float) -> tuple[int, int]:
        """Return the number of calls and the number of failures in the last ``seconds`` before ``now``."""
        oldest = int(now // self._width) - SLOTS
        recent = [counts for slot, counts in self._slots if slot >= oldest]
        failures = sum(failed for _, failed in recent)
        return failures + sum(succeeded for succeeded, _ in recent), failures


@dataclass(kw_only=True, eq=False, repr=False)
class CircuitBreaker:
    """Stop calling an upstream that keeps failing, and find out at little cost when it works again.

    ``closed``: every caller may call. The breaker opens after ``failure_threshold`` failures in a row. The breaker
    also opens if at least ``rate_calls`` calls ended in the last ``rate_seconds``, and the share ``failure_rate`` of
    these calls failed, because a page waits for its whole deadline before a failure.
    ``open``: no caller may call, for a random time between 50 % and 100 % of ``open_seconds``. The time doubles with
    each failed probe, up to ``max_open_seconds``.
    ``half-open``: one caller has a ticket from claim_probe() and calls the upstream in the background. This call is
    the probe. If the probe succeeds, the breaker closes. If the probe fails, the breaker opens again. If the probe
    reports nothing for ``probe_seconds``, the next caller gets a ticket.
    A rate limit opens the breaker too. When the time of the limit is over, the breaker closes without a probe.

    ``on_change(old, new, reason)`` runs outside the lock, in the thread that caused the change.
    """

    failure_threshold: int = 5
    failure_rate: float = 0.5
    rate_calls: int = 20
    rate_seconds: float = 30.0
    open_seconds: float = 5.0
    max_open_seconds: float = 60.0
    probe_seconds: float = 30.0
    clock: Callable[[], float] = monotonic
    draw: Callable[[], float] = random.random
    on_change: Callable[[str, str, str], None] = lambda old, new, reason: None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = RecentCalls(self.rate_seconds)
        self._tickets = 0
        self._gate_until = self._until = self._succeeded = float("-inf")
        self._gate_reason = self._cause = ""
        self._in_a_row = self._failed_probes = self._probe = 0
        # True if failures opened the breaker. Then only a probe can close the breaker.
        self._tripped = False
        self.state: BreakerState = "closed"
        """The state after the last method call."""
        self.reason = ""
        """Why the breaker isn't closed: "5 failures in a row, then 1 failed probe" or "rate limited for 30 s"."""

    def allow(self) -> bool:
        """Return whether the caller may call now. The caller reports the result: success(), failure(), close_gate().

        Pages use this method. Probes use claim_probe().
        """
        # Without the lock: in the worst case, a caller reads an old state and makes one call too many.
        if self.state == "closed":
            return True
        if self.clock() < self._find_due():
            return False
        with self._lock:
            old = self.state
            new = old if self._tripped else self._settle(self.clock())
        self._announce(old, new, "the rate limit is over")
        return new == "closed"

    def claim_probe(self) -> int:
        """Return a ticket above 0 if the caller may make the probe now, otherwise 0.

        The caller reports the result of the probe with the ticket: success(), failure() or close_gate().
        """
        if not self._tripped or self.clock() < self._until:
            return 0
        with self._lock:
            now = self.clock()
            if not self._tripped or now < self._find_due():
                return 0
            old = self.state
            self._tickets += 1
            self._probe = ticket = self._tickets
            self._until = now + self.probe_seconds
            self.state = "half-open"
            reason = self.reason
        self._announce(old, "half-open", reason)
        return ticket

    def success(self, ticket: int = 0) -> None:
        """Report a response. If failures opened the breaker, only a report with the probe's ticket closes it."""
        if ticket or self.state != "closed":
            self._report(ticket)
            return
        # Most reports. Without these lines, a report takes 35 bytecodes more.
        with self._lock:
            self._succeeded = now = self.clock()
            self._in_a_row = 0
            self._calls.add(now, is_failure=False)

    def failure(self, ticket: int = 0, *, age: float = 0.0) -> None:
        """Report that no usable response arrived. See success().

        ``age``: how many seconds ago the call was over for its caller. If a call has succeeded since then, the breaker
        ignores the report: the caller has left, and the upstream works again.
        """
        self._report(ticket, is_failure=True, age=age)

    def close_gate(self, seconds: float, ticket: int = 0) -> None:
        """Report a rate limit (contract §1): no caller may call for ``seconds``, at most MAX_GATE_SECONDS.

        A rate limit also counts as a success, because the upstream responds.
        """
        self._report(ticket, gate=min(seconds, MAX_GATE_SECONDS))

    def hasten(self) -> bool:
        """Allow the next probe immediately. Return whether a probe is due."""
        with self._lock:
            is_due = self._tripped and not self._probe
            if is_due:
                self._until = self.clock()
        return is_due

    def _report(self, ticket: int, *, is_failure: bool = False, gate: float | None = None, age: float = 0.0) -> None:
        with self._lock:
            now, old = self.clock(), self.state
            if not is_failure:
                self._succeeded = now
            if gate is not None and now + gate > self._gate_until:
                self._gate_until = now + gate
                self._gate_reason = f"rate limited for {gate:.0f} s"
            if ticket and ticket == self._probe:
                if is_failure:
                    self._failed_probes += 1
                    self._trip(now)
                else:
                    self._recover(now)
            elif old == "closed" and (not is_failure or now - age >= self._succeeded):
                # Otherwise the breaker ignores a report without a ticket: the call began before the breaker opened.
                self._in_a_row = self._in_a_row + 1 if is_failure else 0
                self._calls.add(now, is_failure=is_failure)
                if is_failure and (cause := self._find_cause(now)):
                    self._cause = cause
                    self._trip(now)
            if gate is not None and not self._tripped:
                self._settle(now)
            new, reason = self.state, self.reason
        self._announce(old, new, reason or "the probe was answered")

    def _trip(self, now: float) -> None:
        """Open the breaker after a failure. Each failed probe doubles the time."""
        seconds = min(self.max_open_seconds, self.open_seconds * 2.0 ** min(self._failed_probes, 32))
        self._until = now + seconds * (1.0 - self.draw() / 2)
        self._probe = 0
        self._tripped = True
        self.state = "open"
        failed = self._failed_probes
        self.reason = self._cause + (f", then {failed} failed probe{'s' * (failed > 1)}" if failed else "")

    def _recover(self, now: float) -> None:
        """Reset the counters after a successful probe, because the upstream works again."""
        self._calls = RecentCalls(self.rate_seconds)
        self._in_a_row = self._failed_probes = self._probe = 0
        self._until = float("-inf")
        self._tripped = False
        self._settle(now)

    def _settle(self, now: float) -> BreakerState:
        """Set and return the state without failures: open during a rate limit, otherwise closed."""
        limited = now < self._gate_until
        self.state = "open" if limited else "closed"
        self.reason = self._gate_reason if limited else ""
        return self.state

    def _find_due(self) -> float:
        return max(self._until, self._gate_until)

    def _find_cause(self, now: float) -> str:
        """Return the reason to open the breaker, or ``""`` if too few calls failed."""
        if self._in_a_row >= self.failure_threshold:
            return f"{self._in_a_row} failure{'s' * (self._in_a_row > 1)} in a row"
        calls, failures = self._calls.total(now)
        share = failures / calls
        if calls >= self.rate_calls and share >= self.failure_rate:
            return f"{share * 100:.0f} % of {calls} calls failed"
        return ""

    def _announce(self, old: BreakerState, new: BreakerState, reason: str) -> None:
        if old != new:
            self.on_change(old, new, reason)


class PoolBusy(RuntimeError):
    """The pool didn't accept a call, because all its threads are busy."""


def start_thread(target: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread in an empty context and return the thread.

    Sentry gives a new thread the scope of the request that starts the thread. But a thread of this package works for
    many visitors. Without an empty context, their data would be in the error reports and traces of one visitor.
    """
    thread = threading.Thread(target=target, name=name, daemon=True)
    Context().run(thread.start)
    return thread


class WorkerPool:
    """A pool of at most ``max_workers`` daemon threads. A caller doesn't have to wait for a call that hangs.

    The pool starts a thread when a call needs one. A thread ends after ``idle_seconds`` without a call. A call that
    hangs keeps its thread busy, but the process can still exit.
    """

    def __init__(self, max_workers: int, *, name: str, idle_seconds: float = 30.0) -> None:
        self._max_workers = max_workers
        self._name = name
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._threads = 0
        self.in_flight = 0
        """How many accepted calls aren't over yet."""

    def submit(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn(*args, **kwargs)`` in a thread of the pool and return the future of the call.

        Raises PoolBusy immediately if ``max_workers`` calls are in flight, or if the system can't start a thread.
        Callbacks of the future run in the thread of the pool, so keep callbacks short.
        """
        with self._lock:
            if self.in_flight >= self._max_workers:
                raise PoolBusy(f"{self._name}: all {self._max_workers} workers are busy")
            self.in_flight += 1
            needs_thread = self._threads < self.in_flight
            self._threads += needs_thread
        if needs_thread:
            try:
                start_thread(self._work, self._name)
            except RuntimeError as error:
                with self._lock:
                    self.in_flight -= 1
                    self._threads -= 1
                raise PoolBusy(f"{self._name}: no thread could be started") from error
        future: Future[T] = Future()
        self._jobs.put((future, partial(fn, *args, **kwargs)))
        return future

    def offer(self, fn: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Run ``fn(*args, **kwargs)`` in the background and return True, or return False if all threads are busy."""
        try:
            self.submit(fn, *args, **kwargs)
        except PoolBusy:
            return False
        return True

    def _work(self) -> None:
        """Run jobs until no job has arrived for ``idle_seconds``."""
        while True:
            try:
                self._run(*self._jobs.get(timeout=self._idle_seconds))
            except queue.Empty:
                with self._lock:
                    # Otherwise submit() is about to add a job for this thread.
                    if self._threads > self.in_flight:
                        self._threads -= 1
                        return

    def _run(self, future: Future[Any], call: Callable[[], Any]) -> None:
        """Run one job and put the result or the error into the future."""
        result, error = None, None
        try:
            if future.set_running_or_notify_cancel():
                result = call()
        except BaseException as caught:
            error = caught
        # Before the future has a result, because the caller may then submit the next call immediately.
        with self._lock:
            self.in_flight -= 1
        try:
            if error is not None:
                future.set_exception(error)
            elif not future.cancelled():
                future.set_result(result)
        finally:
            # Avoids a reference cycle: future -> error -> traceback -> this frame -> future.
            del future, call, result, error

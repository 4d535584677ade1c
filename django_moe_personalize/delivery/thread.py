"""Deliver from a background thread of the process: nothing to install, nothing outlives the process.

Recording is a lock and an append. One daemon thread, started by the first event, sends batches;
what fails stays in memory, within bounds, and is sent again with the same UUID. Every process
delivers what it recorded itself: after a fork the child starts empty. When the process ends by
``sys.exit`` or by itself, as servers do on SIGTERM, what is left is sent within
``exit_timeout``. A process killed outright loses what it held: that is what an outbox is for.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from django.db import close_old_connections

from django_moe_personalize.client import get_client
from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.delivery.base import BaseDelivery, DeliveryCounts, logger
from django_moe_personalize.delivery.exits import close_before_sigterm
from django_moe_personalize.delivery.sending import Outcome, count_fitting, estimate_size
from django_moe_personalize.moengage.types import MAX_ELEMENTS, Event
from django_moe_personalize.resilience import MAX_GATE_SECONDS, Backoff, Deadline

SizedEvent = tuple[Event, int]

NO_THREADS = "uWSGI runs this process without threads, so that events are sent when it ends, at best"
THREADS_HINT = "Give uWSGI the option enable-threads (or threads), or choose another DELIVERY."

MAX_PAUSE_SECONDS = 3600.0
"""The longest pause after an authentication error."""


class ThreadDelivery(BaseDelivery):
    """Send events from a daemon thread, in batches, holding at most ``max_events`` or ``max_bytes`` of them.

    A batch leaves ``interval`` seconds after its first event, or when it has ``batch_size``
    events; it holds at most ``batch_size`` customers. A call may last ``timeout`` seconds. A
    failure is retried up to ``max_attempts`` times, after a full-jitter wait between nothing and
    ``backoff``, doubling to ``max_backoff``, or after the vendor's Retry-After. Wrong credentials
    pause everything for ``pause`` seconds, doubling.
    """

    def __init__(
        self,
        *,
        max_events: int = 10_000,
        max_bytes: int = 16 * 1024 * 1024,
        batch_size: int = MAX_ELEMENTS,
        interval: float = 1.0,
        timeout: float = 10.0,
        max_attempts: int = 20,
        backoff: float = 0.5,
        max_backoff: float = 60.0,
        pause: float = 60.0,
        exit_timeout: float = 2.0,
    ) -> None:
        if not 1 <= batch_size <= MAX_ELEMENTS:
            raise ValueError(f"batch_size must be from 1 to {MAX_ELEMENTS}, not {batch_size!r}")
        for name, value in (("max_events", max_events), ("max_bytes", max_bytes), ("max_attempts", max_attempts)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value!r}")
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._batch_size = batch_size
        self._interval = interval
        self._timeout = timeout
        self._max_attempts = max_attempts
        self._backoff = Backoff(backoff, max_backoff)
        self._pause = Backoff(pause, MAX_PAUSE_SECONDS, draw=lambda: 1.0)
        self._exit_timeout = exit_timeout
        super().__init__()
        atexit.register(self.close)
        close_before_sigterm(self.close)
        if runs_without_threads():
            logger.warning("%s. %s", NO_THREADS, THREADS_HINT)

    def after_fork(self) -> None:
        """Start with no events, no thread and a lock that nobody holds."""
        super().after_fork()
        # Reentrant: a signal handler may record while this thread is recording.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._queue: deque[SizedEvent] = deque()
        self._in_flight: list[SizedEvent] = []
        self._bytes = 0
        self._queued = 0
        self._settled = 0
        self._attempts: dict[str, int] = {}
        self._erased: set[str] = set()
        self._failures = 0
        self._paused = False
        self._full = False
        self._due = 0.0
        self._not_before = 0.0
        self._flushing = 0
        self._exit: Deadline | None = None
        self._thread: threading.Thread | None = None

    def take(self, events: Sequence[Event]) -> None:
        """Append the events to the queue; what would break a bound is dropped as ``overflow``."""
        sized = [(event, estimate_size(event)) for event in events]
        with self._lock:
            taken = self._append(sized) if self._exit is None else 0
            if self._thread is None:
                self._start()
        if taken < len(sized):
            self._drop_excess(len(sized) - taken)

    def _append(self, sized: list[SizedEvent]) -> int:
        queue = self._queue
        before = len(queue)
        room = self._max_events - before - len(self._in_flight)
        taken = 0
        for pair in sized[: max(0, room)]:
            if self._bytes + pair[1] > self._max_bytes:
                break
            queue.append(pair)
            self._bytes += pair[1]
            taken += 1
        self._queued += taken
        if before == 0:
            self._due = time.monotonic() + self._interval
        if before == 0 or before < self._batch_size <= len(queue):
            self._changed.notify_all()
        return taken

    def _drop_excess(self, count: int) -> None:
        reason = "overflow" if self._exit is None else "exit"
        if not self._full:
            self._full = True
            logger.error("No more events are taken over (%s): they are dropped until there is room", reason)
        self.drop(count, reason)

    async def arecord(self, events: Sequence[Event]) -> None:
        """See record(), which does not block."""
        if self._thread is None:
            # Made before a fork, it did not meet the server that runs this process.
            close_before_sigterm(self.close)
        self.record(events)

    def flush(self, timeout: float | None = None) -> DeliveryCounts:
        """Send what is pending now, within ``timeout`` seconds if given, and return the counts.

        Waits for retries too, so that without a timeout it may last as long as the vendor's
        outage; comes back at once while a pause for wrong credentials lasts.
        """
        self.enter_process()
        deadline = Deadline(timeout)
        with self._changed:
            self._flushing += 1
            try:
                self._wait(deadline)
            finally:
                self._flushing -= 1
        return self.counts()

    def erase(self, customer_id: str) -> int:
        """Drop the customer's events that are not on their way, and return how many; the others are tried once."""
        self.enter_process()
        with self._changed:
            if self._in_flight:
                self._erased.add(customer_id)
            gone = [pair for pair in self._queue if pair[0].customer_id == customer_id]
            self._queue = deque(pair for pair in self._queue if pair[0].customer_id != customer_id)
            self._bytes -= sum(size for _, size in gone)
            for event, _ in gone:
                self._attempts.pop(event.event_uuid, None)
            self._settled += len(gone)
            self._changed.notify_all()
        if gone:
            self.drop(len(gone), "erased")
        return len(gone)

    def close(self) -> None:
        """Send what is pending within ``exit_timeout`` seconds, drop the rest as ``exit``, stop the thread."""
        self.enter_process()
        atexit.unregister(self.close)
        with self._changed:
            if self._exit is not None:
                return
            self._exit = Deadline(self._exit_timeout)
            if not self._paused:
                self._not_before = 0.0
            self._wait(self._exit)
            left = len(self._queue) + len(self._in_flight)
            self._queue.clear()
            self._in_flight = []
            self._changed.notify_all()
        if left:
            logger.error("%d events were not delivered before the exit and are dropped", left)
            self.drop(left, "exit")

    def _wait(self, deadline: Deadline) -> None:
        """Wait until as many events are settled as are pending now, or no waiting helps."""
        if self._thread is None:
            self._start()
        target = self._queued
        self._changed.notify_all()
        while self._settled < target and self._thread and not self._paused and not deadline.expired:
            self._changed.wait(deadline.remaining())

    def _start(self) -> None:
        if not self._queue:
            return
        # A page that has an event has it already. The first batch may leave at the end of the process, which is no
        # time to import anything.
        with suppress(ConfigurationError):
            get_client()
        thread = threading.Thread(target=self._run, name="moe-personalize-delivery", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # No thread to be had now, or the interpreter is going down: the next event tries again.
            return
        self._thread = thread

    def _run(self) -> None:
        while batch := self._next_batch():
            self._finish(self.send(batch, timeout=self._timeout, until=self._exit))
            # The site's cache may be its database, whose connections no request of this thread closes: one
            # that has died would hide for ever who has withdrawn.
            with suppress(Exception):
                close_old_connections()

    def _next_batch(self) -> list[Event]:
        """Wait until a batch is due, put it in flight and return it; an empty one is the end."""
        with self._changed:
            while not self._queue or (wait := self._seconds_until_due()) > 0:
                if self._exit is not None and not self._queue:
                    return []
                self._changed.wait(wait if self._queue else None)
            number = count_fitting(self._queue, max_customers=self._batch_size)
            self._in_flight = [self._queue.popleft() for _ in range(number)]
            self._due = time.monotonic() + self._interval
            return [event for event, _ in self._in_flight]

    def _seconds_until_due(self) -> float:
        now = time.monotonic()
        at_once = self._flushing or self._exit is not None or len(self._queue) >= self._batch_size
        return max(now if at_once else self._due, self._not_before) - now

    def _finish(self, outcome: Outcome) -> None:
        """Put what may be sent again back into the queue, and enter the rest into the books."""
        with self._changed:
            batch, self._in_flight = self._in_flight, []
            if not batch:
                # The process is exiting and has counted these events as dropped already.
                return
            kept = [event for event in outcome.kept if event.customer_id not in self._erased]
            self._erased.clear()
            again, given_up = self._sort_kept(kept)
            for event, _ in batch:
                self._attempts.pop(event.event_uuid, None)
            self._attempts.update((event.event_uuid, attempts) for event, attempts in again)
            sized = [(event, estimate_size(event)) for event, _ in again]
            self._queue.extend(sized)
            self._bytes += sum(size for _, size in sized) - sum(size for _, size in batch)
            half_full = len(self._queue) * 2 > self._max_events or self._bytes * 2 > self._max_bytes
            self._full = self._full and half_full
            self._schedule(outcome)
        self.settle(outcome)
        for count, reason in ((len(outcome.kept) - len(kept), "erased"), (given_up, "attempts")):
            if count:
                self.drop(count, reason)
        with self._changed:
            self._settled += len(batch) - len(again)
            self._changed.notify_all()

    def _sort_kept(self, kept: list[Event]) -> tuple[list[tuple[Event, int]], int]:
        again: list[tuple[Event, int]] = []
        for event in kept:
            attempts = self._attempts.get(event.event_uuid, 0) + 1
            if attempts < self._max_attempts:
                again.append((event, attempts))
        return again, len(kept) - len(again)

    def _schedule(self, outcome: Outcome) -> None:
        """Set when the next attempt may be made."""
        if outcome.error is None or self._paused != outcome.needs_human:
            self._failures = 0
        self._paused = outcome.needs_human
        if outcome.error is None:
            self._not_before = 0.0
            return
        # Retries have waited their interval already.
        self._due = 0.0
        wait = (self._pause if self._paused else self._backoff).delay(self._failures)
        self._failures += 1
        self._not_before = time.monotonic() + max(wait, min(outcome.retry_after, MAX_GATE_SECONDS))


def runs_without_threads() -> bool:
    """Whether this process is one of uWSGI's in which only requests run, as is its default."""
    try:
        options = import_module("uwsgi").opt
    except ImportError:
        return False
    said = options.get("enable-threads", b"false")
    return "threads" not in options and said in (False, b"false", b"0", b"no", b"off")

"""Send events from a background thread of each process. This delivery needs no other service.

A page only appends its events to a list in memory, and wakes no thread: the daemon thread of the process looks for new
events by itself, builds their JSON, and sends batches. The first event of a process starts this thread. Failed events
stay in memory, within limits, and the thread sends them again with the same UUIDs. A process that ends normally, as
servers do on SIGTERM, first sends its remaining events. A killed process loses its events.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from django.db import close_old_connections

from django_moe_personalize.client import get_client, get_data_client
from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.delivery import exits
from django_moe_personalize.delivery.base import MAX_PAUSE_SECONDS, BaseDelivery, DeliveryCounts, in_own_runtime
from django_moe_personalize.delivery.sending import Outcome, count_fitting
from django_moe_personalize.delivery.twofold import TwofoldDelivery
from django_moe_personalize.log import Outage, logger
from django_moe_personalize.moengage.types import MAX_ELEMENTS, Event
from django_moe_personalize.resilience import MAX_GATE_SECONDS, Backoff, Deadline, monotonic, start_thread
from django_moe_personalize.runtime import get_runtime, is_ending

MAX_BUILT = 100
"""Events whose JSON is built before the limits of the memory are checked."""

MAX_RECORDED = 1000
"""Pages whose events may wait for the thread. The next page checks the limits of the memory itself."""


@dataclass(kw_only=True, eq=False, repr=False)
class ThreadDelivery(TwofoldDelivery):
    """Send events in batches from a daemon thread. Hold at most ``max_events`` events, and at most ``max_bytes``.

    The thread sends a batch every ``interval`` seconds, or as soon as ``batch_size`` pages have recorded events. A
    batch has at most ``batch_size`` customers. A call takes at most ``timeout`` seconds. An event has ``max_attempts``
    attempts. After a failure the thread waits for a random time of up to ``backoff`` seconds, then twice as long each
    time, up to ``max_backoff``, and at least for MoEngage's Retry-After. After wrong credentials it waits for ``pause``
    seconds, then twice as long each time, up to an hour.
    """

    max_events: int = 10_000
    max_bytes: int = 16 * 1024 * 1024
    batch_size: int = MAX_ELEMENTS
    interval: float = 1.0
    timeout: float = 10.0
    max_attempts: int = 20
    backoff: float = 0.5
    max_backoff: float = 60.0
    pause: float = 60.0
    exit_timeout: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= MAX_ELEMENTS:
            raise ValueError(f"batch_size must be from 1 to {MAX_ELEMENTS}, not {self.batch_size!r}")
        for name in ("max_events", "max_bytes", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)!r}")
        super().__init__()
        self._backoff = Backoff(self.backoff, self.max_backoff)
        self._pause = Backoff(self.pause, MAX_PAUSE_SECONDS, draw=lambda: 1.0)
        self._start_empty()
        exits.close_at_exit(self)
        if exits.runs_without_threads():
            logger.warning("%s. %s", exits.NO_THREADS, exits.THREADS_HINT)

    def _start_empty(self) -> None:
        # Reentrant: a signal handler may interrupt a thread that holds the lock, and record an event there.
        self._changed = threading.Condition(threading.RLock())
        # The events of pages, until the thread or a method of this object moves them to the queue.
        self._recorded: deque[Sequence[Event]] = deque()
        # Whether the next page must call _wake(), and the number of pages from which on a page must call it.
        self._is_resting, self._wake_at = True, self.batch_size
        self._queue, self._in_flight = deque[Event](), list[Event]()
        # The bytes in the queue, and the events beyond a limit that aren't counted yet.
        self._bytes = self._lost = 0
        # How many events ever entered the queue, and how many left it for good: flush() compares these numbers.
        self._queued = self._settled = 0
        self._attempts: dict[str, int] = {}
        self._erased: set[str] = set()
        self._failures = self._flushing = 0
        self._is_paused = self._has_dropped = False
        self._overflow = Outage("Events don't fit into the memory", "Events fit into the memory again", part="memory")
        self._due = self._not_before = 0.0
        self._exit = Deadline(self.exit_timeout) if is_ending() else None
        self._thread: threading.Thread | None = None
        self.second = None

    def start_in_child(self) -> None:
        """Forget the events, the counters and the client of the parent process, whose thread doesn't run in a child."""
        BaseDelivery.__init__(self)
        self._start_empty()
        self.runtime = self.runtime and get_runtime(self.runtime.name)  # The same workspace, but in this process.

    def record(self, events: Sequence[Event]) -> None:
        """Accept events for delivery. Never raises, and never blocks longer than another page's call of this method."""
        # deque.append() is atomic. A lock and a notification would cost each page 200 bytecodes and thread switches.
        self._recorded.append(events)
        if self._is_resting or len(self._recorded) >= self._wake_at:
            self._wake()

    def build_second(self) -> BaseDelivery:
        """Return a delivery with the same options, for conversions."""
        return replace(self)

    def _wake(self) -> None:
        """Start or wake the thread. At the exit, send the events in the caller's thread."""
        last: list[Event] = []
        with self._changed:
            if self._exit is not None:
                last = [event for events in self._empty_recorded() for event in events]
            elif self._is_resting or len(self._recorded) >= MAX_RECORDED:
                if not self._queue:
                    self._due = monotonic() + self.interval
                self._admit()
                if self._thread is None:
                    self._start()
                self._is_resting = self._thread is None
            self._wake_at = MAX_RECORDED
            self._changed.notify_all()
        if last and self._exit is not None:
            self._count("accepted", len(last))
            self._send_last(last, self._exit)
        self._report_overflow()

    def _empty_recorded(self) -> Iterator[Sequence[Event]]:
        while self._recorded:
            yield self._recorded.popleft()

    @in_own_runtime
    def _admit(self) -> None:
        """Move the recorded events into the queue, except those beyond a limit. Needs the lock."""
        built: list[Event] = []
        sizes: list[int] = []
        try:
            for events in self._empty_recorded():
                number = 0
                try:
                    number = len(events)
                    # This builds the JSON of the events.
                    sizes += [event.size for event in events]
                    built += events
                except Exception as error:
                    self._count("accepted", number)
                    self.report_breakdown(error, number)
                if len(built) >= MAX_BUILT:
                    self._append(built, sizes)
                    built, sizes = [], []
        finally:
            # Also after Ctrl-C in a thread of the site.
            self._append(built, sizes)
        room = self.batch_size - len(self._queue)
        # A full queue waits for a retry: there is nothing to wake the thread for.
        self._wake_at = room if room > 0 else MAX_RECORDED

    def _report_overflow(self) -> None:
        """Count the events beyond a limit as dropped. Without the lock, because a receiver of the signal may block."""
        with self._changed:
            lost, self._lost = self._lost, 0
        if lost:
            advice = "Until half of them have left, further events may be dropped. Raise max_events or max_bytes."
            self._overflow.fail(f"{self.max_events} events or {self.max_bytes} bytes wait", advice, count=lost)
            self.count_dropped(lost, "overflow")

    def _send_last(self, events: Sequence[Event], until: Deadline) -> None:
        """Send events that are recorded after close(), in the caller's thread. Python may start no thread any more."""
        outcome = Outcome(kept=list(events))
        if not until.expired and not self._is_paused:
            outcome = self.send(events, timeout=self.timeout, until=until)
        self.count_outcome(outcome)
        self._drop_at_exit(len(outcome.kept))

    def _drop_at_exit(self, count: int) -> None:
        if count and not self._has_dropped:
            self._has_dropped = True
            fields = {"moe_event": "events_dropped", "moe_count": count}
            logger.error("Dropped %d events: MoEngage didn't accept them before the process ended", count, extra=fields)
        self.count_dropped(count, "exit")

    def _append(self, events: list[Event], sizes: list[int]) -> None:
        """Accept events, and add those for which there is room."""
        self._count("accepted", len(events))
        room, total, accepted = self.max_events - len(self._queue) - len(self._in_flight), sum(sizes), len(events)
        if accepted > room or self._bytes + total > self.max_bytes:
            total, fitting = 0, list[Event]()
            for event, size in zip(events, sizes, strict=False):
                if len(fitting) < room and self._bytes + total + size <= self.max_bytes:
                    fitting.append(event)
                    total += size
            events = fitting
        self._queue.extend(events)
        self._bytes += total
        self._queued += len(events)
        self._lost += accepted - len(events)

    async def arecord(self, events: Sequence[Event]) -> None:
        """See record(), which doesn't block."""
        self.record(events)

    def flush(self, timeout: float | None = None) -> DeliveryCounts:
        """Send the events that are pending now, for at most ``timeout`` seconds if given, and return the counters.

        Waits for retries too: without a timeout, as long as MoEngage is down. Returns immediately during a pause after
        wrong credentials.
        """
        deadline = Deadline(timeout)
        with self._changed:
            self._flushing += 1
            try:
                self._wait(deadline)
            finally:
                self._flushing -= 1
        if self.second is not None:
            self.second.flush(deadline.remaining())
        return self.counts()

    def counts(self) -> DeliveryCounts:
        """Return the counters of this process."""
        with self._changed:
            self._admit()
        self._report_overflow()
        return super().counts()

    def find_oldest(self) -> float | None:
        """See BaseDelivery.find_oldest()."""
        with self._changed:
            times = [super().find_oldest(), *(event.event_time for event in (*self._in_flight, *self._queue))]
        return min([at for at in times if at is not None], default=None)

    def erase(self, customer_id: str) -> int:
        """Drop the customer's events in the queue and return their number. Events in flight get no other attempt."""
        with self._changed:
            self._admit()
            if self._in_flight:
                self._erased.add(customer_id)
            gone = [event for event in self._queue if event.customer_id == customer_id]
            self._queue = deque(event for event in self._queue if event.customer_id != customer_id)
            self._bytes -= sum(event.size for event in gone)
            for event in gone:
                self._attempts.pop(event.event_uuid, None)
            self._settled += len(gone)
            self._changed.notify_all()
        self.count_dropped(len(gone), "erased")
        return len(gone) + super().erase(customer_id)

    @in_own_runtime
    def close(self) -> None:
        """Send pending events within ``exit_timeout`` seconds, drop the rest as ``exit``, stop the thread.

        A second call waits for the first call. The caller's thread sends later events, within the same time.
        """
        try:
            self._finish_queue(self.start_closing())
        finally:
            # Also after a second Ctrl-C.
            with self._changed:
                left = len(self._queue) + len(self._in_flight)
                self._queue.clear()
                self._in_flight = []
                self._changed.notify_all()
            self._drop_at_exit(left)
        super().close()

    def start_closing(self) -> Deadline:
        """Let the thread send the pending events now. Return the time of close(), which begins with the first call."""
        with self._changed:
            if self._exit is None:
                self._exit, self._is_resting = Deadline(self.exit_timeout), True
                if not self._is_paused:
                    self._not_before = 0.0
                self._changed.notify_all()
            return self._exit

    def _finish_queue(self, until: Deadline) -> None:
        with self._changed:
            self._wait(until)
            needs_thread = self._thread is None and not self._is_paused
        if needs_thread:
            # Python is ending and starts no thread, so this thread sends the events.
            self._run()

    def _wait(self, deadline: Deadline) -> None:
        """Wait until the events that are pending now are delivered or dropped. Return early if no event can leave."""
        self._admit()
        if self._thread is None:
            self._start()
        target = self._queued
        self._changed.notify_all()
        while self._settled < target and self._thread and not self._is_paused and not deadline.expired:
            self._changed.wait(deadline.remaining())

    def _start(self) -> None:
        if not self._queue:
            return
        # Build the client now: its modules can't be imported in the thread while Python shuts down.
        with suppress(ConfigurationError):
            (get_data_client if self._queue[0].is_conversion else get_client)(self.runtime)
        # The system may have no thread left, or the interpreter is shutting down. Then the next event tries again.
        with suppress(RuntimeError):
            exits.start_lookup_thread()
            self._thread = start_thread(self._run, "moe-personalize-delivery")

    @in_own_runtime
    def _run(self) -> None:
        while batch := self._next_batch():
            self._report_overflow()
            self._finish(self.send(batch, timeout=self.timeout, until=self._exit))
            # If the site's cache is its database, a dead connection would hide withdrawals of consent.
            with suppress(Exception):
                close_old_connections()
        # The runtime may have closed its client already, and then this thread has opened a new connection.
        for found in filter(None, (get_client.find(self.runtime), get_data_client.find(self.runtime))):
            found.close()

    def _next_batch(self) -> list[Event]:
        """Wait until a batch is due, put the batch in flight and return it. An empty batch ends the thread."""
        with self._changed:
            while True:
                self._admit()
                left = None if self._exit is None else self._exit.remaining()
                if left is not None and not (self._queue and left):
                    return []
                wait = self._seconds_until_due()
                if self._queue and wait <= 0:
                    break
                if wait <= 0:
                    # No page recorded an event for a whole interval. From now on, the next page wakes this thread.
                    self._is_resting = True
                    if self._recorded:
                        continue
                waits = [seconds for seconds in (left, wait if wait > 0 else None) if seconds is not None]
                self._changed.wait(min(waits, default=None))
            number = count_fitting(self._queue, max_customers=self.batch_size)
            self._in_flight = [self._queue.popleft() for _ in range(number)]
            self._due = monotonic() + self.interval
            return list(self._in_flight)

    def _seconds_until_due(self) -> float:
        now = monotonic()
        at_once = self._queue and (self._flushing or self._exit or len(self._queue) >= self.batch_size)
        return max(now if at_once else self._due, self._not_before) - now

    def _finish(self, outcome: Outcome) -> None:
        """Put the events with attempts left back into the queue, and count all other events of the batch."""
        with self._changed:
            batch, self._in_flight = self._in_flight, []
            if not batch:
                # close() has dropped and counted these events.
                return
            kept = [event for event in outcome.kept if event.customer_id not in self._erased]
            self._erased.clear()
            again = self._put_back(batch, kept)
            self._schedule(outcome)
        self.count_outcome(outcome)
        self.count_dropped(len(outcome.kept) - len(kept), "erased")
        self.count_dropped(len(kept) - again, "attempts")
        with self._changed:
            self._settled += len(batch) - again
            self._changed.notify_all()

    def _put_back(self, batch: list[Event], kept: list[Event]) -> int:
        """Put the ``kept`` events with attempts left back into the queue, and return their number."""
        attempts = {event.event_uuid: self._attempts.get(event.event_uuid, 0) + 1 for event in kept}
        again = [event for event in kept if attempts[event.event_uuid] < self.max_attempts]
        for event in batch if self._attempts else ():
            self._attempts.pop(event.event_uuid, None)
        self._attempts.update((event.event_uuid, attempts[event.event_uuid]) for event in again)
        self._queue.extend(again)
        self._bytes += sum([event.size for event in again]) - sum([event.size for event in batch])
        if len(self._queue) * 2 <= self.max_events and self._bytes * 2 <= self.max_bytes:
            self._overflow.end()
        return len(again)

    def _schedule(self, outcome: Outcome) -> None:
        """Decide when the next attempt may start."""
        if outcome.failure is None or self._is_paused != outcome.wrong_credentials:
            self._failures = 0
        self._is_paused = outcome.wrong_credentials
        if outcome.failure is None:
            self._not_before = 0.0
            return
        # A retry waits for the backoff, and doesn't wait for the interval.
        self._due = 0.0
        wait = (self._pause if self._is_paused else self._backoff).delay(self._failures)
        self._failures += 1
        self._not_before = monotonic() + max(wait, min(outcome.retry_after, MAX_GATE_SECONDS))

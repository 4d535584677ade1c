"""Keep events in an outbox in the site's database. No killed process loses a recorded event.

A page records its events with one INSERT. Deliverers send the events, in as many processes as you like: ``manage.py
moe_deliver``, or the task ``deliver_outbox`` (see ``django_moe_personalize.tasks``). A deliverer leases a batch of
events, sends the batch outside any transaction, and stores the results. If a deliverer is killed, its lease runs out.
Then another deliverer sends the events again with the same UUIDs, so MoEngage counts them once (contract §4).
"""

from __future__ import annotations

import math
import queue
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from django.db import DatabaseError, InterfaceError, connections

from django_moe_personalize.delivery.base import MAX_PAUSE_SECONDS, BaseDelivery, DeliveryCounts, describe
from django_moe_personalize.delivery.outbox import DELIVERED, ERASED, LeasedRow, Outbox, Settlement, State
from django_moe_personalize.delivery.sending import Outcome, has_wrong_credentials, read_retry_after
from django_moe_personalize.exceptions import ResponseError
from django_moe_personalize.log import Outage
from django_moe_personalize.moengage.types import MAX_ELEMENTS, Event
from django_moe_personalize.resilience import MAX_GATE_SECONDS, Backoff, Deadline, monotonic
from django_moe_personalize.runtime import Runtime

DATABASE_ERRORS = (DatabaseError, InterfaceError)

SENDING_SHARE = 0.75
"""The share of a lease in which the deliverer sends the batch. The rest allows for different clocks of machines."""

PATIENCE = 5
"""After this number of failures in a row, drain() ends."""

PURGE_SECONDS = 3600.0
"""The time after which a process again deletes old parked events."""


@dataclass(kw_only=True, eq=False, repr=False)
class DatabaseDelivery(BaseDelivery):
    """Keep events in the database ``using`` until a deliverer has sent them. By default the router chooses it.

    A deliverer leases up to ``batch_size`` events for ``lease`` seconds. A call takes at most ``timeout`` seconds. A
    failed event waits for a random time of up to ``backoff`` seconds, then twice as long each time, up to
    ``max_backoff``, and at least for MoEngage's Retry-After. After ``max_attempts`` failures, if given, the event is
    parked. Parked events are deleted after ``retention`` seconds. After wrong credentials a deliverer waits for
    ``pause`` seconds, then twice as long each time, up to an hour.
    """

    checks_withdrawal = False  # erase() finds every event in the table.
    uses_database = True

    using: str | None = None
    batch_size: int = MAX_ELEMENTS
    lease: float = 60.0
    timeout: float = 10.0
    max_attempts: int | None = None
    backoff: float = 1.0
    max_backoff: float = 300.0
    pause: float = 60.0
    retention: float = 30 * 24 * 60 * 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= MAX_ELEMENTS:
            raise ValueError(f"batch_size must be from 1 to {MAX_ELEMENTS}, not {self.batch_size!r}")
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, or None for no limit, not {self.max_attempts!r}")
        if self.lease < 1.0:
            raise ValueError(f"lease must be at least 1 second, not {self.lease!r}")
        if self.using is not None and self.using not in connections.settings:
            raise ValueError(f"using must be one of {', '.join(connections.settings)}, not {self.using!r}")
        super().__init__()
        self.outbox = Outbox(self.using)
        self.waits = Backoff(self.backoff, self.max_backoff)
        self._pause = Backoff(self.pause, MAX_PAUSE_SECONDS, draw=lambda: 1.0)
        self._pauses = 0
        self._resume_at = 0.0
        self._purge_at = 0.0
        # Failures of the Data API in a row, and the time from which on this process leases conversions again.
        self._data_failures = 0
        self._data_at = 0.0
        failing, working = "The deliverer can't use the outbox", "The deliverer can use the outbox again"
        self._database_outage = Outage(failing, working, part="outbox")

    def bind(self, runtime: Runtime) -> None:
        """See BaseDelivery.bind()."""
        super().bind(runtime)
        self.outbox.workspace = runtime.name

    def take(self, events: Sequence[Event]) -> None:
        """Add the events to the outbox with one INSERT. A rollback of the caller's transaction removes them again."""
        self.outbox.insert(events)
        if connections[self.outbox.alias].in_atomic_block:
            # Record losses outside the caller's transaction: a rollback would lose the count.
            return
        with self._counts_lock:
            lost = self._counts.pop("error", 0)
        if lost:
            try:
                self.outbox.add_loss(lost, "error")
            except Exception:
                # The new events are stored. Don't drop them because the counter failed.
                self._count("error", lost)

    def counts(self) -> DeliveryCounts:
        """Return the counters in the outbox, plus the losses that this process hasn't added to the outbox yet."""
        dropped = self.outbox.count()
        dropped["error"] += self._counts["error"]
        delivered, pending = dropped.pop(DELIVERED, 0), dropped.pop(State.PENDING, 0)
        return DeliveryCounts(delivered + pending + dropped.total(), delivered, dict(+dropped), pending)

    def find_oldest(self) -> float | None:
        """See BaseDelivery.find_oldest()."""
        oldest = self.outbox.find_oldest()
        return None if oldest is None else oldest.timestamp()

    def flush(self, timeout: float | None = None) -> DeliveryCounts:
        """Send the due events of all processes, for at most ``timeout`` seconds if given, and return the counters.

        Ends early after several failures in a row. Raises RuntimeError inside a transaction.
        """
        Deliverer(self).drain(deadline=Deadline(timeout))
        return self.counts()

    def erase(self, customer_id: str) -> int:
        """Delete the customer's events, parked ones too, and return their number. See BaseDelivery.erase()."""
        count = self.outbox.erase(customer_id)
        self.count_dropped(count, ERASED)
        return count

    @property
    def pause_left(self) -> float:
        """The seconds for which wrong credentials still pause the deliverers of this process."""
        return max(0.0, self._resume_at - monotonic())

    def deliver_batch(self) -> Outcome | None:
        """Lease due events, send them, and store the results. Return ``None`` if no event was due.

        Raises the database's error. Then the leased events are due again when the lease has run out.
        """
        until = Deadline(self.lease * SENDING_SHARE)
        lease = self.outbox.lease(self.batch_size, self.lease, conversions=monotonic() >= self._data_at)
        self._database_outage.end()
        if not lease.rows:
            self._purge()
            return None
        settlement = Settlement()
        rows = {}
        events = []
        for row in lease.rows:
            try:
                events.append(event := Event.read(row.body))
                rows[event.event_uuid] = row
            except (LookupError, TypeError, ValueError):
                settlement.parked[row.pk] = State.REFUSED, "The row contains no event."
        outcome = self.send(events, timeout=self.timeout, until=until)
        self._decide(outcome, rows, settlement)
        for result, count in self.outbox.settle(lease, settlement).items():
            if result == DELIVERED:
                self.count_delivered(count)
            else:
                self.count_dropped(count, State(result).value)
        self._schedule_pause(outcome)
        return outcome

    def _decide(self, outcome: Outcome, rows: dict[str, LeasedRow], settlement: Settlement) -> None:
        """Decide for each row whether it is delivered, parked, or due again, and when."""
        settlement.delivered = [rows[event.event_uuid].pk for event in outcome.delivered]
        for event, refusal in outcome.refused:
            # MoEngage's description may quote the customer's id.
            said = refusal.description if isinstance(refusal, ResponseError) else ""
            said = re.sub(rf"(?<!\w){re.escape(event.customer_id)}(?!\w)", "...", said)
            settlement.parked[rows[event.event_uuid].pk] = State.REFUSED, f"{describe(refusal)} {said}".rstrip()
        # Wrong credentials aren't the events' fault. So no attempt is counted, and the events are due immediately.
        settlement.counts_as_attempt = not outcome.wrong_credentials
        for event in outcome.kept:
            row, error = rows[event.event_uuid], outcome.find_error(event)
            if error is None or has_wrong_credentials(error):
                settlement.released[row.pk] = 0.0
            elif self.max_attempts is not None and row.attempts + 1 >= self.max_attempts:
                settlement.parked[row.pk] = State.ATTEMPTS, describe(error)
            else:
                wait = min(read_retry_after(error), MAX_GATE_SECONDS)
                settlement.released[row.pk] = max(wait, self.waits.delay(row.attempts))

    def _purge(self) -> None:
        if monotonic() >= self._purge_at:
            self.outbox.purge(self.retention)
            self._purge_at = monotonic() + PURGE_SECONDS

    def drop_connection(self, error: Exception) -> None:
        """Log a database's error, and close this thread's connection: the next query opens a new connection."""
        self._database_outage.fail(
            type(error).__name__, "Events wait. Check the database, and run `manage.py migrate`."
        )
        connections[self.outbox.alias].close()

    def find_data_wait(self, outcome: Outcome, patience: float) -> float:
        """Return the seconds after which to send conversions again, or 0.0 to leave them to the next run."""
        if outcome.wrong_credentials or self._data_failures >= patience or patience == math.inf:
            return 0.0
        return max(0.0, self._data_at - monotonic())

    def _schedule_pause(self, outcome: Outcome) -> None:
        if (error := outcome.data_error) is not None:
            waits = self._pause if has_wrong_credentials(error) else self.waits
            wait = max(waits.delay(self._data_failures), min(read_retry_after(error), MAX_GATE_SECONDS))
            self._data_failures, self._data_at = self._data_failures + 1, monotonic() + wait
        elif any(event.is_conversion for event in outcome.delivered):
            self._data_failures = 0
        if has_wrong_credentials(outcome.error):
            self._resume_at = monotonic() + self._pause.delay(self._pauses)
            self._pauses += 1
        else:
            self._resume_at, self._pauses = 0.0, 0


class Deliverer:
    """Send the events in the outbox, in one process. ``on_batch`` gets the outcome of each batch."""

    def __init__(
        self, delivery: DatabaseDelivery, *, on_batch: Callable[[Outcome], None] = lambda outcome: None
    ) -> None:
        self._delivery = delivery
        self._on_batch = on_batch
        # Not a threading.Event: a signal handler can't set an Event if the interrupted thread holds its lock.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopped = False

    def stop(self) -> None:
        """End after the current batch. May be called from another thread or a signal handler."""
        self._stopped = True
        self._wake.put(None)

    def drain(self, *, deadline: Deadline | None = None, patience: float = PATIENCE) -> Outcome | None:
        """Send batches until no event is due, or until ``deadline``. Raises the database's error.

        Wrong credentials end it early, and so do ``patience`` failures in a row. Then return the last outcome.
        """
        failures = 0
        stopped: Outcome | None = None
        while not self._stopped and not (deadline and deadline.expired):
            outcome = self._delivery.deliver_batch()
            if outcome is None:
                if stopped is None or not (wait := self._delivery.find_data_wait(stopped, patience)):
                    return stopped
                self._wait(wait, deadline)
                continue
            self._on_batch(outcome)
            stopped = outcome if outcome.data_error else stopped
            failures = failures + 1 if outcome.error else 0
            if has_wrong_credentials(outcome.error) or failures >= patience:
                return outcome
            if failures:
                asked = min(outcome.retry_after, MAX_GATE_SECONDS)
                self._wait(max(asked, self._delivery.waits.delay(failures - 1)), deadline)
        return None

    def watch(self, interval: float) -> None:
        """Drain the outbox every ``interval`` seconds, until stop() is called. Continue after all failures."""
        failures = 0
        while not self._stopped:
            wait = interval
            try:
                self.drain(patience=math.inf)
            except DATABASE_ERRORS as error:
                self._delivery.drop_connection(error)
                wait += self._delivery.waits.delay(failures)
                failures += 1
            else:
                failures = 0
            self._wait(self._delivery.pause_left or wait)

    def _wait(self, seconds: float, deadline: Deadline | None = None) -> None:
        left = deadline.remaining() if deadline else None
        with suppress(queue.Empty):
            self._wake.get(timeout=seconds if left is None else min(seconds, left))

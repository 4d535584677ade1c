"""Deliver from an outbox in the site's database: an event that was recorded outlives every process.

Recording is one INSERT. ``manage.py moe_deliver`` sends what is there, from as many processes as
wanted: each leases a batch, sends it outside any transaction, and settles it. A process killed in
between leaves its lease to run out, and its events are sent again with the same UUID, by which
MoEngage knows them (contract §4).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence

from django.db import connections

from django_moe_personalize.delivery.base import BaseDelivery, DeliveryCounts, describe, find_delivery
from django_moe_personalize.delivery.deliverer import Deliverer
from django_moe_personalize.delivery.outbox import DELIVERED, ERASED, Lease, LeasedRow, Outbox, Settlement, State
from django_moe_personalize.delivery.sending import Outcome
from django_moe_personalize.exceptions import ResponseError
from django_moe_personalize.moengage.types import MAX_ELEMENTS, Event
from django_moe_personalize.resilience import MAX_GATE_SECONDS, Backoff, Deadline

DAY = 24 * 60 * 60.0
MAX_PAUSE_SECONDS = 3600.0
"""The longest pause after an authentication error."""

SENDING_SHARE = 0.75
"""Of a lease, so that no call lasts beyond it where the clocks of two machines differ."""

_NOT_READABLE = "The row holds no event."


class DatabaseDelivery(BaseDelivery):
    """Keep events in the database ``using``, by default the router's, until ``moe_deliver`` has sent them.

    A deliverer takes up to ``batch_size`` events at a time, for ``lease`` seconds; a call may last
    ``timeout`` seconds. A failure is retried after a full-jitter wait between nothing and
    ``backoff``, doubling to ``max_backoff``, or after the vendor's Retry-After; after
    ``max_attempts`` failures, if given, an event is parked. Wrong credentials pause a deliverer for
    ``pause`` seconds, doubling. Parked events are kept for ``retention`` seconds.
    """

    # Every event is here, for erase() to find.
    asks_again = False
    uses_database = True

    def __init__(
        self,
        *,
        using: str | None = None,
        batch_size: int = MAX_ELEMENTS,
        lease: float = 60.0,
        timeout: float = 10.0,
        max_attempts: int | None = None,
        backoff: float = 1.0,
        max_backoff: float = 300.0,
        pause: float = 60.0,
        retention: float = 30 * DAY,
    ) -> None:
        if not 1 <= batch_size <= MAX_ELEMENTS:
            raise ValueError(f"batch_size must be from 1 to {MAX_ELEMENTS}, not {batch_size!r}")
        if max_attempts is not None and max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, or None for no limit, not {max_attempts!r}")
        if lease < 1.0:
            raise ValueError(f"lease must be at least 1 second, not {lease!r}")
        if using is not None and using not in connections.settings:
            raise ValueError(f"using must be one of {', '.join(connections.settings)}, not {using!r}")
        self.outbox = Outbox(using)
        self.backoff = Backoff(backoff, max_backoff)
        self.pause = Backoff(pause, MAX_PAUSE_SECONDS, draw=lambda: 1.0)
        self.retention = retention
        self._batch_size = batch_size
        self._lease = lease
        self._timeout = timeout
        self._max_attempts = max_attempts
        super().__init__()

    def after_fork(self) -> None:
        """Start with no losses of its own; the outbox is everybody's."""
        super().after_fork()
        self._lock = threading.Lock()
        self._lost = 0

    def take(self, events: Sequence[Event]) -> None:
        """Add the events to the outbox, with one INSERT; in a transaction of the caller they share its fate."""
        self.outbox.insert(events)
        if connections[self.outbox.alias].in_atomic_block:
            # Losses are no part of the caller's transaction, whose failure would undo that they were entered.
            return
        with self._lock:
            lost, self._lost = self._lost, 0
        if lost:
            self._enter_loss(lost)

    def drop(self, count: int, reason: str) -> None:
        """Enter events as dropped and send the signal; what the database did not take it learns later."""
        super().drop(count, reason)
        if reason == "error":
            with self._lock:
                self._lost += count

    def _enter_loss(self, count: int) -> None:
        try:
            self.outbox.enter_loss(count, "error")
        except Exception:
            # These events are stored, and must not be dropped for the sake of the books.
            with self._lock:
                self._lost += count

    def counts(self) -> DeliveryCounts:
        """Return the counts of all processes that share the outbox, with this one's losses not yet entered there."""
        self.enter_process()
        dropped = self.outbox.count()
        dropped["error"] += self._lost
        delivered, pending = dropped.pop(DELIVERED, 0), dropped.pop(State.PENDING, 0)
        return DeliveryCounts(delivered + pending + dropped.total(), delivered, dict(+dropped), pending)

    def flush(self, timeout: float | None = None) -> DeliveryCounts:
        """Send what is due, whoever recorded it, within ``timeout`` seconds if given, and return the counts.

        Gives up when several attempts in a row fail. Raises RuntimeError inside a transaction.
        """
        Deliverer(self).drain(deadline=Deadline(timeout))
        return self.counts()

    def erase(self, customer_id: str) -> int:
        """Delete the customer's events, parked ones too, and return how many. See BaseDelivery.erase()."""
        count = self.outbox.erase(customer_id)
        if count:
            self.drop(count, ERASED)
        return count

    def deliver_batch(self) -> Outcome | None:
        """Lease what is due, send it and settle it; ``None`` when nothing was due.

        Raises a database's error; what was leased is then due again when the lease has run out.
        """
        until = Deadline(self._lease * SENDING_SHARE)
        lease = self.outbox.lease(self._batch_size, self._lease)
        if not lease.rows:
            return None
        settlement = Settlement()
        rows = {}
        events = []
        for row in lease.rows:
            try:
                event = Event.read(row.body)
            except (LookupError, TypeError, ValueError):
                settlement.parked[row.pk] = State.REFUSED, _NOT_READABLE
            else:
                events.append(event)
                rows[event.event_uuid] = row
        outcome = self.send(events, timeout=self._timeout, until=until)
        self._judge(outcome, rows, settlement)
        self._announce(lease, settlement)
        return outcome

    def _judge(self, outcome: Outcome, rows: dict[str, LeasedRow], settlement: Settlement) -> None:
        """Say what is to become of each row."""
        settlement.delivered = [rows[event.event_uuid].pk for event in outcome.delivered]
        for event, error in outcome.refused:
            settlement.parked[rows[event.event_uuid].pk] = State.REFUSED, _explain(error, event)
        # Nobody's fault but the settings': the events wait for no longer than these do.
        settlement.counts_as_attempt = not outcome.needs_human
        wait = min(outcome.retry_after, MAX_GATE_SECONDS)
        for row in (rows[event.event_uuid] for event in outcome.kept):
            if outcome.error is None or outcome.needs_human:
                settlement.released[row.pk] = 0.0
            elif self._max_attempts is not None and row.attempts + 1 >= self._max_attempts:
                settlement.parked[row.pk] = State.ATTEMPTS, describe(outcome.error)
            else:
                settlement.released[row.pk] = max(wait, self.backoff.delay(row.attempts))

    def _announce(self, lease: Lease, settlement: Settlement) -> None:
        """Settle, and tell the signals' receivers what was really settled by this deliverer."""
        for outcome, count in self.outbox.settle(lease, settlement).items():
            if outcome == DELIVERED:
                self.deliver(count)
            else:
                self.drop(count, State(outcome).value)


def find_outbox_delivery() -> DatabaseDelivery | None:
    """Return the site's delivery if it has an outbox, or a queue's for what its broker does not take."""
    return find_delivery(DatabaseDelivery)


def _explain(error: Exception, event: Event) -> str:
    """Say why an event was refused, in the vendor's words where there are some, without whose it was."""
    said = error.description if isinstance(error, ResponseError) else ""
    whole_word = rf"(?<!\w){re.escape(event.customer_id)}(?!\w)"
    return f"{describe(error)} {re.sub(whole_word, '...', said)}".rstrip()

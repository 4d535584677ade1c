"""Send what is in the outbox, batch after batch, at the pace that MoEngage and the database allow."""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from django.db import DatabaseError, InterfaceError, connections

from django_moe_personalize.delivery.base import logger
from django_moe_personalize.delivery.sending import Outcome
from django_moe_personalize.resilience import MAX_GATE_SECONDS, Deadline

if TYPE_CHECKING:
    from django_moe_personalize.delivery.database import DatabaseDelivery

PATIENCE = 5
"""Failures in a row after which who drains the outbox once leaves MoEngage alone."""

PURGE_SECONDS = 3600.0
"""How often parked events that are too old are looked for."""


class Deliverer:
    """One process's work on the outbox. ``on_batch`` is told the outcome of each batch."""

    def __init__(
        self, delivery: DatabaseDelivery, *, on_batch: Callable[[Outcome], None] = lambda outcome: None
    ) -> None:
        self._delivery = delivery
        self._on_batch = on_batch
        # What a signal handler may do to an Event, its owner may be doing already; this queue bears it.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopped = False
        self._purge_at = 0.0

    def stop(self) -> None:
        """End after the batch in hand; may be called from another thread or a signal handler."""
        self._stopped = True
        self._wake.put(None)

    def drain(self, *, deadline: Deadline | None = None, patience: float = PATIENCE) -> Outcome | None:
        """Send until nothing is due; return the outcome that ended it before, if one did.

        Wrong credentials end it, and ``patience`` failures in a row. Raises a database's error.
        """
        failures = 0
        while not self._stopped and not (deadline and deadline.expired):
            outcome = self._delivery.deliver_batch()
            if outcome is None:
                self._purge()
                return None
            self._on_batch(outcome)
            failures = failures + 1 if outcome.error else 0
            if outcome.needs_human or failures >= patience:
                return outcome
            if failures:
                asked = min(outcome.retry_after, MAX_GATE_SECONDS)
                self._wait(max(asked, self._delivery.backoff.delay(failures - 1)), deadline)
        return None

    def watch(self, interval: float) -> None:
        """Drain again and again until stopped, ``interval`` seconds after nothing was due; survives everything."""
        failures = pauses = 0
        while not self._stopped:
            try:
                outcome = self.drain(patience=math.inf)
            except (DatabaseError, InterfaceError) as error:
                logger.warning("The outbox cannot be used for now: %s", type(error).__name__)
                connections[self._delivery.outbox.alias].close()
                wait = interval + self._delivery.backoff.delay(failures)
                failures += 1
            else:
                failures = 0
                wait = self._delivery.pause.delay(pauses) if outcome else interval
                pauses = pauses + 1 if outcome else 0
            self._wait(wait)

    def _wait(self, seconds: float, deadline: Deadline | None = None) -> None:
        left = deadline.remaining() if deadline else None
        with suppress(queue.Empty):
            self._wake.get(timeout=seconds if left is None else min(seconds, left))

    def _purge(self) -> None:
        if time.monotonic() >= self._purge_at:
            self._delivery.outbox.purge(self._delivery.retention)
            self._purge_at = time.monotonic() + PURGE_SECONDS

"""What every way of delivering events is: an interface, its books, and the shared instance."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from asgiref.sync import sync_to_async

from django_moe_personalize.conf import SETTING, Backend, ConfigurationError
from django_moe_personalize.conf.backends import load_backend
from django_moe_personalize.delivery.erasure import split_withdrawn
from django_moe_personalize.delivery.sending import Outcome, send
from django_moe_personalize.exceptions import MoePersonalizeError
from django_moe_personalize.log import logger
from django_moe_personalize.moengage.types import Event
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import Runtime, part
from django_moe_personalize.signals import events_delivered, events_dropped

Kind = TypeVar("Kind", bound="BaseDelivery")


@dataclass(frozen=True, slots=True)
class DeliveryCounts:
    """How many events this process took over, and what became of them.

    ``accepted == delivered + handed_over + sum(dropped.values()) + pending`` at every moment. What
    was handed over to a queue is counted again, as accepted, by the process that takes it out: over
    all processes, what is in the queue is ``handed_over`` less what workers accepted. The reasons:
    ``overflow`` (the memory bound), ``refused`` (by MoEngage), ``attempts`` (too many),
    ``exit`` (not delivered in time when the process ended), ``failed`` (a way that does not
    retry), ``broker`` (the queue took nothing), ``error`` (could not be taken over),
    ``erased`` (at the customer's wish).
    """

    accepted: int = 0
    delivered: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    pending: int = 0
    handed_over: int = 0


class Books:
    """The counts of one process. Pending is what the others leave, so the sum always holds."""

    def __init__(self) -> None:
        # Reentrant: a signal handler or a finaliser may record while this thread is recording.
        self._lock = threading.RLock()
        self._accepted = 0
        self._delivered = 0
        self._handed_over = 0
        self._dropped: Counter[str] = Counter()

    def accept(self, count: int) -> None:
        """Count events taken over."""
        with self._lock:
            self._accepted += count

    def deliver(self, count: int) -> None:
        """Count events that MoEngage took."""
        with self._lock:
            self._delivered += count

    def hand_over(self, count: int) -> None:
        """Count events that a queue took: another process has them in its books from there on."""
        with self._lock:
            self._handed_over += count

    def pass_on(self, count: int) -> None:
        """Strike events that another delivery of this process takes over, and counts."""
        with self._lock:
            self._accepted -= count

    def drop(self, count: int, reason: str) -> None:
        """Count events given up."""
        with self._lock:
            self._dropped[reason] += count

    def counts(self) -> DeliveryCounts:
        """Return all counts as of one moment."""
        with self._lock:
            dropped = dict(self._dropped)
            pending = self._accepted - self._delivered - self._handed_over - sum(dropped.values())
            return DeliveryCounts(self._accepted, self._delivered, dropped, pending, self._handed_over)


class BaseDelivery:
    """One way of delivering events; a subclass writes ``take`` and has its options as keyword arguments.

    Wrong options raise TypeError or ValueError. Instances are shared by all threads, and start
    empty in a forked child: what the parent took over stays the parent's.
    """

    asks_again = True
    """Whether events are looked at once more when they are sent, since ``erase`` cannot reach them all."""

    uses_database = False
    """Whether events are taken over on the connections of the thread where the site's sync code runs."""

    def __init__(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        """Start with empty books."""
        self._pid = os.getpid()
        self._books = Books()
        self._health = "working"

    def enter_process(self) -> None:
        """Start afresh after a fork made by C code that runs no hooks of Python, as some servers do."""
        if self._pid != os.getpid():
            self.after_fork()

    def record(self, events: Sequence[Event]) -> None:
        """Take events over; never raises, and blocks only where the class says so."""
        if not events:
            return
        self.enter_process()
        self._books.accept(len(events))
        try:
            self.take(events)
        except Exception as error:
            logger.error("Events could not be taken over for delivery and are dropped: %s", describe(error))
            self.drop(len(events), "error")

    async def arecord(self, events: Sequence[Event]) -> None:
        """See record(). Never blocks the event loop."""
        await sync_to_async(self.record, thread_sensitive=self.uses_database)(events)

    def take(self, events: Sequence[Event]) -> None:
        """Take over all of the events, which are counted as accepted, or raise having taken none."""
        raise NotImplementedError

    def flush(self, timeout: float | None = None) -> DeliveryCounts:
        """Deliver what was recorded, within ``timeout`` seconds if given, and return the counts."""
        return self.counts()

    def counts(self) -> DeliveryCounts:
        """Return the counts of this process."""
        self.enter_process()
        return self._books.counts()

    def erase(self, customer_id: str) -> int:
        """Drop the customer's events that are held here, as ``erased``, and return how many.

        An event on its way to MoEngage at this moment may still arrive there.
        """
        return 0

    def close(self) -> None:
        """Flush and stop; what cannot be delivered in time is dropped."""

    def send(self, events: Sequence[Event], *, timeout: float, until: Deadline | None = None) -> Outcome:
        """Make one attempt to deliver events, log when that begins or ceases to work; never raises. See send()."""
        events, withdrawn = split_withdrawn(events) if self.asks_again else (events, ())
        outcome = send(events, timeout=timeout, until=until)
        outcome.withdrawn = list(withdrawn)
        if not events:
            # Nothing was asked, so nothing was learned of the vendor.
            return outcome
        if outcome.refused:
            logger.warning(
                "MoEngage refused %d of %d events: %s",
                len(outcome.refused),
                len(events),
                describe(outcome.refused[0][1]),
            )
        health = "working"
        if outcome.error is not None:
            health = "paused" if outcome.needs_human else "failing"
        self._log_change(self._health, health, outcome.error)
        self._health = health
        return outcome

    def settle(self, outcome: Outcome) -> None:
        """Enter what was delivered and what was refused; the kept events are the caller's to keep or drop."""
        if outcome.delivered:
            self.deliver(len(outcome.delivered))
        if outcome.refused:
            self.drop(len(outcome.refused), "refused")
        if outcome.withdrawn:
            self.drop(len(outcome.withdrawn), "erased")

    def deliver(self, count: int) -> None:
        """Enter events as delivered and send the signal."""
        self._books.deliver(count)
        events_delivered.send_robust(sender=type(self), count=count)

    def drop(self, count: int, reason: str) -> None:
        """Enter events as dropped and send the signal."""
        self._books.drop(count, reason)
        events_dropped.send_robust(sender=type(self), count=count, reason=reason)

    def _log_change(self, old: str, new: str, error: Exception | None) -> None:
        if old == new:
            return
        if error is None:
            logger.info("Events are delivered again")
        elif new == "paused":
            logger.error(
                "MoEngage takes no events with these settings (%s): check WORKSPACE_ID, API_KEY and DATA_CENTER",
                describe(error),
            )
        else:
            logger.warning("Events cannot be delivered for now: %s", describe(error))


def describe(error: Exception) -> str:
    """Say what happened without what was sent: only our own messages are known to hold nothing personal."""
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, (MoePersonalizeError, ConfigurationError)) else name


@part
def get_delivery(runtime: Runtime) -> BaseDelivery:
    """Return the delivery that the setting DELIVERY names. Raises ConfigurationError."""
    return build_delivery(runtime.settings.delivery)


def find_delivery(kind: type[Kind]) -> Kind | None:
    """Return the site's delivery, or its fallback, if that is one of ``kind``; raises ConfigurationError."""
    delivery = get_delivery()
    return next((each for each in (delivery, getattr(delivery, "fallback", None)) if isinstance(each, kind)), None)


def build_delivery(told: Backend, name: str = "DELIVERY") -> BaseDelivery:
    """Return a new delivery as the setting ``name`` tells; raises ConfigurationError."""
    backend = load_backend(name, told)
    place = f'{SETTING}["{name}"]'
    if not (isinstance(backend, type) and issubclass(backend, BaseDelivery)):
        raise ConfigurationError(f"{place} names {told.backend!r}, which is no subclass of BaseDelivery.")
    try:
        return backend(**told.options)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f'{place}["OPTIONS"]: {error}.') from error

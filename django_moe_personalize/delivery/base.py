"""The base class of all deliveries, with its counters, and the delivery that the settings choose."""

from __future__ import annotations

import functools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from asgiref.sync import sync_to_async

from django_moe_personalize.conf import SETTING, Backend, ConfigurationError
from django_moe_personalize.conf.settings import load_backend
from django_moe_personalize.delivery.sending import MAX_SKEW, Outcome, has_wrong_credentials, send, split_withdrawn
from django_moe_personalize.exceptions import MoePersonalizeError
from django_moe_personalize.log import CREDENTIALS_FIX, DATA_CREDENTIALS_FIX, DOCTOR_FIX, Outage
from django_moe_personalize.moengage.types import Event
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import Runtime, part, protect_transactions
from django_moe_personalize.signals import events_delivered, events_dropped

Kind = TypeVar("Kind", bound="BaseDelivery")
Method = TypeVar("Method", bound=Callable[..., Any])

CLOCK_FIX = "Synchronize it with NTP. No event is lost: an event from the future gets the time of its sending."

MAX_PAUSE_SECONDS = 3600.0
"""The longest pause of a delivery after wrong credentials."""


@dataclass(frozen=True, slots=True)
class DeliveryCounts:
    """The number of events that this process accepted, and how many events had each result.

    ``accepted == delivered + handed_over + sum(dropped.values()) + pending`` at every moment. If a web process hands
    an event over to a queue, the worker of the queue counts the event as accepted again.

    The reasons for dropping: ``overflow`` (the memory limit), ``refused`` (by MoEngage), ``attempts`` (too many
    failed), ``exit`` (the process ended first), ``failed`` (a delivery without retries failed), ``broker`` (the queue
    didn't accept the event), ``error`` (the delivery raised an error), ``erased`` (the customer withdrew consent).
    """

    accepted: int = 0
    delivered: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    pending: int = 0
    handed_over: int = 0

    def __add__(self, other: DeliveryCounts) -> DeliveryCounts:
        return DeliveryCounts(
            accepted=self.accepted + other.accepted,
            delivered=self.delivered + other.delivered,
            dropped=dict(Counter(self.dropped) + Counter(other.dropped)),
            pending=self.pending + other.pending,
            handed_over=self.handed_over + other.handed_over,
        )


def in_own_runtime(method: Method) -> Method:
    """Let a method of a delivery work for the workspace of the delivery, whichever the calling thread works for."""

    @functools.wraps(method)
    def call(self: BaseDelivery, *args: Any, **kwargs: Any) -> Any:
        with nullcontext() if self.runtime is None else self.runtime.use():
            return method(self, *args, **kwargs)

    return cast(Method, call)


class BaseDelivery:
    """A way to deliver events. All threads of a process share one instance.

    A subclass implements ``take``. Its constructor gets OPTIONS as keyword arguments, and raises TypeError or
    ValueError for wrong options.
    """

    checks_withdrawal = True
    """Whether ``send`` looks for customers who withdrew consent. ``False`` if ``erase`` finds all events."""

    uses_database = False
    """Whether ``take`` uses the site's database. It then runs in the thread of the site's sync code, in a savepoint."""

    fallback: BaseDelivery | None = None
    """Another delivery, which gets the events that this delivery can't accept."""

    runtime: Runtime | None = None
    """The runtime whose client sends the events. ``None`` means the current runtime of the default workspace."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        # Reentrant: a signal handler may interrupt a thread that holds the lock, and record an event there.
        self._counts_lock = threading.RLock()
        self._outage = Outage("Events can't be delivered", "Events are delivered again", part="delivery")
        failing, working = "Conversions can't be delivered", "Conversions are delivered again"
        self._data_outage = Outage(failing, working, part="conversions")
        name = type(self).__name__
        self._breakdown = Outage(f"{name} can't take events", f"{name} takes events again", part="backend")
        self._refusals = Outage("MoEngage refuses events", "MoEngage accepts all events again", part="refusals")
        agrees = "This machine's clock agrees with MoEngage's again"
        self._wrong_clock = Outage("This machine's clock is wrong", agrees, part="clock")

    def bind(self, runtime: Runtime) -> None:
        """Use the client of ``runtime``, even after new settings have closed this runtime."""
        self.runtime = runtime
        if self.fallback is not None:
            self.fallback.bind(runtime)

    def record(self, events: Sequence[Event]) -> None:
        """Accept events for delivery. Never raises. Some subclasses block, and their docstrings say for how long."""
        if not events:
            return
        self._count("accepted", len(events))
        try:
            # For a delivery in memory, looking for open transactions would take 220 bytecodes a page.
            take = protect_transactions()(self.take) if self.uses_database else self.take
            take(events)
        except Exception as error:
            self.report_breakdown(error, len(events))
        else:
            if self._breakdown.is_on:
                self._breakdown.end()

    def report_breakdown(self, error: Exception, count: int) -> None:
        """Log that this delivery can't take events, and count the events as dropped."""
        advice = f"Until it works, events are dropped. {DOCTOR_FIX}"
        self._breakdown.fail(describe(error), advice, logging.ERROR, count=count)
        self.count_dropped(count, "error")

    async def arecord(self, events: Sequence[Event]) -> None:
        """See record(). Never blocks the event loop."""
        await sync_to_async(self.record, thread_sensitive=self.uses_database)(events)

    def record_conversions(self, conversions: Sequence[Event]) -> None:
        """Accept conversions for delivery. See record()."""
        self.record(conversions)

    def take(self, events: Sequence[Event]) -> None:
        """Take the events, which record() has counted as accepted. An exception means: this method took no event."""
        raise NotImplementedError

    def flush(self, timeout: float | None = None) -> DeliveryCounts:
        """Deliver the pending events, for at most ``timeout`` seconds if given, and return the counters.

        Events in a queue wait for the workers of the queue.
        """
        if self.fallback is not None:
            self.fallback.flush(timeout)
        return self.counts()

    @property
    def counts_in_database(self) -> bool:
        """Whether counts() may use the site's database, which may hang."""
        return self.uses_database or (self.fallback is not None and self.fallback.uses_database)

    def counts(self) -> DeliveryCounts:
        """Return the counters of this process."""
        with self._counts_lock:
            dropped = self._counts.copy()
        accepted, delivered, handed_over = (dropped.pop(name, 0) for name in ("accepted", "delivered", "handed_over"))
        # Computed from the other counters, so the equation in DeliveryCounts always holds.
        pending = accepted - delivered - handed_over - dropped.total()
        return DeliveryCounts(accepted, delivered, dict(dropped), pending, handed_over)

    def find_oldest(self) -> float | None:
        """Return the Unix time of the oldest pending event, or ``None`` if no event is pending."""
        return None

    def _count(self, name: str, count: int) -> None:
        """Add to a counter: ``accepted``, ``delivered``, ``handed_over``, or a reason for dropping."""
        with self._counts_lock:
            self._counts[name] += count

    def erase(self, customer_id: str) -> int:
        """Drop the customer's events in this delivery and its fallback as ``erased``, and return their number.

        An event that is being sent at this moment may still arrive at MoEngage.
        """
        return 0 if self.fallback is None else self.fallback.erase(customer_id)

    def close(self) -> None:
        """Deliver pending events, drop the events that can't be delivered in time, and stop. A second call is safe."""
        if self.fallback is not None:
            self.fallback.close()

    @in_own_runtime
    def send(self, events: Sequence[Event], *, timeout: float, until: Deadline | None = None) -> Outcome:
        """Make one attempt to deliver the events, as sending.send() does. Log the start and the end of an outage."""
        events, withdrawn = split_withdrawn(events) if self.checks_withdrawal else (events, ())
        outcome = send(events, timeout=timeout, until=until, runtime=self.runtime)
        outcome.withdrawn = list(withdrawn)
        if not events:
            # All events were withdrawn, so nothing was sent. The outcome doesn't show whether MoEngage works.
            return outcome
        if outcome.refused:
            self._refusals.fail(describe(outcome.refused[0][1]), "These events aren't sent again.")
        elif outcome.delivered:
            self._refusals.end()
        kinds = {event.is_conversion for event in events}
        if False in kinds:
            _log(self._outage, outcome.error, CREDENTIALS_FIX)
        if True in kinds:
            _log(self._data_outage, outcome.data_error, DATA_CREDENTIALS_FIX)
        if abs(outcome.skew) > MAX_SKEW:
            cause = f"about {abs(outcome.skew):.0f} s {'ahead of' if outcome.skew > 0 else 'behind'} MoEngage's"
            self._wrong_clock.fail(cause, CLOCK_FIX)
        else:
            self._wrong_clock.end()
        return outcome

    def count_outcome(self, outcome: Outcome) -> None:
        """Count the delivered, refused and withdrawn events of an attempt. The caller handles the ``kept`` events."""
        self.count_delivered(len(outcome.delivered))
        self.count_dropped(len(outcome.refused), "refused")
        self.count_dropped(len(outcome.withdrawn), "erased")

    def count_delivered(self, count: int) -> None:
        """Count events as delivered and send the signal, unless ``count`` is 0."""
        if count:
            self._count("delivered", count)
            with protect_transactions():
                events_delivered.send_robust(sender=type(self), count=count)

    def count_dropped(self, count: int, reason: str) -> None:
        """Count events as dropped and send the signal, unless ``count`` is 0."""
        if count:
            self._count(reason, count)
            with protect_transactions():
                events_dropped.send_robust(sender=type(self), count=count, reason=reason)


def _log(outage: Outage, error: Exception | None, credentials_fix: str) -> None:
    if error is None:
        outage.end()
    elif has_wrong_credentials(error):
        outage.fail(describe(error), credentials_fix, logging.ERROR)
    else:
        outage.fail(describe(error), DOCTOR_FIX)


def describe(error: Exception) -> str:
    """Describe an error without personal data. Other packages' messages may contain such data, so leave them out."""
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, (MoePersonalizeError, ConfigurationError)) else name


@part
def get_delivery(runtime: Runtime) -> BaseDelivery:
    """Return the delivery that the setting DELIVERY names. Raises ConfigurationError."""
    delivery = build_delivery(runtime.settings.delivery)
    delivery.bind(runtime)
    return delivery


def find_delivery(kind: type[Kind], runtime: Runtime | None = None) -> Kind | None:
    """Return the site's delivery or its fallback, if one of them is a ``kind``. Raises ConfigurationError."""
    delivery = get_delivery(runtime)
    return next((each for each in (delivery, delivery.fallback) if isinstance(each, kind)), None)


def build_delivery(backend: Backend, name: str = "DELIVERY") -> BaseDelivery:
    """Build the delivery that ``backend`` describes. ``name`` is its setting. Raises ConfigurationError."""
    found = load_backend(name, backend)
    place = f'{SETTING}["{name}"]'
    if not (isinstance(found, type) and issubclass(found, BaseDelivery)):
        message = f'{place}["BACKEND"] is {backend.backend!r}, which isn\'t a subclass of BaseDelivery.'
        raise ConfigurationError(message, hint="Name one of the classes in django_moe_personalize.delivery.")
    try:
        return found(**backend.options)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f'{place}["OPTIONS"]: {error}.') from error

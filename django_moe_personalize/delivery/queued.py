"""Deliver events through a queue of the site: the events of a page travel as one message.

The web process hands the message over to the queue. A worker of the queue makes one attempt to send the events of the
message, and hands failed events over again, with the same UUIDs. This module also has the task ``deliver_outbox``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from django_moe_personalize.conf import DEFAULT, DELIVERY, SETTING, ConfigurationError, list_workspaces, readers
from django_moe_personalize.delivery.base import BaseDelivery, DeliveryCounts, build_delivery, describe, find_delivery
from django_moe_personalize.delivery.sending import Outcome
from django_moe_personalize.log import DOCTOR_FIX, Outage
from django_moe_personalize.moengage.types import Event
from django_moe_personalize.resilience import Backoff, Deadline
from django_moe_personalize.runtime import Runtime, log_once, protect_transactions, use_workspace

Kind = TypeVar("Kind", bound="QueuedDelivery")

Obstacle = tuple[Literal["warning", "problem"], str, str, str]
"""A finding of ``moe_doctor``: its state, the fact, the fix, and the id."""

MAX_SECONDS = 9.0
"""A run of deliver_outbox() takes a little less than the ten seconds between two runs of the documented schedule."""


@dataclass(frozen=True, slots=True)
class Message:
    """The events of a page, the number of failed attempts, and the number of pauses for wrong credentials."""

    events: Sequence[Event]
    attempts: int = 0
    pauses: int = 0

    def write(self) -> str:
        """Return the message as JSON. Raises TypeError or ValueError for events that JSON can't express."""
        elements = ",".join(event.element for event in self.events)
        return f'{{"attempts":{self.attempts},"pauses":{self.pauses},"elements":[{elements}]}}'

    @classmethod
    def read(cls, text: str) -> Message:
        """Read a message that write() wrote, maybe in another release of this package. Raises ValueError."""
        try:
            content = json.loads(text)
            elements = [json.dumps(element, separators=(",", ":")) for element in content["elements"]]
            return cls([Event.read(element) for element in elements], content["attempts"], content["pauses"])
        except (LookupError, TypeError) as error:
            raise ValueError("not a message of this package") from error


_sent_inline: ContextVar[list[bool] | None] = ContextVar("moe_personalize_sent_inline", default=None)
"""A list while take() hands a message over, else ``None``. If take() runs work() itself, work() appends to it."""


@dataclass(kw_only=True, eq=False, repr=False)
class QueuedDelivery(BaseDelivery):
    """Hand the events of each page over to a queue. A subclass implements ``hand_over``. Its task calls ``work``.

    Events that the queue doesn't accept go to the delivery ``fallback``, a setting like DELIVERY. Without a fallback
    these events are dropped as ``broker``.

    In the worker a call takes at most ``timeout`` seconds. An event has ``max_attempts`` attempts. Between attempts the
    event waits for a random time of up to ``backoff`` seconds, then twice as long each time, up to ``max_backoff``, and
    at least for MoEngage's Retry-After. After wrong credentials the event waits for ``pause`` seconds, then twice as
    long each time, up to ``max_backoff``. Wrong credentials don't count as an attempt.
    """

    fallback: Any = None
    timeout: float = 10.0
    max_attempts: int = 50
    backoff: float = 1.0
    max_backoff: float = 600.0
    pause: float = 60.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {self.max_attempts!r}")
        super().__init__()
        self._backoff = Backoff(self.backoff, self.max_backoff)
        self._pause = Backoff(self.pause, max(self.pause, self.max_backoff), draw=lambda: 1.0)
        self._refused = Outage("The queue doesn't accept events", "The queue accepts events again", part="queue")
        self._given_up = Outage("Events fail too often", "Events are delivered again", part="attempts")
        self._unreadable = Outage("Messages can't be read", "Messages can be read again", part="messages")
        if self.fallback is not None:
            try:
                backend = readers.read_backend(self.fallback, default=DELIVERY)
            except readers.InvalidValue as error:
                raise ValueError(f"fallback must be written like DELIVERY: {error.expected}") from None
            # An error message puts this name into brackets: MOE_PERSONALIZE["DELIVERY"]["OPTIONS"]["fallback"].
            self.fallback = build_delivery(backend, 'DELIVERY"]["OPTIONS"]["fallback')

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of the task after the message: the name of the workspace, unless it's the default one.

        An argument, and not a part of the message: a worker that doesn't know workspaces must refuse the message.
        """
        is_default = self.runtime is None or self.runtime.name == DEFAULT
        return () if is_default or self.runtime is None else (self.runtime.name,)

    def hand_over(self, message: str, *, wait: float = 0.0) -> None:
        """Put a message into the queue. A worker gets it after ``wait`` seconds. Raises an error if the queue fails."""
        raise NotImplementedError

    def find_obstacles(self) -> Iterator[Obstacle]:
        """Yield what keeps the queue from delivering events. May take seconds. For ``moe_doctor``."""
        yield from ()

    def take(self, events: Sequence[Event]) -> None:
        """Hand the events over as one message."""
        message = Message(events).write()
        sent_inline: list[bool] = []
        token = _sent_inline.set(sent_inline)
        try:
            is_accepted = self._try_to_hand_over(message)
        finally:
            _sent_inline.reset(token)
        if sent_inline:
            # work() has counted the events.
            return
        if is_accepted:
            self._count("handed_over", len(events))
        else:
            self._divert(events)

    def work(self, text: str) -> bool:
        """Send the events of a message, and hand failed events over again. Return False to keep the message queued."""
        try:
            message = Message.read(text)
        except ValueError as error:
            advice = "These messages are dropped. They come from another program, or another release of the package."
            self._unreadable.fail(str(error), advice, logging.ERROR)
            return True
        self._unreadable.end()
        sent_inline = _sent_inline.get()
        if sent_inline is None:
            self._count("accepted", len(message.events))
        else:
            sent_inline.append(True)
        outcome = self.send(message.events, timeout=self.timeout)
        self.count_outcome(outcome)
        if outcome.delivered:
            self._given_up.end()
        if sent_inline is not None:
            self.count_dropped(len(outcome.kept), "failed")
            return True
        return not outcome.kept or self._retry(message, outcome)

    def _retry(self, message: Message, outcome: Outcome) -> bool:
        """Hand the failed events over again, or drop them after the last attempt. Return the result of work()."""
        kept = outcome.kept
        attempts = message.attempts + (not outcome.wrong_credentials)
        if attempts >= self.max_attempts:
            cause = describe(outcome.failure) if outcome.failure else ""
            self._given_up.fail(cause, f"They are dropped after {attempts} attempts.", logging.ERROR, count=len(kept))
            self.count_dropped(len(kept), "attempts")
            return True
        pauses = message.pauses + outcome.wrong_credentials
        wait = self._pause.delay(pauses - 1) if outcome.wrong_credentials else self._backoff.delay(attempts - 1)
        wait = max(wait, min(outcome.retry_after, self.max_backoff))
        if not self._try_to_hand_over(Message(kept, attempts, pauses).write(), wait=wait):
            return self.return_to_queue(kept)
        self._count("handed_over", len(kept))
        return True

    def return_to_queue(self, events: Sequence[Event]) -> bool:
        """Handle failed events that the queue doesn't accept again. Return False to keep their message queued."""
        self._divert(events)
        return True

    def _try_to_hand_over(self, message: str, *, wait: float = 0.0) -> bool:
        try:
            # The queue may be a table of the site's database.
            with protect_transactions():
                self.hand_over(message, wait=wait)
        except Exception as error:
            where = "are dropped" if self.fallback is None else "go to the fallback"
            self._refused.fail(describe(error), f"Until it works, events {where}. {DOCTOR_FIX}", logging.ERROR)
            return False
        self._refused.end()
        return True

    def _divert(self, events: Sequence[Event]) -> None:
        if self.fallback is None:
            self.count_dropped(len(events), "broker")
        else:
            self._count("accepted", -len(events))
            self.fallback.record(events)

    def counts(self) -> DeliveryCounts:
        """Return the counters of this process, including those of the fallback."""
        own = super().counts()
        return own if self.fallback is None else own + self.fallback.counts()


def find_worker(kind: type[Kind], runtime: Runtime) -> Kind:
    """Return the delivery that a worker uses: the site's delivery or its fallback if it is a ``kind``, else a new one.

    A new one has default options. So workers can empty a queue after DELIVERY changed, or while settings are wrong.
    """
    with suppress(ConfigurationError):
        if (found := find_delivery(kind, runtime)) is not None:
            return found
    build: Callable[..., Kind] = kind
    (worker := build()).bind(runtime)
    return worker


def deliver_outbox(max_seconds: float = MAX_SECONDS, workspace: str | None = None) -> int:
    """Send the due events of the site's outbox and return the number of events that MoEngage accepted.

    Starts no batch after ``max_seconds``. Several processes may call it at the same time. A failure of MoEngage or
    the database ends the call with a log line. After wrong credentials this process pauses: until the end of the pause,
    calls return 0 immediately.

    Without ``workspace``, send the events of all workspaces in turn, each for its share of the time. Raises
    ConfigurationError for an unknown workspace.
    """
    names = list_workspaces() if workspace is None else (workspace,)
    count = 0
    for name in names:
        with use_workspace(name):
            count += _deliver_outbox(max_seconds / len(names))
    return count


def _deliver_outbox(max_seconds: float) -> int:
    # Imported here: Celery may import this module before Django can import models.
    from django_moe_personalize.delivery.database import DATABASE_ERRORS, DatabaseDelivery, Deliverer

    counts: list[int] = []
    try:
        delivery = find_delivery(DatabaseDelivery)
    except ConfigurationError as error:
        log_once(("outbox", str(error)), "The outbox isn't delivered: %s", error)
        return 0
    if delivery is None:
        message = 'deliver_outbox found no outbox. Set %s["DELIVERY"] to DatabaseDelivery, or end the task\'s schedule'
        log_once("no outbox", message, SETTING)
    elif not delivery.pause_left:
        deliverer = Deliverer(delivery, on_batch=lambda outcome: counts.append(len(outcome.delivered)))
        try:
            deliverer.drain(deadline=Deadline(max_seconds))
        except DATABASE_ERRORS as error:
            delivery.drop_connection(error)
    return sum(counts)


def enqueue(*args: Any, **kwargs: Any) -> Any:
    """Enqueue the task with Django's tasks, in the backend ``default``. Return its TaskResult."""
    from django_moe_personalize.delivery.tasks import deliver_outbox as task

    return task.enqueue(*args, **kwargs)


deliver_outbox.enqueue = enqueue  # type: ignore[attr-defined]

"""What deliveries through a queue of the site's have in common: a page's events travel as one message.

The web process writes the message and hands it over; a worker of the queue reads it, makes one
attempt, and hands what has to wait over again, with the same UUIDs. How a message gets into the
queue, at once or later, is all that a subclass says.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from django_moe_personalize.conf import DELIVERY, ConfigurationError, readers
from django_moe_personalize.delivery.base import (
    BaseDelivery,
    DeliveryCounts,
    build_delivery,
    describe,
    find_delivery,
    logger,
)
from django_moe_personalize.moengage.types import Action, Event
from django_moe_personalize.resilience import Backoff

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_moe_personalize.delivery.sending import Outcome

Kind = TypeVar("Kind", bound="QueuedDelivery")

_stand_ins: dict[type[Any], Any] = {}

FALLBACK = 'DELIVERY"]["OPTIONS"]["fallback'
"""Where the setting of the other delivery stands, as load_backend() writes it."""


@dataclass(frozen=True, slots=True)
class Message:
    """The events of a page, and how often they were sent in vain: ``pauses`` for want of right credentials."""

    events: Sequence[Event]
    attempts: int = 0
    pauses: int = 0

    def write(self) -> str:
        """Return it as JSON; raises TypeError or ValueError for what JSON cannot say."""
        events = [{**_read_fields(event), "action": event.action.value} for event in self.events]
        return json.dumps({"events": events, "attempts": self.attempts, "pauses": self.pauses})

    @classmethod
    def read(cls, text: str) -> Message:
        """Return what write() wrote, here or in another release; raises ValueError."""
        try:
            told = json.loads(text)
            names = [name.name for name in dataclasses.fields(Event) if name.init]
            events = [{name: event[name] for name in names if name in event} for event in told["events"]]
            made = [Event(**{**event, "action": Action(event["action"])}) for event in events]
            return cls(made, told["attempts"], told["pauses"])
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError("no message of ours") from error


def _read_fields(event: Event) -> dict[str, Any]:
    return {name.name: getattr(event, name.name) for name in dataclasses.fields(event) if name.init}


@dataclass(slots=True)
class _Turn:
    """One hand-over; ``inline`` when the queue, being none, did the work while it was handed over."""

    inline: bool = False


_turn: ContextVar[_Turn | None] = ContextVar("moe_personalize_turn", default=None)


class QueuedDelivery(BaseDelivery):
    """Hand the events of each page to a queue; a subclass writes ``hand_over`` and calls ``work`` in its task.

    What the queue does not take goes to ``fallback``, another delivery as in DELIVERY, and without
    one is dropped as ``broker``.
    """

    def __init__(
        self,
        *,
        fallback: Mapping[str, Any] | None,
        timeout: float,
        max_attempts: int,
        backoff: float,
        max_backoff: float,
        pause: float,
    ) -> None:
        if max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {max_attempts!r}")
        self._timeout = timeout
        self._max_attempts = max_attempts
        self._backoff = Backoff(backoff, max_backoff)
        self._max_wait = max_backoff
        self._pause = Backoff(pause, max(pause, max_backoff), draw=lambda: 1.0)
        self.fallback = None if fallback is None else build_delivery(_read_backend(fallback), FALLBACK)
        super().__init__()

    def after_fork(self) -> None:
        """Start with empty books and a queue that nothing is known against."""
        super().after_fork()
        self._queue_works = True

    def hand_over(self, message: str, *, wait: float = 0.0) -> None:
        """Put a message into the queue, to be worked on after ``wait`` seconds, or raise."""
        raise NotImplementedError

    def take(self, events: Sequence[Event]) -> None:
        """Hand the events over as one message."""
        message = Message(events).write()
        with _taking_turn() as turn:
            handed_over = self._try_to_hand_over(message)
        if turn.inline:
            return
        if handed_over:
            self._books.hand_over(len(events))
        else:
            self._divert(events)

    def work(self, text: str) -> bool:
        """Send the events of a message; False says that the queue is to keep the message.

        What may be sent again is handed over again. Refused events are dropped, with the reason in
        the log, and so are those of ``max_attempts`` attempts. Wrong credentials cost no attempt.
        """
        try:
            message = Message.read(text)
        except ValueError:
            logger.error("A message in the queue is not of this package, or of another release, and is dropped")
            return True
        turn = _turn.get()
        if turn is None:
            self.enter_process()
            self._books.accept(len(message.events))
        else:
            turn.inline = True
        outcome = self.send(message.events, timeout=self._timeout)
        self.settle(outcome)
        return not outcome.kept or self._keep(message, outcome, inline=turn is not None)

    def _keep(self, message: Message, outcome: Outcome, *, inline: bool) -> bool:
        """Find a place for the events that were not delivered; whether there is one."""
        kept = outcome.kept
        attempts = message.attempts + (not outcome.needs_human)
        if inline:
            self.drop(len(kept), "failed")
            return True
        if attempts >= self._max_attempts:
            logger.error("%d events were sent in vain %d times and are dropped", len(kept), attempts)
            self.drop(len(kept), "attempts")
            return True
        pauses = message.pauses + outcome.needs_human
        wait = self._pause.delay(pauses - 1) if outcome.needs_human else self._backoff.delay(attempts - 1)
        wait = max(wait, min(outcome.retry_after, self._max_wait))
        if not self._try_to_hand_over(Message(kept, attempts, pauses).write(), wait=wait):
            return self.return_to_queue(kept)
        self._books.hand_over(len(kept))
        return True

    def return_to_queue(self, events: Sequence[Event]) -> bool:
        """Say whether the queue may forget the message whose events could not be handed over again."""
        self._divert(events)
        return True

    def _try_to_hand_over(self, message: str, *, wait: float = 0.0) -> bool:
        try:
            self.hand_over(message, wait=wait)
        except Exception as error:
            if self._queue_works:
                where = "dropped" if self.fallback is None else "handed to the fallback"
                logger.error("The queue takes no events (%s): until it does they are %s", describe(error), where)
            self._queue_works = False
            return False
        if not self._queue_works:
            logger.info("The queue takes events again")
        self._queue_works = True
        return True

    def _divert(self, events: Sequence[Event]) -> None:
        if self.fallback is None:
            self.drop(len(events), "broker")
        else:
            self._books.pass_on(len(events))
            self.fallback.record(events)

    def flush(self, timeout: float | None = None) -> DeliveryCounts:
        """Flush the fallback, if there is one, and return the counts; what was handed over is the workers' to send."""
        if self.fallback is not None:
            self.fallback.flush(timeout)
        return self.counts()

    def counts(self) -> DeliveryCounts:
        """Return the counts of this process, those of the fallback included."""
        own = super().counts()
        if self.fallback is None:
            return own
        other = self.fallback.counts()
        return DeliveryCounts(
            accepted=own.accepted + other.accepted,
            delivered=own.delivered + other.delivered,
            dropped=dict(Counter(own.dropped) + Counter(other.dropped)),
            pending=own.pending + other.pending,
            handed_over=own.handed_over + other.handed_over,
        )

    def close(self) -> None:
        """Close the fallback, if there is one."""
        if self.fallback is not None:
            self.fallback.close()


@contextmanager
def _taking_turn() -> Iterator[_Turn]:
    turn = _Turn()
    token = _turn.set(turn)
    try:
        yield turn
    finally:
        _turn.reset(token)


def _read_backend(fallback: object) -> readers.Backend:
    try:
        return readers.read_backend(fallback, default=DELIVERY)
    except readers.InvalidValue as error:
        raise ValueError(f"fallback must be as DELIVERY is: {error.expected}") from None


def get_worker(kind: type[Kind]) -> Kind:
    """Return the delivery with which a worker sends: the site's or its fallback, else one with default options.

    So a queue is emptied also after a site has changed its DELIVERY, and while its settings are wrong.
    """
    with suppress(ConfigurationError):
        if (found := find_delivery(kind)) is not None:
            return found
    if kind not in _stand_ins:
        build: Any = kind
        # Threads that come to this at once have to keep the same books.
        _stand_ins.setdefault(kind, build())
    stand_in: Kind = _stand_ins[kind]
    return stand_in

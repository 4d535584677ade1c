"""Deliver from the workers of the site's Celery: what was handed over outlives every process of the site.

The page waits until the broker has taken its message, for ``publish_timeout`` at most, over a
connection of our own: Celery's waits as long as a broker that does not answer likes. A broker
that failed is left alone for a while, so that pages do not wait for it one after the other.

On Redis, which forgets what it hands to a worker, a journal has each message until a worker is done
with it; the workers look there for what got lost, and queue it again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeVar

from celery import bootsteps, current_app, shared_task
from celery.exceptions import Reject
from celery.signals import worker_init

from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.delivery.base import describe, find_delivery, logger
from django_moe_personalize.delivery.journal import Entry, Journal
from django_moe_personalize.delivery.links import Link, Links
from django_moe_personalize.delivery.queued import QueuedDelivery, get_worker
from django_moe_personalize.exceptions import DeliveryError
from django_moe_personalize.moengage.types import Event
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.resilience.breaker import CircuitBreaker

TASK = "django_moe_personalize.deliver"
"""The name of the task, for ``task_routes``."""

Found = TypeVar("Found")

_KEEP_SECONDS = 1.0

_SWEEP_SECONDS = 2.0
_SWEEP_LIMIT = 200
"""Messages queued again at once: the worker does nothing else meanwhile."""

_in_hand: ContextVar[Entry | None] = ContextVar("moe_personalize_in_hand", default=None)
"""The message that is worked on, if it is known to be in the journal."""


class CeleryDelivery(QueuedDelivery):
    """Publish one message a page, which a worker sends; a worker that is killed loses nothing.

    Publishing may last ``publish_timeout`` seconds. In the worker a call may last ``timeout``
    seconds; a failure is retried up to ``max_attempts`` times, after a full-jitter wait between
    nothing and ``backoff``, doubling to ``max_backoff``, or after the vendor's Retry-After. Wrong
    credentials cost no attempt: they are tried again after ``pause`` seconds, doubling to
    ``max_backoff``. What the broker does not take goes to ``fallback``, another delivery's
    ``{"BACKEND": …, "OPTIONS": …}``, or is dropped as ``broker``. On Redis a message that no worker
    was done with ``recovery`` seconds after it was due is queued again, once the queue is empty.
    """

    def __init__(
        self,
        *,
        fallback: Mapping[str, Any] | None = None,
        publish_timeout: float = 0.5,
        timeout: float = 10.0,
        max_attempts: int = 50,
        backoff: float = 1.0,
        max_backoff: float = 600.0,
        pause: float = 60.0,
        recovery: float = 60.0,
    ) -> None:
        for name, seconds in (("publish_timeout", publish_timeout), ("recovery", recovery)):
            if seconds <= 0:
                raise ValueError(f"{name} must be above 0, not {seconds!r}")
        self._publish_timeout = publish_timeout
        self._recovery = recovery
        self._breaker = CircuitBreaker(failure_threshold=2, open_seconds=2.0, max_open_seconds=30.0)
        self._links = Links(self._connect)
        super().__init__(
            fallback=fallback,
            timeout=timeout,
            max_attempts=max_attempts,
            backoff=backoff,
            max_backoff=max_backoff,
            pause=pause,
        )

    def after_fork(self) -> None:
        """Start without connections."""
        super().after_fork()
        # Kept from the garbage collector: to close the parent's connection would end it for the parent too.
        self._inherited, self._links = self._links, Links(self._connect)
        self._sweeps = True

    def take(self, events: Sequence[Event]) -> None:
        """See QueuedDelivery. What is recorded beside the work on a message is no successor of it."""
        with _holding(None):
            super().take(events)

    def hand_over(self, message: str, *, wait: float = 0.0) -> None:
        """Publish a message; raises what Celery raises, and DeliveryError while the broker is left alone."""
        if current_app.conf.task_always_eager:
            # As tests of a site have it: there is no broker.
            deliver.apply_async((message,))
            return
        allowed = self._breaker.allow()
        ticket = 0 if allowed else self._breaker.claim_probe()
        if not allowed and not ticket:
            raise DeliveryError("the broker failed a moment ago")
        key, deadline = uuid.uuid4().hex, Deadline(self._publish_timeout)
        try:
            self._links.use(lambda link: self._publish(link, message, wait, key, deadline), deadline)
        except BaseException:
            self._breaker.failure(ticket)
            raise
        self._breaker.success(ticket)

    def _connect(self) -> Any:
        seconds = self._publish_timeout
        options = {
            "socket_connect_timeout": seconds,  # Redis
            "socket_timeout": seconds,
            "read_timeout": seconds,  # RabbitMQ
            "write_timeout": seconds,
            "confirm_publish": True,
            # By default it is tried for ever; once more, for a broker URL that names two.
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0,
        }
        return current_app.connection_for_write(connect_timeout=seconds, transport_options=options)

    def _publish(self, link: Link, message: str, wait: float, key: str, deadline: Deadline) -> None:
        """Note a message in the journal, if there is one, and queue it."""
        journal = link.open_journal(_find_destination()[0])
        if journal is None:
            self._queue(link, message, wait)
            return
        in_hand = _in_hand.get()
        entry = journal.write(key, message, due=time.time() + wait, instead_of=in_hand)
        if entry is None:
            # Who had the same message in hand has handed it over already.
            return
        try:
            self._queue(link, message, wait, entry)
        except Exception:
            if in_hand is not None:
                # Nobody else has it any more: the sweep will queue it.
                return
            if not deadline.expired:
                with suppress(Exception):
                    journal.strike(key)
            raise

    def _queue(self, link: Link, message: str, wait: float = 0.0, entry: Entry | None = None) -> None:
        deliver.apply_async(
            (message,),
            None if entry is None else {"entry": entry},
            # What Celery logs and tells its monitors of the arguments: not who saw what.
            argsrepr="(…)",
            kwargsrepr="{}",
            connection=link.connection,
            countdown=wait or None,
            serializer="json",
            ignore_result=True,
            retry=False,
            timeout=self._publish_timeout,
            confirm_timeout=self._publish_timeout,
        )

    def work_off(self, message: str, entry: Entry | None) -> bool:
        """See work(). Strikes the message from the journal when it is done with, and skips one that was struck."""
        if entry is None:
            return self.work(message)
        there = self._ask_journal(entry, lambda journal: journal.find(entry))
        if there is False:
            # Queued twice, and somebody else was done with it; or who was could not say so any more.
            return True
        with _holding(entry if there else None):
            done = self.work(message)
        if done:
            self._ask_journal(entry, lambda journal: journal.strike(entry.key))
        return done

    def _ask_journal(self, entry: Entry, ask: Callable[[Journal], Found]) -> Found | None:
        """Return what the journal answers, or None where it cannot be asked: then a message is sent once too often."""

        def work(link: Link) -> Found | None:
            journal = link.open_journal(entry.queue)
            return None if journal is None else ask(journal)

        with suppress(Exception):
            return self._links.use(work, Deadline(self._publish_timeout))
        return None

    def sweep(self) -> bool:
        """Queue again what nobody was done with in time; whether it is worth while to look again. Never raises."""
        try:
            worth_while = self._links.use(self._sweep, Deadline(self._publish_timeout))
        except Exception as error:
            if self._sweeps:
                logger.warning("Nobody looks for lost messages in Celery's Redis for now: %s", describe(error))
            self._sweeps = False
            return True
        self._sweeps = True
        return worth_while

    def _sweep(self, link: Link) -> bool:
        destination, queues = _find_destination()
        journal = link.open_journal(destination)
        if journal is None:
            return False
        # One worker looks for all.
        if journal.take_turn(_SWEEP_SECONDS * 0.75):
            now = time.time()
            overdue = journal.find_overdue(now - self._recovery, _SWEEP_LIMIT)
            # What waits in the queue is overdue too, and not lost.
            if overdue and queues and not _is_waiting(link.connection, queues):
                lost = journal.claim(overdue, now)
                logger.info("%d messages that no worker was done with in time are queued again", len(lost))
                for entry, message in lost:
                    self._queue(link, message, entry=entry)
        return len(journal) > 0 or _is_the_sites(self)

    def return_to_queue(self, events: Any) -> bool:
        """Ask the broker to keep the message: who delivered it has it still."""
        self._books.hand_over(len(events))
        return False

    def close(self) -> None:
        """Close the connections and the fallback."""
        self._links.close()
        super().close()


@contextmanager
def _holding(entry: Entry | None) -> Iterator[None]:
    token = _in_hand.set(entry)
    try:
        yield
    finally:
        _in_hand.reset(token)


def _is_the_sites(delivery: CeleryDelivery) -> bool:
    with suppress(ConfigurationError):
        return find_delivery(CeleryDelivery) is delivery
    return False


def _find_destination() -> tuple[str, list[Any]]:
    """Return the name of what our task is routed to, and the queues there as far as they are known."""
    amqp = current_app.amqp
    route = amqp.router.route({"queue": getattr(deliver, "queue", None)}, TASK, ("",), {})
    queue, exchange = route.get("queue"), route.get("exchange")
    if queue is None and exchange is not None:
        name = getattr(exchange, "name", exchange)
        return name, [each for each in amqp.queues.values() if each.exchange.name == name]
    queue = queue or amqp.default_queue
    return queue.name, [queue]


def _is_waiting(connection: Any, queues: Sequence[Any]) -> bool:
    channel = connection.default_channel
    return any(queue.bind(channel).queue_declare().message_count for queue in queues)


@shared_task(  # type: ignore[untyped-decorator]
    name=TASK,
    acks_late=True,
    reject_on_worker_lost=True,
    acks_on_failure_or_timeout=False,
    ignore_result=True,
)
def deliver(message: str, entry: Sequence[str] | None = None) -> None:
    """Send the events of one page; ``entry`` is the message's in the journal."""
    if not get_worker(CeleryDelivery).work_off(message, None if entry is None else Entry(*entry)):
        # Not at once again, with a broker that takes nothing.
        time.sleep(_KEEP_SECONDS)
        raise Reject("to be delivered again", requeue=True)


class Sweeping(bootsteps.StartStopStep):  # type: ignore[misc]
    """Look for lost messages from a worker's main process, for as long as it is connected to the broker."""

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        self._timer = consumer.timer
        self._entry: Any = None
        super().__init__(consumer, **kwargs)

    def start(self, consumer: Any) -> None:
        """Look every few seconds; called again when the connection was lost and is back."""
        self._entry = self._timer.call_repeatedly(_SWEEP_SECONDS, self._look)

    def stop(self, consumer: Any = None) -> None:
        """Look no more."""
        if self._entry is not None:
            self._timer.cancel(self._entry)

    shutdown = stop

    def _look(self) -> None:
        if not get_worker(CeleryDelivery).sweep():
            self.stop()


@worker_init.connect(weak=False, dispatch_uid=TASK)  # type: ignore[untyped-decorator]
def _on_worker_init(sender: Any, **kwargs: Any) -> None:
    sender.app.steps["consumer"].add(Sweeping)

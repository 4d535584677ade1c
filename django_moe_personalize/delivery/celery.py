"""Hand events over to the site's Celery: each page publishes one message, and a worker sends its events.

With RabbitMQ, a killed worker loses no message: the page waits until RabbitMQ confirms the message, and the task uses
``acks_late``. With Redis, a worker takes a message and then marks it as unacknowledged. A kill in between loses it.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from celery import current_app, shared_task
from celery.exceptions import Reject

from django_moe_personalize.conf import DEFAULT, ConfigurationError
from django_moe_personalize.delivery import queued
from django_moe_personalize.delivery.queued import Obstacle, QueuedDelivery, find_worker
from django_moe_personalize.exceptions import DeliveryError
from django_moe_personalize.moengage.types import Event
from django_moe_personalize.resilience import CircuitBreaker, Deadline
from django_moe_personalize.runtime import Runtime, log_once, part, use_workspace

TASK = "django_moe_personalize.deliver"
"""The name of the task that sends a page's message, for ``task_routes``."""

OUTBOX_TASK = "django_moe_personalize.deliver_outbox"

_REJECT_SECONDS = 1.0

_DOCTOR_SECONDS = 1.0
"""How long find_obstacles() waits for the broker, and then for the workers."""


@dataclass(kw_only=True, eq=False, repr=False)
class CeleryDelivery(QueuedDelivery):
    """Publish one message for each page. The page waits for at most ``publish_timeout`` seconds.

    After two failures in a row, pages skip the broker for some seconds. For the other options see QueuedDelivery.
    """

    publish_timeout: float = 0.5

    def __post_init__(self) -> None:
        if self.publish_timeout <= 0:
            raise ValueError(f"publish_timeout must be above 0, not {self.publish_timeout!r}")
        super().__post_init__()
        self._breaker = CircuitBreaker(failure_threshold=2, open_seconds=2.0, max_open_seconds=30.0)
        # Connections outside Celery's pool: the pool's connections wait without limit for a broker that hangs.
        self._idle: deque[Any] = deque()

    def hand_over(self, message: str, *, wait: float = 0.0) -> None:
        """Publish a message. Raises Celery's errors, and DeliveryError while pages skip the broker."""
        if current_app.conf.task_always_eager:
            deliver.apply_async((message, *self.arguments))
            return
        ticket = 0
        if not self._breaker.allow() and not (ticket := self._breaker.claim_probe()):
            raise DeliveryError("the broker failed a moment ago")
        try:
            self._publish(message, wait)
        except BaseException:
            self._breaker.failure(ticket)
            raise
        self._breaker.success(ticket)

    def _publish(self, message: str, wait: float) -> None:
        """Publish on an idle connection. If the connection is dead, try another idle connection, or a new one."""
        deadline = Deadline(self.publish_timeout)
        while True:
            idle = self._take_idle()
            connection = self._connect() if idle is None else idle
            try:
                deliver.apply_async(
                    (message, *self.arguments),
                    # Celery writes the arguments' text into its log and events. The text must not name the visitor.
                    argsrepr="(…)",
                    kwargsrepr="{}",
                    connection=connection,
                    countdown=wait or None,
                    retry=False,
                    timeout=self.publish_timeout,
                    confirm_timeout=self.publish_timeout,
                )
            except BaseException as error:
                _disconnect(connection)
                if idle is None or deadline.expired or not isinstance(error, Exception):
                    raise
            else:
                self._idle.append(connection)
                return

    def _take_idle(self) -> Any:
        # Another thread may take the last idle connection first.
        with suppress(IndexError):
            return self._idle.pop()
        return None

    def _connect(self) -> Any:
        seconds = self.publish_timeout
        options = {
            "socket_connect_timeout": seconds,  # Redis
            "socket_timeout": seconds,
            "read_timeout": seconds,  # RabbitMQ
            "write_timeout": seconds,
            "confirm_publish": True,
            # By default kombu retries without end. One retry is enough for a broker URL with two addresses.
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0,
        }
        return current_app.connection_for_write(connect_timeout=seconds, transport_options=options)

    def find_obstacles(self) -> Iterator[Obstacle]:
        """See QueuedDelivery.find_obstacles(). Connect to the broker, and ask the workers for a sign of life."""
        if current_app.conf.task_always_eager:
            return
        connection = self._connect()
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=_DOCTOR_SECONDS)
            has_workers = bool(current_app.control.ping(timeout=_DOCTOR_SECONDS, connection=connection))
        except Exception as error:
            what = f"Celery can't reach its broker ({type(error).__name__}), so no worker gets an event."
            yield "problem", what, "Start the broker, or correct Celery's broker_url.", "queue.no_broker"
        else:
            if not has_workers:
                what = "No Celery worker answered, so events wait in the queue."
                yield "warning", what, "Start a worker: `celery --app mysite worker`.", "queue.no_worker"
        finally:
            _disconnect(connection)

    def return_to_queue(self, events: Sequence[Event]) -> bool:
        """Ask the broker to keep the message, which the worker hasn't acknowledged yet."""
        self._count("handed_over", len(events))
        return False

    def close(self) -> None:
        """Close the idle connections and the fallback."""
        while (connection := self._take_idle()) is not None:
            _disconnect(connection)
        super().close()


def _disconnect(connection: Any) -> None:
    """Close a connection without waiting for the broker, which may hang."""
    with suppress(Exception):
        connection.collect(socket.getdefaulttimeout())


@part
def get_worker(runtime: Runtime) -> CeleryDelivery:
    """Return the delivery with which this worker sends messages."""
    return find_worker(CeleryDelivery, runtime)


@shared_task(  # type: ignore[untyped-decorator]
    name=TASK,
    acks_late=True,
    reject_on_worker_lost=True,
    acks_on_failure_or_timeout=False,
    ignore_result=True,
    serializer="json",
)
def deliver(message: str, workspace: str = DEFAULT) -> None:
    """Send the events of one page. A message of an unknown workspace stays in the queue, for a worker that knows it."""
    try:
        with use_workspace(workspace):
            is_done = get_worker().work(message)
    except ConfigurationError as error:
        log_once(("workspace", workspace), "A message stays in the queue: %s", error)
        is_done = False
    if not is_done:
        # The broker doesn't accept messages. Sleep, or it delivers this message again immediately.
        time.sleep(_REJECT_SECONDS)
        raise Reject("the broker should deliver it again", requeue=True)


deliver_outbox = shared_task(name=OUTBOX_TASK, ignore_result=True, enqueue=staticmethod(queued.enqueue))(
    queued.deliver_outbox
)
# A schedule may also name the task by its import path.
shared_task(name="django_moe_personalize.tasks.deliver_outbox", ignore_result=True)(queued.deliver_outbox)

"""Deliver from the workers of the site's Celery: what was handed over outlives every process of the site.

The page waits until the broker has taken its message, for ``publish_timeout`` at most, over a
connection of our own: Celery's waits as long as a broker that does not answer likes. A broker
that failed is left alone for a while, so that pages do not wait for it one after the other.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from celery import current_app, shared_task
from celery.exceptions import Reject

from django_moe_personalize.breaker import CircuitBreaker
from django_moe_personalize.delivery.queued import QueuedDelivery, get_worker
from django_moe_personalize.exceptions import DeliveryError
from django_moe_personalize.resilience import Deadline

TASK = "django_moe_personalize.deliver"
"""The name of the task, for ``task_routes``."""

_KEEP_SECONDS = 1.0


class CeleryDelivery(QueuedDelivery):
    """Publish one message a page, which a worker sends; a worker that is killed loses nothing.

    Publishing may last ``publish_timeout`` seconds. In the worker a call may last ``timeout``
    seconds; a failure is retried up to ``max_attempts`` times, after a full-jitter wait between
    nothing and ``backoff``, doubling to ``max_backoff``, or after the vendor's Retry-After. Wrong
    credentials cost no attempt: they are tried again after ``pause`` seconds, doubling to
    ``max_backoff``. What the broker does not take goes to ``fallback``, another delivery's
    ``{"BACKEND": …, "OPTIONS": …}``, or is dropped as ``broker``.
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
    ) -> None:
        if publish_timeout <= 0:
            raise ValueError(f"publish_timeout must be above 0, not {publish_timeout!r}")
        self._publish_timeout = publish_timeout
        self._breaker = CircuitBreaker(failure_threshold=2, open_seconds=2.0, max_open_seconds=30.0)
        self._idle: deque[Any] = deque()
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
        self._inherited, self._idle = self._idle, deque()

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
        try:
            self._publish_somehow(message, wait)
        except BaseException:
            self._breaker.failure(ticket)
            raise
        self._breaker.success(ticket)

    def _publish_somehow(self, message: str, wait: float) -> None:
        """Publish on an idle connection, or a new one if there is none or it turns out to have died."""
        deadline = Deadline(self._publish_timeout)
        while self._idle:
            connection = self._idle.pop()
            try:
                return self._publish(connection, message, wait)
            except Exception:
                # The others are as old; and what took long is no connection that had died.
                self.close_connections()
                if deadline.expired:
                    raise
        self._publish(self._connect(), message, wait)

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

    def _publish(self, connection: Any, message: str, wait: float) -> None:
        try:
            deliver.apply_async(
                (message,),
                # What Celery logs and tells its monitors of the arguments: not who saw what.
                argsrepr="(…)",
                kwargsrepr="{}",
                connection=connection,
                countdown=wait or None,
                serializer="json",
                ignore_result=True,
                retry=False,
                timeout=self._publish_timeout,
                confirm_timeout=self._publish_timeout,
            )
        except BaseException:
            _close(connection)
            raise
        self._idle.append(connection)

    def return_to_queue(self, events: Any) -> bool:
        """Ask the broker to keep the message: who delivered it has it still."""
        self._books.hand_over(len(events))
        return False

    def close(self) -> None:
        """Close the connections and the fallback."""
        self.close_connections()
        super().close()

    def close_connections(self) -> None:
        """Close the idle connections."""
        while self._idle:
            _close(self._idle.pop())


def _close(connection: Any) -> None:
    # Without a word of goodbye, for which a broker that hangs would have to be waited for.
    with suppress(Exception):
        connection.collect(socket.getdefaulttimeout())


@shared_task(  # type: ignore[untyped-decorator]
    name=TASK,
    acks_late=True,
    reject_on_worker_lost=True,
    acks_on_failure_or_timeout=False,
    ignore_result=True,
)
def deliver(message: str) -> None:
    """Send the events of one page."""
    if not get_worker(CeleryDelivery).work(message):
        # Not at once again, with a broker that takes nothing.
        time.sleep(_KEEP_SECONDS)
        raise Reject("to be delivered again", requeue=True)

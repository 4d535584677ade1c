"""The task ``deliver_outbox``, without a queue. See ``django_moe_personalize.tasks``."""

from __future__ import annotations

from typing import Any

from django_moe_personalize.conf import SETTING, ConfigurationError
from django_moe_personalize.delivery.base import find_delivery
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import log_once

MAX_SECONDS = 9.0
"""A little less than the ten seconds of the documented schedule."""


def deliver_outbox(max_seconds: float = MAX_SECONDS) -> int:
    """Send the due events of the site's outbox and return how many MoEngage accepted.

    Starts no batch after ``max_seconds``. Several processes may do this at once. A failure of MoEngage or the
    database ends it with a log line. After wrong credentials this process pauses, and returns 0 at once.
    """
    # Imported here: Celery may import its tasks before the app registry is ready for models.
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

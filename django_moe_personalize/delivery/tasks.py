"""Deliver from the workers of Django's tasks: ``django.tasks``, or before Django 6.0 its backport ``django_tasks``.

How safe events are between the page and the worker is up to the backend that the site has in TASKS.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone

from django_moe_personalize.delivery.queued import QueuedDelivery, get_worker

_task: Any = import_module("django.tasks" if find_spec("django.tasks") else "django_tasks").task

_MAX_SLEEP_SECONDS = 10.0


class TasksDelivery(QueuedDelivery):
    """Enqueue one task a page, in the caller's thread, with the backend that has the alias ``backend`` in TASKS.

    In the worker a call may last ``timeout`` seconds; a failure is retried up to ``max_attempts``
    times, after a full-jitter wait between nothing and ``backoff``, doubling to ``max_backoff``,
    or after the vendor's Retry-After. Wrong credentials cost no attempt: they are tried again
    after ``pause`` seconds, doubling to ``max_backoff``. What cannot be enqueued goes to
    ``fallback``, another delivery's ``{"BACKEND": …, "OPTIONS": …}``, or is dropped as ``broker``.
    With a backend that runs tasks at once nothing is retried: what fails is dropped as ``failed``.
    """

    # As many backends have their queue there.
    uses_database = True

    def __init__(
        self,
        *,
        backend: str = "default",
        fallback: Mapping[str, Any] | None = None,
        timeout: float = 10.0,
        max_attempts: int = 50,
        backoff: float = 1.0,
        max_backoff: float = 600.0,
        pause: float = 60.0,
    ) -> None:
        try:
            deliver.using(backend=backend)
        except ImproperlyConfigured as error:
            raise ValueError(f"backend {backend!r} cannot be used: {error}") from None
        self._alias = backend
        super().__init__(
            fallback=fallback,
            timeout=timeout,
            max_attempts=max_attempts,
            backoff=backoff,
            max_backoff=max_backoff,
            pause=pause,
        )

    def hand_over(self, message: str, *, wait: float = 0.0) -> None:
        """Enqueue a task; raises what the backend raises."""
        task = deliver.using(backend=self._alias)
        if wait and task.get_backend().supports_defer:
            task = task.using(run_after=timezone.now() + timedelta(seconds=wait))
        elif wait:
            # In a worker of a backend that knows no later.
            time.sleep(min(wait, _MAX_SLEEP_SECONDS))
        task.enqueue(message)


@_task  # type: ignore[untyped-decorator]
def deliver(message: str) -> None:
    """Send the events of one page."""
    get_worker(TasksDelivery).work(message)

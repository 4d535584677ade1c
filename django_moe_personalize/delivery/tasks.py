"""Hand events over to Django's tasks: ``django.tasks``, or its backport ``django_tasks`` before Django 6.0."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError
from django.dispatch import receiver
from django.utils import timezone

from django_moe_personalize.conf import DEFAULT
from django_moe_personalize.delivery import queued
from django_moe_personalize.delivery.queued import Obstacle, QueuedDelivery, find_worker
from django_moe_personalize.runtime import Runtime, part, use_workspace

_FRAMEWORK = "django.tasks" if find_spec("django.tasks") else "django_tasks"
_task: Any = import_module(_FRAMEWORK).task

_MAX_SLEEP_SECONDS = 10.0


@dataclass(kw_only=True, eq=False, repr=False)
class TasksDelivery(QueuedDelivery):
    """Enqueue one task for each page, in the caller's thread. ``backend`` is an alias in TASKS.

    For the other options see QueuedDelivery. If the backend runs a task immediately, in the caller's thread, failed
    events aren't sent again. They are dropped as ``failed``.
    """

    # Many backends keep their queue in the database.
    uses_database = True

    backend: str = "default"

    def __post_init__(self) -> None:
        try:
            deliver.using(backend=self.backend)
        except ImproperlyConfigured as error:
            raise ValueError(f"backend {self.backend!r} can't be used: {error}") from None
        super().__post_init__()

    def find_obstacles(self) -> Iterator[Obstacle]:
        """See QueuedDelivery.find_obstacles(). Ask the backend, and look for the tables of its app."""
        # Celery's workers import this package before Django can import models.
        from django_moe_personalize.delivery.outbox import has_table

        backend = deliver.using(backend=self.backend).get_backend()
        place = f'TASKS["{self.backend}"]'
        if isinstance(backend, import_module(f"{_FRAMEWORK}.backends.dummy").DummyBackend):
            what = f"{place} is the DummyBackend, which runs no task, so no event is delivered."
            yield "problem", what, "Use a backend that has a worker.", "queue.dummy"
        for message in backend.check():
            yield "problem", f"{place} doesn't work: {message.msg}.", str(message.hint or ""), "queue.backend"
        app = apps.get_containing_app_config(type(backend).__module__)
        if app is not None and not all(has_table(model) for model in app.get_models()):
            what = f"The database has no table for the tasks of {app.name}, so no event is delivered."
            yield "problem", what, "Run `manage.py migrate`.", "queue.no_table"

    def hand_over(self, message: str, *, wait: float = 0.0) -> None:
        """Enqueue a task. Raises the backend's errors."""
        task = deliver.using(backend=self.backend)
        if wait and task.get_backend().supports_defer:
            task = task.using(run_after=timezone.now() + timedelta(seconds=wait))
        elif wait:
            # The caller is a worker of a backend that can't delay a task.
            time.sleep(min(wait, _MAX_SLEEP_SECONDS))
        task.enqueue(message, *self.arguments)


@part
def get_worker(runtime: Runtime) -> TasksDelivery:
    """Return the delivery with which this worker sends messages."""
    return find_worker(TasksDelivery, runtime)


@_task  # type: ignore[untyped-decorator]
def deliver(message: str, workspace: str = DEFAULT) -> None:
    """Send the events of one page. Raises ConfigurationError for an unknown workspace."""
    with use_workspace(workspace):
        get_worker().work(message)


@receiver(import_module(f"{_FRAMEWORK}.signals").task_finished)
def _delete_row(*, task_result: Any, **kwargs: object) -> None:
    """Delete the row that django_tasks_db keeps of a finished task, because its message has a customer id."""
    row = getattr(task_result, "db_result", None)
    if row is not None and task_result.task.module_path == deliver.module_path:
        # An exception here would make a failed task of a delivered message.
        with suppress(DatabaseError):
            row.delete()


@_task  # type: ignore[untyped-decorator]
def deliver_outbox(max_seconds: float = queued.MAX_SECONDS, workspace: str | None = None) -> int:
    """See queued.deliver_outbox()."""
    return queued.deliver_outbox(max_seconds, workspace)

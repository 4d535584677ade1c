"""Where Celery's ``autodiscover_tasks()`` looks for tasks."""

from __future__ import annotations

from contextlib import suppress

with suppress(ModuleNotFoundError):
    # Others look for a module of this name too, on sites that have no Celery.
    from django_moe_personalize.delivery.celery import deliver as deliver

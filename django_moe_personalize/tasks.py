"""The task ``deliver_outbox``: send the events in the outbox of ``DatabaseDelivery``, like ``manage.py moe_deliver``.

Celery's ``autodiscover_tasks()`` finds this module. To run the task every ten seconds, add to your Celery settings::

    beat_schedule = {
        "deliver the outbox": {
            "task": "django_moe_personalize.deliver_outbox",
            "schedule": 10.0,
            "options": {"expires": 10.0},
        },
    }

A run starts no batch after ``max_seconds``, 9 by default. If the schedule is longer, give each run more time:
``"kwargs": {"max_seconds": 55.0}``. If no worker has started a run after ``expires`` seconds, Celery discards the run.
Several runs at the same time are safe. After a lost run the events stay in the database, and the next run sends them.

``deliver_outbox()`` sends events in the calling process and returns the number of delivered events. With Django's
tasks, call ``deliver_outbox.enqueue()`` from a scheduler such as cron. It uses the backend and the queue ``default``.
For another backend or queue, use the Django task ``django_moe_personalize.delivery.tasks.deliver_outbox``.
"""

from __future__ import annotations

from importlib.util import find_spec

# Without Celery, other task queues may import this module, because of its name.
if find_spec("celery") is None:
    from django_moe_personalize.delivery.queued import deliver_outbox as deliver_outbox
else:
    from django_moe_personalize.delivery.celery import deliver as deliver
    from django_moe_personalize.delivery.celery import deliver_outbox as deliver_outbox

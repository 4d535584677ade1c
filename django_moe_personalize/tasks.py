"""The task ``deliver_outbox``: send the events in the outbox of ``DatabaseDelivery``, like ``manage.py moe_deliver``.

Celery's ``autodiscover_tasks()`` finds this module. Let Celery beat publish the task, in the site's Celery settings::

    beat_schedule = {
        "deliver the outbox": {
            "task": "django_moe_personalize.deliver_outbox",
            "schedule": 10.0,
            "options": {"expires": 10.0},
        },
    }

A run starts no batch after ``max_seconds``, 9 by default. For a longer schedule give it more time:
``"kwargs": {"max_seconds": 55.0}``. ``expires`` discards old messages after a time without workers. Several runs at
once are safe, and a lost message does no harm: the events stay in the database, and the next run sends them.

``deliver_outbox()`` runs in the calling process and returns the number of delivered events. With Django's tasks, call
``deliver_outbox.enqueue()`` from a scheduler such as cron. For another backend or queue than ``default``, use the
Django task ``django_moe_personalize.delivery.tasks.deliver_outbox``.
"""

from __future__ import annotations

from importlib.util import find_spec

# Other queues import a module of this name too, on sites without Celery.
if find_spec("celery") is None:
    from django_moe_personalize.delivery.queued import deliver_outbox as deliver_outbox
else:
    from django_moe_personalize.delivery.celery import deliver as deliver
    from django_moe_personalize.delivery.celery import deliver_outbox as deliver_outbox

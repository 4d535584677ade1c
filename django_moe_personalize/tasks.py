"""The task ``deliver_outbox``: send the events in the outbox of ``DatabaseDelivery``, like ``manage.py moe_deliver``.

Celery's ``autodiscover_tasks()`` finds this module. The how-to guide ``docs/howto/delivery.md`` has a schedule for
Celery beat. With Django's tasks, call ``deliver_outbox.enqueue()`` from a scheduler such as cron. ``deliver_outbox()``
sends events in the calling process and returns the number of delivered events.
"""

from __future__ import annotations

from importlib.util import find_spec

# Without Celery, other task queues may import this module, because of its name.
if find_spec("celery") is None:
    from django_moe_personalize.delivery.queued import deliver_outbox as deliver_outbox
else:
    from django_moe_personalize.delivery.celery import deliver as deliver
    from django_moe_personalize.delivery.celery import deliver_outbox as deliver_outbox

"""The site that Celery's workers and beat load. Its configuration comes in CELERY_SITE; see brokers.py.

``python -m tests.services.celery_site PAGES SECONDS`` is its web process.
"""

import dataclasses
import json
import os
import sys
import time
from typing import Any

import django
from celery import Celery
from celery.signals import worker_ready
from django.conf import settings

from tests.delivery.events import CONTEXT

told: dict[str, Any] = json.loads(os.environ["CELERY_SITE"])
settings.configure(
    SECRET_KEY="site",
    INSTALLED_APPS=["django_moe_personalize"],
    DATABASES={"default": told["database"]} if told.get("database") else {},
    MOE_PERSONALIZE=told["moe"],
)
django.setup()

app = Celery("site", broker=told["broker"])
app.set_default()
app.conf.broker_connection_retry_on_startup = True
app.conf.broker_transport_options = told["transport"]
app.conf.beat_schedule = {
    "deliver the outbox": {
        "task": "django_moe_personalize.deliver_outbox",
        "schedule": 0.2,
        "kwargs": {"max_seconds": 2.0},
        "options": {"expires": 2.0},
    },
}
app.autodiscover_tasks(["django_moe_personalize"])


@worker_ready.connect
def tell_that_it_works(**_kwargs: Any) -> None:
    print(f"worker {os.getpid()} takes messages", flush=True)


def record(pages: int, seconds: float) -> dict[str, Any]:
    """Record two events a page. Report their UUIDs, the counters, and how long each page waited."""
    from django_moe_personalize.delivery.base import get_delivery
    from django_moe_personalize.moengage.types import Action, Event

    delivery, uuids, held = get_delivery(), [], []
    start, handed_over = time.monotonic(), 0
    for page in range(pages):
        events = [Event(Action.SHOWN, f"visitor-{page}", CONTEXT, int(time.time())) for _ in range(2)]
        before = time.monotonic()
        delivery.record(events)
        held.append(time.monotonic() - before)
        uuids += [event.event_uuid for event in events]
        if delivery.counts().handed_over >= 100 > handed_over:
            print("The broker accepts events.", flush=True)
        handed_over = delivery.counts().handed_over
        time.sleep(max(0.0, start + (page + 1) * seconds / pages - time.monotonic()))
    counts = delivery.flush(10)
    delivery.close()
    return {"uuids": uuids, "counts": dataclasses.asdict(counts), "held": held}


if __name__ == "__main__":
    print(json.dumps(record(int(sys.argv[1]), float(sys.argv[2]))), flush=True)

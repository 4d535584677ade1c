"""A Celery app whose task records two events; for test_delivery_exit.py."""

import os

from celery import Celery

from tests.delivery import site

app = Celery("jobs", broker=os.environ["BROKER"])
app.conf.broker_connection_retry_on_startup = True


@app.task(name="record")
def record() -> None:
    site.record(2)
    # Celery redirects print() to its log.
    os.write(1, b"recorded\n")

"""Deliverers of the outbox on SQLite: watching, stopping, and the task ``deliver_outbox``."""

import contextlib
import math

import pytest
from django.db import connection

from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.delivery.base import DeliveryCounts
from django_moe_personalize.delivery.database import PATIENCE, Deliverer
from django_moe_personalize.delivery.queued import deliver_outbox
from django_moe_personalize.models import OutboxEvent
from tests.delivery.conftest import make_due
from tests.delivery.events import make_events, messages

pytestmark = pytest.mark.django_db


def watch(delivery, *, until, interval=0.01):
    """Watch the outbox until ``until(batches)`` is true after a wait. Return the batches and the waits."""
    batches = []
    deliverer = Deliverer(delivery, on_batch=batches.append)
    wait = deliverer._wait
    waits = []

    def wait_a_little(seconds, deadline=None):
        waits.append(seconds)
        make_due()
        if until(batches) or len(waits) > 100:
            deliverer.stop()
        wait(min(seconds, 0.01), deadline)

    deliverer._wait = wait_a_little
    deliverer.watch(interval)
    return batches, waits


def test_watching_delivers_what_comes_later(delivery, vendor):
    """A watching deliverer looks again after the interval, also after failures, until it is stopped."""
    vendor.failures = [500] * (PATIENCE + 2)
    delivery.record(make_events(1))
    _, waits = watch(delivery, until=lambda batches: vendor.taken)
    assert len(vendor.calls) == PATIENCE + 3
    assert waits[-1] == 0.01
    delivery.record(make_events(1))
    watch(delivery, until=lambda batches: vendor.taken.total() == 2)
    assert delivery.counts() == DeliveryCounts(accepted=2, delivered=2)


def test_watching_pauses_longer_after_each_rejection(build_outbox, vendor):
    """The deliverer makes one call after each pause. Each pause is twice as long, until a call succeeds."""
    delivery = build_outbox(pause=60.0)
    vendor.failures = [401, 401, 401, 200]
    delivery.record(make_events(1))
    _, waits = watch(delivery, until=lambda batches: len(batches) == 4)
    assert [math.ceil(wait) for wait in waits] == [60, 120, 240, 1]


@pytest.mark.django_db(transaction=True)
def test_watching_survives_the_database(delivery, vendor, caplog):
    """A failing database is a log line without the database's message, and a wait."""
    table = OutboxEvent._meta.db_table
    delivery.record(make_events(1))
    deliverer = Deliverer(delivery, on_batch=lambda outcome: deliverer.stop())
    lines = []

    def wait(seconds, deadline=None):
        lines[:] = messages(caplog)
        if len(lines) == 2 and not vendor.taken:
            rename("away", table)

    deliverer._wait = wait
    rename(table, "away")
    deliverer.watch(0.01)
    assert vendor.taken.total() == 1
    assert lines == [("WARNING", "The outbox can't be used at the moment: OperationalError")] * 2


def rename(old, new):
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")


# -- deliver_outbox


def test_the_task_drains_the_outbox(delivery, vendor):
    """deliver_outbox() returns the number of delivered events. It starts no batch after max_seconds."""
    events = make_events(151)
    vendor.poison = {events[7].event_uuid}
    delivery.record(events)
    assert deliver_outbox(max_seconds=0.0) == vendor.arrived == 0
    assert deliver_outbox() == vendor.taken.total() == 150
    assert deliver_outbox() == 0
    assert delivery.counts() == DeliveryCounts(accepted=151, delivered=150, dropped={"refused": 1})


def test_the_task_ends_quietly_when_moengage_fails(delivery, vendor, caplog):
    """The events wait for the next run."""
    vendor.status = 500
    delivery.record(make_events(600))
    assert deliver_outbox() == 0
    assert len(vendor.calls) == PATIENCE
    assert [level for level, _ in messages(caplog)] == ["WARNING"]


def test_the_task_pauses_after_wrong_credentials(delivery, vendor, caplog):
    """Three runs in a pause make one call and log one error. After the pause, the next run tries again."""
    vendor.status = 401
    delivery.record(make_events(2))
    assert [deliver_outbox() for _ in range(3)] == [0, 0, 0]
    assert len(vendor.calls) == 1
    assert [level for level, _ in messages(caplog)] == ["ERROR"]
    vendor.status, delivery._resume_at = 200, 0.0
    assert deliver_outbox() == 2
    assert delivery.pause_left == 0.0


@pytest.mark.django_db(transaction=True)
def test_the_task_ends_quietly_when_the_database_fails(delivery, caplog):
    """The log line has the class of the error, and not its text."""
    table = OutboxEvent._meta.db_table
    rename(table, "away")
    try:
        assert deliver_outbox() == 0
    finally:
        rename("away", table)
    assert messages(caplog) == [("WARNING", "The outbox can't be used at the moment: OperationalError")]


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("dummy.DummyDelivery", {}, 'Set MOE_PERSONALIZE["DELIVERY"] to DatabaseDelivery'),
        ("database.DatabaseDelivery", {"lease": 0.1}, "lease must be at least 1 second"),
    ],
    ids=["no outbox", "a mistake"],
)
def test_the_task_names_a_mistake_in_the_settings_once(configure, caplog, name, options, line):
    """Many runs of the task log the mistake only once."""
    with contextlib.suppress(ConfigurationError):
        configure(name, **options)
    assert [deliver_outbox() for _ in range(3)] == [0, 0, 0]
    ((level, text),) = messages(caplog)
    assert level == "WARNING"
    assert line in text

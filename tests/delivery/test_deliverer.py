"""Deliverers of the outbox on SQLite: watching, the task ``deliver_outbox`` and ``manage.py moe_deliver``."""

import contextlib
import io
import math
import os
import re
import signal
import threading
import uuid

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper

from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.delivery.base import DeliveryCounts
from django_moe_personalize.delivery.database import PATIENCE, Deliverer
from django_moe_personalize.delivery.queued import deliver_outbox
from tests.delivery.conftest import make_due, without_table
from tests.delivery.events import make_events, messages
from tests.delivery.vendor import SOON

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
    delivery.record(make_events(1))
    deliverer = Deliverer(delivery, on_batch=lambda outcome: deliverer.stop())
    failures = []

    def wait(seconds, deadline=None):
        failures.append(seconds)
        if len(failures) == 3:
            table.close()

    deliverer._wait = wait
    with contextlib.ExitStack() as table:
        table.enter_context(without_table())
        deliverer.watch(0.01)
    assert vendor.taken.total() == 1
    assert [text.partition(".")[0] for _, text in messages(caplog)] == [
        "The deliverer can't use the outbox (OperationalError)",
        "The deliverer can use the outbox again after 0 s (3 failed)",
    ]


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
def test_a_missing_table(delivery, caplog):
    """The task logs the class of the error, and not its text. The command names the command that creates the table."""
    with without_table():
        assert deliver_outbox() == 0
        run(error="migrate --database default")
    ((level, text),) = messages(caplog)
    assert (level, text.partition(".")[0]) == ("WARNING", "The deliverer can't use the outbox (OperationalError)")


@pytest.mark.parametrize(
    ("name", "options", "logged", "error"),
    [
        (
            "dummy.DummyDelivery",
            {},
            'Set MOE_PERSONALIZE["DELIVERY"] to DatabaseDelivery',
            "dummy.DummyDelivery, which has no outbox. Set it to .*database.DatabaseDelivery",
        ),
        ("database.DatabaseDelivery", {"lease": 0.1}, "must be at least 1 second", "lease must be at least 1 second"),
    ],
)
def test_settings_without_an_outbox(configure, caplog, name, options, logged, error):
    """Many runs of the task log the mistake only once. The command ends with an error that names the setting."""
    with contextlib.suppress(ConfigurationError):
        configure(name, **options)
    assert [deliver_outbox() for _ in range(3)] == [0, 0, 0]
    ((level, text),) = messages(caplog)
    assert (level, logged in text) == ("WARNING", True)
    run(error=error)


def run(*arguments, error=None, stderr=None):
    """Run the command and return its output. Expect the CommandError ``error`` if given."""
    stdout = io.StringIO()
    with pytest.raises(CommandError, match=error) if error else contextlib.nullcontext():
        call_command("moe_deliver", *arguments, stdout=stdout, stderr=stderr or io.StringIO())
    return stdout.getvalue()


def test_replayed_events_are_sent_again(delivery, vendor):
    """The command sends the parked events with the given UUIDs, or all parked events."""
    events = make_events(3)
    vendor.poison = {event.event_uuid for event in events}
    delivery.record(events)
    assert run() == "0 events delivered, 3 refused and parked, 0 pending.\n"
    vendor.poison = set()
    said = run("--replay", events[0].event_uuid, str(uuid.uuid4()))
    assert said.startswith("1 parked events are due again.\n1 events delivered,")
    assert delivery.counts() == DeliveryCounts(accepted=3, delivered=1, dropped={"refused": 2})
    assert run("--replay").startswith("2 parked events are due again.\n2 events delivered,")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, "credentials don't work .AuthenticationError.*so the events wait. Check WORKSPACE_ID"),
        (500, "MoEngage fails .ServerError.*wait for the next run"),
    ],
)
def test_a_failure_is_an_error(delivery, vendor, status, error):
    """The events wait for the next run, and the scheduler sees an exit code."""
    vendor.status = status
    delivery.record(make_events(600))
    assert run(error=error) == "0 events delivered, 0 refused and parked, 600 pending.\n"


def test_only_a_terminal_shows_a_bar(delivery):
    """A terminal shows the progress, a log file does not."""
    terminal, log = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True
    delivery.record(make_events(200))
    assert run(stderr=terminal) == "200 events delivered, 0 refused and parked, 0 pending.\n"
    bars = [line for line in re.split(r"[\r\n]", terminal.getvalue()) if line]
    assert bars == [f"[{'#' * 15}{'.' * 15}]  50%", f"[{'#' * 30}] 100%"]
    delivery.record(make_events(100))
    run(stderr=log)
    run("--verbosity", "0", stderr=terminal)
    assert log.getvalue() == ""


@pytest.mark.parametrize("interval", ["0", "-1", "nan"])
def test_the_interval_is_above_zero(delivery, interval):
    """Without a pause the command would load the database all the time."""
    run(f"--watch={interval}", error="--watch must be a number of seconds above 0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_watch_after_the_current_batch(delivery, vendor, number):
    """The command settles the events in flight, ends without an error, and restores the process's signal handlers."""
    before = signal.getsignal(number)
    delivery.record(make_events(150))
    vendor.hang.clear()

    def end():
        vendor.wait_for(lambda vendor: vendor.arrived)
        os.kill(os.getpid(), number)
        vendor.hang.set()

    thread = threading.Thread(target=end)
    thread.start()
    said = run("--watch", "0.02")
    thread.join(SOON)
    assert said.startswith("Watching the outbox. Ctrl-C ends it.\n")
    assert said.endswith("100 events delivered, 0 refused and parked, 50 pending.\n")
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_there_are_no_signals(delivery):
    """A site may call the command in a thread."""
    said = []

    def deliver_nothing():
        said.append(run())
        # The close() of SQLite's connection keeps a database in memory open.
        BaseDatabaseWrapper.close(connection)

    thread = threading.Thread(target=deliver_nothing)
    thread.start()
    thread.join(SOON)
    assert said == ["0 events delivered, 0 refused and parked, 0 pending.\n"]

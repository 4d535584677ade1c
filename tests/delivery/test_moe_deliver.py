"""``manage.py moe_deliver``: a single run, watching, replaying, and its output."""

import io
import os
import re
import signal
import threading
import uuid
from functools import partial

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import override_settings

from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.delivery.base import DeliveryCounts
from django_moe_personalize.models import OutboxEvent
from tests.delivery.events import make_events
from tests.delivery.vendor import SOON

pytestmark = pytest.mark.django_db

POLL = "0.02"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(*arguments, error=None, stderr=None):
    """Run the command and return its output. Expect the CommandError ``error`` if given."""
    stdout = io.StringIO()
    run = partial(call_command, "moe_deliver", *arguments, stdout=stdout, stderr=stderr or io.StringIO())
    if error is None:
        run()
    else:
        with pytest.raises(CommandError, match=error):
            run()
    return stdout.getvalue()


def test_due_events_are_sent_once(delivery, vendor):
    """The command drains the outbox and prints the numbers, even if no event is due."""
    delivery.record(make_events(150))
    assert run() == "150 events delivered, 0 refused and parked, 0 pending.\n"
    assert vendor.taken.total() == 150
    assert run() == "0 events delivered, 0 refused and parked, 0 pending.\n"


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
    terminal, log = Terminal(), io.StringIO()
    delivery.record(make_events(200))
    run(stderr=terminal)
    bars = [line for line in re.split(r"[\r\n]", terminal.getvalue()) if line]
    assert bars == [f"[{'#' * 15}{'.' * 15}]  50%", f"[{'#' * 30}] 100%"]
    delivery.record(make_events(100))
    run(stderr=log)
    run("--verbosity", "0", stderr=terminal)
    assert log.getvalue() == ""


def test_settings_without_an_outbox_are_an_error(configure):
    """The message names the setting and its value, or is the configuration error."""
    configure("dummy.DummyDelivery")
    run(error="dummy.DummyDelivery, which has no outbox. Set it to .*database.DatabaseDelivery")
    with pytest.raises(ConfigurationError):
        configure("database.DatabaseDelivery", lease=0.1)
    run(error="lease must be at least 1 second")


def test_a_missing_table_is_an_error(delivery):
    """The message names the command that creates it."""
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {OutboxEvent._meta.db_table} RENAME TO away")
    run(error="migrate --database default")


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
    said = run("--watch", POLL)
    thread.join(SOON)
    assert said.startswith("Watching the outbox. Ctrl-C ends it.\n")
    assert said.endswith("100 events delivered, 0 refused and parked, 50 pending.\n")
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_there_are_no_signals(delivery):
    """A site may call the command in a thread."""
    with override_settings():
        said = []
        thread = threading.Thread(target=lambda: said.append(deliver_nothing()))
        thread.start()
        thread.join(SOON)
    assert said == ["0 events delivered, 0 refused and parked, 0 pending.\n"]


def deliver_nothing():
    """Run the command and close the connection of this thread."""
    try:
        return run()
    finally:
        # The close() of SQLite's connection keeps a database in memory open.
        BaseDatabaseWrapper.close(connection)

"""``manage.py moe_deliver``: a single run, watching, replaying, and its output."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from functools import partial

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import override_settings

from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.models import OutboxEvent
from tests.delivery.events import backend, make_events
from tests.delivery.vendor import SOON
from tests.documents import ROOT

pytestmark = pytest.mark.django_db

POLL = "0.02"


class Terminal(io.StringIO):
    """A text stream that claims to be a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def outbox(settings, vendor):
    """Deliver to the vendor from an outbox."""
    settings.MOE_PERSONALIZE = vendor.settings(
        DELIVERY=backend("database.DatabaseDelivery", backoff=0.001, max_backoff=0.01)
    )
    return get_delivery().outbox


def deliver(*arguments, error=None, stderr=None):
    """Run the command and return its output. Expect the CommandError ``error`` if given."""
    stdout = io.StringIO()
    run = partial(call_command, "moe_deliver", *arguments, stdout=stdout, stderr=stderr or io.StringIO())
    if error is None:
        run()
    else:
        with pytest.raises(CommandError, match=error):
            run()
    return stdout.getvalue()


def test_due_events_are_sent_once(outbox, vendor):
    """It drains the outbox and prints the numbers, also if there is nothing to do."""
    get_delivery().record(make_events(150))
    assert deliver() == "150 events delivered, 0 refused and parked, 0 pending.\n"
    assert vendor.taken.total() == 150
    assert deliver() == "0 events delivered, 0 refused and parked, 0 pending.\n"


def test_replayed_events_are_sent_again(outbox, vendor):
    """Some parked events by UUID, or all of them, are due again and sent."""
    events = make_events(3)
    vendor.poison = {event.event_uuid for event in events}
    get_delivery().record(events)
    assert deliver() == "0 events delivered, 3 refused and parked, 0 pending.\n"
    vendor.poison = set()
    said = deliver("--replay", events[0].event_uuid, str(uuid.uuid4()))
    assert said.startswith("1 parked events are due again.\n1 events delivered,")
    assert deliver("--replay").startswith("2 parked events are due again.\n2 events delivered,")


def test_wrong_credentials_are_an_error(outbox, vendor):
    """A person has to act: the exit code is not 0, and the events wait."""
    vendor.status = 401
    get_delivery().record(make_events(2))
    said = deliver(error="credentials don't work .AuthenticationError.*so the events wait. Check WORKSPACE_ID")
    assert said == "0 events delivered, 0 refused and parked, 2 pending.\n"


def test_a_failing_vendor_is_an_error(outbox, vendor):
    """The events wait for the next run, and the scheduler sees an exit code."""
    vendor.status = 500
    get_delivery().record(make_events(600))
    assert "600 pending" in deliver(error="MoEngage fails .ServerError.*wait for the next run")


def test_only_a_terminal_shows_a_bar(outbox):
    """A terminal shows the progress, a log file does not."""
    terminal, log = Terminal(), io.StringIO()
    get_delivery().record(make_events(200))
    deliver(stderr=terminal)
    bars = [line for line in re.split(r"[\r\n]", terminal.getvalue()) if line]
    assert bars == [f"[{'#' * 15}{'.' * 15}]  50%", f"[{'#' * 30}] 100%"]
    get_delivery().record(make_events(100))
    deliver(stderr=log)
    deliver("--verbosity", "0", stderr=terminal)
    assert log.getvalue() == ""


def test_other_deliveries_have_no_outbox(settings):
    """The message names the setting and its value."""
    settings.MOE_PERSONALIZE = {"SANDBOX": True, "DELIVERY": backend("dummy.DummyDelivery")}
    deliver(error="dummy.DummyDelivery, which has no outbox. Set it to .*database.DatabaseDelivery")


def test_settings_that_cannot_be_used_are_an_error(settings):
    """The command prints the configuration error."""
    settings.MOE_PERSONALIZE = {"SANDBOX": True, "DELIVERY": backend("database.DatabaseDelivery", lease=0.1)}
    deliver(error="lease must be at least 1 second")


def test_a_missing_table_is_an_error(outbox):
    """The message names the command that creates it."""
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {OutboxEvent._meta.db_table} RENAME TO away")
    deliver(error="migrate --database default")


@pytest.mark.parametrize("interval", ["0", "-1", "nan"])
def test_the_interval_is_above_zero(outbox, interval):
    """Without a pause the command would load the database all the time."""
    deliver(f"--watch={interval}", error="--watch must be a number of seconds above 0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_watch_after_the_current_batch(outbox, vendor, number):
    """Events in flight are settled, there is no error, and the process gets its own handlers back."""
    before = signal.getsignal(number)
    get_delivery().record(make_events(150))
    vendor.hang.clear()

    def end():
        vendor.wait_for(lambda vendor: vendor.arrived)
        os.kill(os.getpid(), number)
        vendor.hang.set()

    thread = threading.Thread(target=end)
    thread.start()
    said = deliver("--watch", POLL)
    thread.join(SOON)
    assert said.endswith("100 events delivered, 0 refused and parked, 50 pending.\n")
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_there_are_no_signals(outbox):
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
        return deliver()
    finally:
        # The close() of SQLite's connection keeps a database in memory open.
        BaseDatabaseWrapper.close(connection)


def test_a_process_watches_until_it_is_terminated(tmp_path, vendor):
    """As in a service: it prints its start, delivers the events, and ends with 0."""
    site = tmp_path / "site_settings.py"
    site.write_text(
        "from tests.settings import *\n"
        f"DATABASES = {{'default': {{'ENGINE': 'django.db.backends.sqlite3', 'NAME': {str(tmp_path / 'db')!r}}}}}\n"
        f"MOE_PERSONALIZE = {vendor.settings(DELIVERY=backend('database.DatabaseDelivery'))!r}\n"
    )
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "site_settings",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path))),
    }
    run = partial(subprocess.run, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=60)
    run([sys.executable, "-m", "django", "migrate", "--verbosity", "0"])
    run([sys.executable, "-c", RECORD, json.dumps([event.customer_id for event in make_events(3)])])
    command = [sys.executable, "-m", "django", "moe_deliver", "--watch", POLL]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        announced = process.stdout.readline()
        vendor.wait_for(lambda vendor: vendor.taken.total() == 3)
        process.terminate()
        said = process.stdout.read()
    assert announced == "Watching the outbox. Ctrl-C ends it.\n"
    assert said == "3 events delivered, 0 refused and parked, 0 pending.\n"
    assert process.returncode == 0


RECORD = """
import json, sys
import django
django.setup()
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.moengage.types import Action, Event
events = [Event(Action.SHOWN, customer, {"cid": "c"}, 1_760_000_000) for customer in json.loads(sys.argv[1])]
get_delivery().record(events)
"""

"""A process delivers its events before it ends: real processes, real servers, real signals."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from tests.delivery.vendor import SOON
from tests.pages import BROWSER
from tests.services.serving import ROOT


def start(vendor, *command, **options):
    """Start a Python program that sends events only when a batch is full or the process ends."""
    delivery = {
        "BACKEND": "django_moe_personalize.delivery.thread.ThreadDelivery",
        "OPTIONS": {"interval": 600.0, "backoff": 0.05, **options},
    }
    environment = {**os.environ, "SITE_MOE_PERSONALIZE": json.dumps(vendor.settings(DELIVERY=delivery))}
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, **out)


def run_script(vendor, way, count):
    """Run the script. Return its exit code, its stderr, and the seconds that its end took."""
    process = start(vendor, "-m", "tests.delivery.site", way, str(count))
    recorded, errors = process.communicate(timeout=60)
    return process.returncode, errors, time.monotonic() - float(recorded)


@pytest.mark.parametrize(
    ("way", "code", "expected"),
    [("return", 0, 251), ("exit", 0, 251), ("error", 1, 251), ("interrupt", -signal.SIGINT, 251), ("thread", 0, 252)],
)
def test_a_process_delivers_its_events_before_it_ends(vendor, way, code, expected):
    """Returning, sys.exit, an error, Ctrl-C and a thread that ends last: each way delivers all events once."""
    returncode, _, _ = run_script(vendor, way, 250)
    assert (returncode, vendor.taken.total(), len(vendor.taken)) == (code, expected, expected)


def test_exit_retries_within_its_time(vendor):
    """A short outage at the end costs nothing."""
    vendor.failures = [500, 503]
    assert run_script(vendor, "exit", 50)[0] == 0
    assert (vendor.taken.total(), len(vendor.taken)) == (51, 51)


@pytest.mark.parametrize("trouble", ["hangs", "fails", "refuses"])
def test_exit_takes_two_seconds_at_most_when_the_vendor_is_down(vendor, trouble):
    """The process ends soon and without an error. One log line counts the lost events."""
    if trouble == "hangs":
        vendor.hang.clear()
    elif trouble == "fails":
        vendor.status = 500
    else:
        vendor.url = "http://127.0.0.1:9/v1"
    code, errors, seconds = run_script(vendor, "exit", 250)
    assert code == 0
    assert 1.0 < seconds < 4.0
    assert errors.count("Dropped 251 events: MoEngage didn't accept them before the process ended") == 1
    assert "Traceback" not in errors
    assert vendor.taken.total() == 0


def test_exit_takes_no_time_with_wrong_credentials(vendor):
    """Waiting can't help against a wrong key."""
    vendor.status = 401
    code, errors, _ = run_script(vendor, "exit", 5)
    assert code == 0
    assert len(vendor.calls) == 1
    assert errors.count("the credentials don't work") == 1
    assert errors.count("Dropped 6 events") == 1


@contextmanager
def serving(vendor, *command, **options):
    """Run the site under a server. Yield its address and its process, end it with SIGTERM and wait for its end."""
    process = start(vendor, *command, **options)
    try:
        starts = (re.search(r"(?:Listening at:|running on) http://([0-9.:]+)", line) for line in process.stderr)
        yield next(filter(None, starts))[1], process
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait(SOON)


@pytest.mark.parametrize("options", [(), ("--worker-class", "gthread", "--threads", "4")], ids=["sync", "gthread"])
def test_gunicorn_delivers_everything_after_sigterm(vendor, options):
    """Two workers, forked from a master with an event of its own, deliver each event once before they end."""
    command = ("gunicorn", "--bind", "127.0.0.1:0", "--workers", "2", "--preload", *options)
    with serving(vendor, "-m", *command, "tests.delivery.site:application") as (address, _):
        recorded = [read(address, "/") for _ in range(260)]
        before = vendor.taken.total()
    assert before < 260
    assert set(recorded) <= set(vendor.taken)
    assert set(vendor.taken.values()) == {1}
    # And one event of the master.
    assert len(vendor.taken) == len(set(recorded)) + 1 == 261


UVICORN = ("-m", "uvicorn", "--port", "0", "--lifespan", "off", "tests.delivery.site:asgi")
"""It loads the site, then installs its signal handlers."""

SERVE = 'import uvicorn; uvicorn.Server(uvicorn.Config("tests.delivery.site:asgi", port=0, lifespan="off")).run()'

UVICORN_SERVER = ("-c", SERVE)
"""It installs its signal handlers, then loads the site, as with --workers and in gunicorn's workers."""


@pytest.mark.parametrize("path", ["/", "/async/"])
@pytest.mark.parametrize("command", [UVICORN, UVICORN_SERVER], ids=["command", "server"])
def test_uvicorn_delivers_everything_after_sigterm_and_ends_by_it(vendor, command, path, monkeypatch):
    """After its last request uvicorn raises the signal again. The events are sent first, then the signal kills it."""
    if command is UVICORN:
        # coverage would install a handler of its own, and then there is no default one.
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        monkeypatch.delenv("COVERAGE_PROCESS_START", raising=False)
    with serving(vendor, *command, exit_timeout=SOON) as (address, process):
        recorded = [read(address, path) for _ in range(20)]
        before = vendor.taken.total()
    assert (before, process.returncode) == (0, -signal.SIGTERM)
    assert set(recorded) < set(vendor.taken)
    assert set(vendor.taken.values()) == {1}


def read(address, path):
    connection = http.client.HTTPConnection(address, timeout=SOON)
    connection.request("GET", path, headers={"User-Agent": BROWSER})
    page = connection.getresponse().read().decode()
    connection.close()
    return page

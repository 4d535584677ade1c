"""What a process recorded is delivered before it ends: real processes, real servers, real signals."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.delivery.vendor import SOON, Vendor

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def vendor():
    with Vendor() as vendor:
        yield vendor


def start(vendor, *command, **options):
    """Start a program of this Python that only delivers when a batch is full or the process ends."""
    delivery = {
        "BACKEND": "django_moe_personalize.delivery.thread.ThreadDelivery",
        "OPTIONS": {"interval": 600.0, "backoff": 0.05, **options},
    }
    environment = {**os.environ, "SITE_MOE_PERSONALIZE": json.dumps(vendor.settings(DELIVERY=delivery))}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_script(vendor, way, count):
    """Run the script and return its exit code, what it wrote to stderr, and the seconds its end took."""
    process = start(vendor, "-m", "tests.delivery_site", way, str(count))
    recorded, errors = process.communicate(timeout=60)
    return process.returncode, errors, time.monotonic() - float(recorded)


@pytest.mark.parametrize(
    ("way", "code", "expected"),
    [("return", 0, 251), ("exit", 0, 251), ("error", 1, 251), ("interrupt", -signal.SIGINT, 251), ("thread", 0, 252)],
)
def test_whatever_ends_a_process_its_events_are_delivered_first(vendor, way, code, expected):
    """Returning, sys.exit, an error, Ctrl-C and a thread that outlives the main one: all deliver everything once."""
    returncode, _, _ = run_script(vendor, way, 250)
    assert (returncode, vendor.taken.total(), len(vendor.taken)) == (code, expected, expected)


def test_exit_retries_within_its_time(vendor):
    """An outage of a moment at the end costs nothing."""
    vendor.failures = [500, 503]
    assert run_script(vendor, "exit", 50)[0] == 0
    assert (vendor.taken.total(), len(vendor.taken)) == (51, 51)


@pytest.mark.parametrize("trouble", ["hangs", "fails", "refuses"])
def test_exit_takes_two_seconds_at_most_when_the_vendor_is_down(vendor, trouble):
    """Whatever is wrong the process ends soon, cleanly, with one line that counts what was lost."""
    if trouble == "hangs":
        vendor.hang.clear()
    elif trouble == "fails":
        vendor.status = 500
    else:
        vendor.url = "http://127.0.0.1:9/v1"
    code, errors, seconds = run_script(vendor, "exit", 250)
    assert code == 0
    assert 1.0 < seconds < 4.0
    assert errors.count("251 events were not delivered before the exit and are dropped") == 1
    assert "Traceback" not in errors
    assert vendor.taken.total() == 0


def test_exit_takes_no_time_with_wrong_credentials(vendor):
    """A key that is wrong is no better two seconds later."""
    vendor.status = 401
    code, errors, _ = run_script(vendor, "exit", 5)
    assert code == 0
    assert len(vendor.calls) == 1
    assert errors.count("MoEngage takes no events with these settings") == 1
    assert errors.count("6 events were not delivered") == 1


@contextmanager
def gunicorn(vendor, *options):
    """Run the site under gunicorn, yield its address, end it with SIGTERM and wait until it is gone."""
    address = ("--bind", "127.0.0.1:0", "--workers", "2", "--preload")
    process = start(vendor, "-m", "gunicorn", *address, *options, "tests.delivery_site:application")
    try:
        for line in process.stderr:
            if found := re.search(r"Listening at: http://([0-9.:]+)", line):
                yield found[1]
                break
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait(SOON)


@pytest.mark.parametrize("options", [(), ("--worker-class", "gthread", "--threads", "4")], ids=["sync", "gthread"])
def test_gunicorn_delivers_everything_after_sigterm(vendor, options):
    """Forked from a master that has recorded already, two workers deliver each event once before they end."""
    with gunicorn(vendor, *options) as address:
        recorded = [read(address, "/") for _ in range(260)]
        before = vendor.taken.total()
    assert before < 260
    assert set(recorded) <= set(vendor.taken)
    assert set(vendor.taken.values()) == {1}
    # One more: the master's own.
    assert len(vendor.taken) == len(set(recorded)) + 1 == 261


UVICORN = ("-m", "uvicorn", "--port", "0", "--lifespan", "off", "tests.delivery_site:asgi")
"""It loads the site, then takes the signal over."""

SERVE = 'import uvicorn; uvicorn.Server(uvicorn.Config("tests.delivery_site:asgi", port=0, lifespan="off")).run()'

UVICORN_SERVER = ("-c", SERVE)
"""It takes the signal over, then loads the site, as it does with --workers and in gunicorn's workers."""


@pytest.mark.parametrize("path", ["/", "/async/"])
@pytest.mark.parametrize("command", [UVICORN, UVICORN_SERVER], ids=["command", "server"])
def test_uvicorn_delivers_everything_after_sigterm_and_ends_by_it(vendor, command, path, monkeypatch):
    """Its requests over, it raises the signal again: what is held is sent first, then the process dies of it."""
    if command is UVICORN:
        # Measured it would have a handler of coverage's, and so none that is the default.
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        monkeypatch.delenv("COVERAGE_PROCESS_START", raising=False)
    process = start(vendor, *command, exit_timeout=SOON)
    try:
        line = next(line for line in process.stderr if "running on" in line)
        address = re.search(r"http://([0-9.:]+)", line)[1]
        recorded = [read(address, path) for _ in range(20)]
        before = vendor.taken.total()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait(SOON)
    assert (before, process.returncode) == (0, -signal.SIGTERM)
    assert set(recorded) < set(vendor.taken)
    assert set(vendor.taken.values()) == {1}


def read(address, path):
    """Return a page, over a connection of its own."""
    connection = http.client.HTTPConnection(address, timeout=SOON)
    connection.request("GET", path)
    page = connection.getresponse().read().decode()
    connection.close()
    return page

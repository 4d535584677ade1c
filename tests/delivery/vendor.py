"""A MoEngage on loopback that records calls and fails as ordered, and programs that send events to it."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from tests.loopback import Loopback

SOON = 10.0
"""Seconds after which a test gives up waiting."""

TITLES = {400: "Invalid Field Value", 401: "Authentication required"}


ROOT = Path(__file__).resolve().parents[2]


def start(vendor, *command, environment=(), **options):
    """Start a Python program that sends events only when a batch is full or the process ends."""
    delivery = {
        "BACKEND": "django_moe_personalize.delivery.thread.ThreadDelivery",
        "OPTIONS": {"interval": 600.0, "backoff": 0.05, **options},
    }
    told = {**os.environ, "SITE_MOE_PERSONALIZE": json.dumps(vendor.settings(DELIVERY=delivery)), **dict(environment)}
    # coverage would install a handler for SIGTERM, and then there is no default handler.
    told = {name: value for name, value in told.items() if not name.startswith("COVERAGE_PROCESS")}
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=told, **out)


def run_script(vendor, way, count):
    """Run tests.delivery.site. Return its exit code, its stderr, and the seconds that its end took."""
    with start(vendor, "-m", "tests.delivery.site", way, str(count)) as process:
        recorded, errors = process.communicate(timeout=200)
        return process.returncode, errors, time.monotonic() - float(recorded)


class Vendor:
    """The events endpoint, and the Data API, whose calls get ``data_status``.

    ``arrived`` counts calls. ``calls`` has (status, UUIDs) of each answered call, ``bodies`` its body. ``taken``
    counts each UUID answered with 200. ``failures`` are the statuses of the next calls, ``status`` is that of all
    others. A call with a UUID in ``poison`` gets a 400. A call waits while ``hang`` is clear, and then for ``delay``
    seconds.
    """

    def __init__(self):
        self.status = self.data_status = 200
        self.failures = []
        self.poison = set()
        self.title = None
        self.description = "no"
        self.delay = 0.0
        self.headers = {}
        self.arrived = 0
        self.calls = []
        self.bodies = []
        self.taken = Counter()
        self.changed = threading.Condition()
        self.hang = threading.Event()
        self.hang.set()
        self._server = Loopback(self._serve)
        self.url = self._server.url

    def __enter__(self):
        self._server.__enter__()
        return self

    def __exit__(self, *exc_info):
        self.hang.set()
        self._server.__exit__()

    def recover(self):
        self.status, self.data_status, self.failures, self.poison = 200, 200, [], set()
        self.hang.set()

    def settings(self, **changes):
        return {
            "WORKSPACE_ID": "TESTS",
            "API_KEY": "tests",
            "DATA_API_KEY": "data",
            "BASE_URL": self.url,
            "SANDBOX": False,
            **changes,
        }

    def wait_for(self, reached):
        """Wait until ``reached(self)`` holds and return whether it did."""
        with self.changed:
            return self.changed.wait_for(lambda: reached(self), SOON)

    def _serve(self, exchange):
        body = json.loads(exchange.received.body)
        is_data = exchange.received.target.startswith("/v1/event/")
        actions = [action for element in ([body] if is_data else body["elements"]) for action in element["actions"]]
        uuids = [action["attributes"]["event_uuid"] if is_data else action["moe_event_uuid"] for action in actions]
        with self.changed:
            self.arrived += 1
            self.changed.notify_all()
        self.hang.wait(SOON)
        time.sleep(self.delay)
        with self.changed:
            status = self.data_status if is_data else self.failures.pop(0) if self.failures else self.status
            if self.poison.intersection(uuids):
                status = 400
            self.calls.append((status, uuids))
            self.bodies.append(body)
            if status == 200:
                self.taken.update(uuids)
            self.changed.notify_all()
        error = {"title": self.title or TITLES.get(status, "Error"), "description": self.description}
        answer = {"status": "success", "req_id": "r"} if status == 200 else error
        exchange.reply(json.dumps(answer).encode(), status=f"{status} X", headers=self.headers)

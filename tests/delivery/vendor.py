"""A MoEngage on loopback that records calls and fails as ordered."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SOON = 10.0
"""Seconds after which a test gives up waiting."""

TITLES = {400: "Invalid Field Value", 401: "Authentication required"}


class Vendor:
    """The events endpoint.

    ``arrived`` counts calls. ``calls`` has (status, UUIDs) of each answered call, ``bodies`` its body. ``taken``
    counts each UUID answered with 200. ``failures`` are the statuses of the next calls, ``status`` is that of all
    others. A call with a UUID in ``poison`` gets a 400. A call waits while ``hang`` is clear, and then for ``delay``
    seconds.
    """

    def __init__(self):
        self.status = 200
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
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.vendor = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self.hang.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(SOON)

    def recover(self):
        self.status, self.failures, self.poison = 200, [], set()
        self.hang.set()

    def settings(self, **changes):
        return {"WORKSPACE_ID": "TESTS", "API_KEY": "tests", "BASE_URL": self.url, "SANDBOX": False, **changes}

    def arrive(self):
        """Count a call, and let it hang if ordered."""
        with self.changed:
            self.arrived += 1
            self.changed.notify_all()
        self.hang.wait(SOON)
        time.sleep(self.delay)

    def answer(self, uuids, body):
        """Record a call and return its status."""
        with self.changed:
            status = self.failures.pop(0) if self.failures else self.status
            if self.poison.intersection(uuids):
                status = 400
            self.calls.append((status, uuids))
            self.bodies.append(body)
            if status == 200:
                self.taken.update(uuids)
            self.changed.notify_all()
            return status

    def wait_for(self, reached):
        """Wait until ``reached(self)`` holds and return whether it did."""
        with self.changed:
            return self.changed.wait_for(lambda: reached(self), SOON)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """Ignore callers that stopped waiting."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        vendor = self.server.vendor
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        actions = [action for element in body["elements"] for action in element["actions"]]
        vendor.arrive()
        status = vendor.answer([action["moe_event_uuid"] for action in actions], body)
        title = vendor.title or TITLES.get(status, "Error")
        answer = (
            {"status": "success", "req_id": "r"}
            if status == 200
            else {"title": title, "description": vendor.description}
        )
        content = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in vendor.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        """Log nothing."""

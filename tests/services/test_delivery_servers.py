"""The events in a ThreadDelivery arrive once when a server stops: real processes, real pages."""

from __future__ import annotations

import json
import signal
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.services.load import Line, visit
from tests.services.serving import Server, _listen, _serve, start_gunicorn, start_sandbox, start_uvicorn

PAGES = 1000
DELIVERY = {
    "BACKEND": "django_moe_personalize.delivery.thread.ThreadDelivery",
    # Only full batches leave, and the rest when the server stops.
    "OPTIONS": {"interval": 600.0},
}


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[int]:
    """Run a sandbox with a ledger of this test's own, and give its port."""
    with start_sandbox(tmp_path) as port:
        yield port


def read_ledger(port: int) -> dict[str, int]:
    """Return the number of impressions by experience."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/_sandbox/ledger", timeout=10) as answer:
        counts = json.load(answer)["counts"]
    return {key: each["impressions"] for key, each in counts.items()}


@contextmanager
def start_green_gunicorn(base_url: str, folder: Path, **site: Any) -> Iterator[Server]:
    """Serve the site with gunicorn's gevent workers, which load it after they have patched the standard library."""
    with _listen() as listener:
        options: Sequence[str] = ["--worker-class", "gevent", "--workers", "2", "--no-control-socket"]
        command = [sys.executable, "-m", "gunicorn", "tests.services.site:wsgi()", *options]
        command += ["--log-level", "warning", "--graceful-timeout", "5", "--bind", f"fd://{listener.fileno()}"]
        with _serve("gevent", command, listener, base_url, folder, workers=2, **site) as server:
            yield server


@pytest.mark.parametrize(
    ("start", "path"),
    [
        pytest.param(start_gunicorn, "/page/", id="gunicorn --preload, gthread"),
        pytest.param(start_green_gunicorn, "/page/", id="gunicorn, gevent"),
        pytest.param(start_uvicorn, "/page/", id="uvicorn, sync view"),
        pytest.param(start_uvicorn, "/apage/", id="uvicorn, async view"),
    ],
)
def test_all_events_arrive_once_when_the_server_stops(
    start: Any, path: str, sandbox: int, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """1,000 pages with two impressions each, then SIGTERM: the ledger has 1,000 of both."""
    base_url = f"http://127.0.0.1:{sandbox}/v1"
    with start(base_url, tmp_path, DEADLINE=10, DELIVERY=DELIVERY) as server:
        # Not with connect(): it reads an async view, which Django can't run concurrently under gevent.
        lines = [Line(server.port) for _ in range(8)]
        pages = visit(lines, PAGES, lambda line, number: line.get(path))
        for line in lines:
            line.close()
        before = sum(read_ledger(sandbox).values())
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(15)
        said = server.read_log()

    tell(f"{before} of {2 * PAGES} events were sent before the stop, {read_ledger(sandbox)} after it")
    assert all("From the sandbox" in page.body for page in pages)
    assert before < 2 * PAGES
    assert read_ledger(sandbox) == {"hero": PAGES, "strip": PAGES}
    # As without the package: gunicorn returns 0, uvicorn ends by the signal.
    assert code == (-signal.SIGTERM if server.kind == "uvicorn" else 0)
    assert said == ""

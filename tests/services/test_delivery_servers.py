"""The events in a ThreadDelivery arrive once when a server stops: real processes, real pages."""

import signal
from functools import partial

import pytest

from tests.services.load import Line, visit
from tests.services.serving import THREADS, ask_sandbox, start_gunicorn, start_uvicorn

# Full batches leave before the stop, and the rest, if any, with the stop. test_delivery_exit.py holds all events.
PAGES = 301
# A busy machine may need longer than the defaults to send the rest.
PATIENT = ["--graceful-timeout", "60"]
# The workers load the site after they have patched the standard library.
GREEN = ["--worker-class", "gevent"]
DELIVERY = {
    "BACKEND": "django_moe_personalize.delivery.thread.ThreadDelivery",
    # Only full batches leave, and the rest when the server stops.
    "OPTIONS": {"interval": 600.0, "exit_timeout": 30.0},
}


def read_ledger(port: int) -> dict[str, int]:
    return {key: each["impressions"] for key, each in ask_sandbox(port, "ledger")["counts"].items()}


@pytest.mark.parametrize(
    ("start", "path"),
    [
        pytest.param(partial(start_gunicorn, options=[*THREADS, *PATIENT]), "/page/", id="gunicorn --preload, gthread"),
        pytest.param(partial(start_gunicorn, options=[*GREEN, *PATIENT]), "/page/", id="gunicorn, gevent"),
        pytest.param(start_uvicorn, "/page/", id="uvicorn, sync view"),
        pytest.param(start_uvicorn, "/apage/", id="uvicorn, async view"),
    ],
)
def test_all_events_arrive_once_when_the_server_stops(start, path, own_sandbox, tmp_path, tell):
    """301 pages with two impressions each, then SIGTERM: the ledger has 301 of both."""
    base_url = f"http://127.0.0.1:{own_sandbox}/v1"
    with start(base_url, tmp_path, DEADLINE=10, DELIVERY=DELIVERY) as server:
        # Not with connect(): it reads an async view, which Django can't run concurrently under gevent.
        lines = [Line(server.port) for _ in range(8)]
        pages = visit(lines, PAGES, lambda line, number: line.get(path))
        for line in lines:
            line.close()
        before = sum(read_ledger(own_sandbox).values())
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(90)
        said = server.read_log()

    tell(f"{before} of {2 * PAGES} events were sent before the stop, {read_ledger(own_sandbox)} after it")
    assert all("From the sandbox" in page.body for page in pages)
    assert read_ledger(own_sandbox) == {"hero": PAGES, "strip": PAGES}
    # As without the package: gunicorn returns 0, uvicorn ends by the signal.
    assert code == (-signal.SIGTERM if server.kind == "uvicorn" else 0)
    assert said == ""

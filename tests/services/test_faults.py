"""Whatever MoEngage does, pages have the right status, come in time, show their defaults, and recover later."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from tests.services.fault_proxy import FAULTS, Fault, FaultProxy
from tests.services.load import Line, Page, companions, connect, name_visitor, poll, together, visit
from tests.services.serving import Server, start_gunicorn, start_uvicorn
from tests.services.site import WITHOUT

DEADLINE = 0.25
LINES_A_SITE = 8
STATUSES = (200, 404, 201, 200)
STARTS = {"gunicorn": start_gunicorn, "uvicorn": start_uvicorn}
PATHS = {"gunicorn": ("/page/",), "uvicorn": ("/page/", "/apage/")}
SETTLE_SECONDS = 8.0
BUSY_SECONDS = 5.0
"""Extra time on a busy machine."""

PROBE_SECONDS = DEADLINE + BUSY_SECONDS
"""How long a probe and the page after it may take."""

PERSONAL = ("From the sandbox", "Sandbox delivers")


@dataclass
class FaultySite:
    """A running site, and the proxy it takes for MoEngage."""

    server: Server
    proxy: FaultProxy


@pytest.fixture(
    scope="session",
    params=[pytest.param(start, marks=pytest.mark.xdist_group(name)) for name, start in STARTS.items()],
    ids=STARTS,
)
def site(request, folder, sandbox, extent):
    with (
        FaultProxy(sandbox) as proxy,
        request.param(proxy.url, folder, intervals=extent.intervals, DEADLINE=DEADLINE) as server,
    ):
        yield FaultySite(server, proxy)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=str)
def test_no_page_suffers_and_content_is_back_afterwards(site, fault, extent, tell):
    """Status and body are the same as without us, no page is late, and content is back after one interval."""
    lines_a_worker = LINES_A_SITE // site.server.workers
    with connect(site.server, lines_a_worker + 1) as lines:
        beside, lines = lines[: site.server.workers], lines[site.server.workers :]
        for line in beside:
            assert wait_for_content(line, SETTLE_SECONDS), f"not well before: {line.read_state()}"
        one_a_process = lines[: site.server.workers]
        logged = len(site.server.read_log())
        with companions(beside) as find_lateness:
            with failing(site, fault):
                pages = visit(lines, extent.pages, partial(ask, site.server.kind))
                if fault.listener != "hung names":
                    # The system's name lookup has no timeout that we could set.
                    together([partial(wait_until_idle, line, DEADLINE + BUSY_SECONDS) for line in one_a_process])
            ended = time.monotonic()
            expected = {status: ask_without(lines[0], status) for status in STATUSES}
        waited = together([partial(recover, line, ended) for line in one_a_process])

    late = [page.seconds - DEADLINE - extent.allowance - find_lateness(page) for _, page in pages]
    slowest = max(page.seconds for _, page in pages)
    tell(f"{len(pages)} pages, slowest {slowest:.3f} s, content back after {max(waited):.2f} s")
    assert [(status, page.status) for status, page in pages if page.status != status] == []
    assert {page.body for status, page in pages} == {page.body for page in expected.values()}
    assert all(page.status == status for status, page in expected.items())
    assert max(late) <= 0.0, f"{max(late):.3f} s beyond the deadline and what the machine was late itself"
    said = site.server.read_log()[logged:]
    assert find_tracebacks(said) == []
    assert "visitor-" not in said


def find_tracebacks(log: str) -> list[str]:
    """Return the line before each traceback."""
    lines = log.splitlines()
    return [lines[place - 1] for place, line in enumerate(lines) if line.startswith("Traceback")]


def ask(kind: str, line: Line, number: int) -> tuple[int, Page]:
    """Ask for a page as a new visitor; return the expected status and the page."""
    status = STATUSES[number % len(STATUSES)]
    path = PATHS[kind][number // 2 % len(PATHS[kind])]
    return status, line.get(f"{path}?status={status}")


def ask_without(line: Line, status: int) -> Page:
    return line.get(f"{WITHOUT}/page/?status={status}")


@contextlib.contextmanager
def failing(site: FaultySite, fault: Fault) -> Iterator[None]:
    """Let the upstream fail, and check that a page met the fault."""
    if fault.listener == "hung names":
        # First, because a page that connects after the proxy has dropped the connections would keep its connection.
        site.server.names_hang.touch()
    with site.proxy.failing(fault):
        try:
            yield
        finally:
            site.server.names_hang.unlink(missing_ok=True)
        assert site.proxy.met or fault.listener in ("refuse", "never accept", "hung names")


def recover(line: Line, ended: float) -> float:
    """Return the seconds from the fault's end until a process shows content; fail if that takes too long.

    Calls of the fault's time end by their deadline. Then the rest of the open interval and a probe may pass.
    """
    state = wait_until_idle(line, SETTLE_SECONDS)
    assert wait_for_content(line, state["retry_in"] + PROBE_SECONDS), f"{state}, and now {line.read_state()}"
    return time.monotonic() - ended


def wait_until_idle(line: Line, seconds: float) -> dict[str, Any]:
    """Return the state of a process once its threads make no call; fail if one still does."""
    state = poll(line.read_state, lambda state: state["in_flight"] == 0, seconds)
    assert state["in_flight"] == 0, f"still asking: {state}"
    return state


def wait_for_content(line: Line, seconds: float) -> bool:
    """Read pages as new visitors until one has its content; return whether that is in time."""
    page = poll(lambda: line.get("/page/", name_visitor()), is_personal, seconds)
    return is_personal(page)


def is_personal(page: Page) -> bool:
    return all(text in page.body for text in PERSONAL)

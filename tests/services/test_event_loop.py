"""An upstream that hangs delays no view without personalization."""

import itertools
import math
import time

from tests.services.fault_proxy import FAULTS, FaultProxy
from tests.services.load import Companion, Line, Page, connect, in_background, visit
from tests.services.serving import start_uvicorn

DEADLINE = 0.6
RATE = 40
PACE = 0.02
SECONDS = 1.5
LINES = 32
NEVER_OPEN = {"breaker": {"failure_threshold": 10**9, "rate_calls": 10**9}, "gate": 0.7}
"""With an open breaker, pages wouldn't wait."""


def visit_at_rate(lines: list[Line], seconds: float) -> list[Page]:
    """Read RATE personalized pages a second, from sync and async views."""
    start = time.monotonic()

    def ask(line: Line, number: int) -> Page:
        time.sleep(max(0.0, start + number / RATE - time.monotonic()))
        return line.get("/apage/" if number % 2 else "/page/")

    return visit(lines, int(RATE * seconds), ask)


def measure(lines: list[Line]) -> tuple[list[float], list[Page]]:
    """Return the seconds of the unrelated view, and the personalized pages of the same time."""
    companion = Companion(lines[0], "/unrelated/", PACE)
    with in_background(companion.read):
        pages = visit_at_rate(lines[1:], SECONDS)
    return [page.seconds for page in companion.pages], pages


def find_p99(seconds: list[float]) -> float:
    return sorted(seconds)[math.ceil(0.99 * len(seconds)) - 1]


def test_an_unrelated_async_view_answers_while_the_upstream_hangs(folder, sandbox, tell):
    """Every page waits for its deadline, and the event loop waits for no page."""
    options = {"DEADLINE": DEADLINE, "MAX_CONCURRENT_FETCHES": 64, "intervals": NEVER_OPEN}
    live: list[float] = []
    hanging: list[float] = []
    waiting: list[Page] = []
    with (
        FaultProxy(sandbox) as proxy,
        start_uvicorn(proxy.url, folder, **options) as server,
        connect(server, LINES + 1) as lines,
    ):
        # To start threads, open connections and load templates.
        measure(lines)
        for fault in itertools.chain.from_iterable([("", "hang before headers")] * 2):
            if not fault:
                live += measure(lines)[0]
                continue
            with proxy.failing(FAULTS[fault]):
                seconds, pages = measure(lines)
            hanging += seconds
            waiting += pages

    ratio = find_p99(hanging) / find_p99(live)
    tell(
        f"unrelated view: p99 {find_p99(live) * 1000:.1f} ms live, {find_p99(hanging) * 1000:.1f} ms hanging, "
        f"ratio {ratio:.2f}; slowest hanging {max(hanging) * 1000:.0f} ms"
    )
    assert {page.status for page in waiting} == {200}
    # They waited: no breaker, bulkhead or cache stood in for the upstream.
    assert sum(page.seconds >= DEADLINE for page in waiting) > len(waiting) / 2
    assert max(hanging) < DEADLINE

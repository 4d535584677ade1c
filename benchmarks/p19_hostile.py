"""P19: pages and unrelated views while each answer is a hostile one, just below the size limit and the deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from benchmarks.goal import Figure, Options, expect, run
from benchmarks.load import Outcome, connect
from benchmarks.serving import ASGI_PROBE, WSGI_PROBE, Server, build_site, start_gunicorn, start_uvicorn
from benchmarks.upstream import KEYS, Upstream, start_upstream

DEADLINE = 0.1
BEHAVIORS = ("delay-0.095", "hostile-0.095")
"""A usual and a hostile answer. Reading begins 5 ms before the deadline, which makes the page as late as possible."""

PAGE_RATE, UNRELATED_RATE = 8.0, 100.0
SERVERS: dict[str, tuple[Callable[[Any], AbstractContextManager[Server]], str, str]] = {
    "gunicorn": (start_gunicorn, "/io_ours/", WSGI_PROBE),
    "uvicorn": (start_uvicorn, "/async_load/", ASGI_PROBE),
}


def measure(options: Options) -> Iterator[Figure]:
    """Yield two figures for each server: the page's time beyond the deadline, and the time of an unrelated view."""
    with start_upstream() as upstream:
        for name in SERVERS:
            usual, hostile = (load(upstream, name, behavior, options.pick(25.0, 8.0)) for behavior in BEHAVIORS)
            for what, number in (("time of a page beyond the deadline", 0), ("time of an unrelated view", 1)):
                limit = 0.0 if number else DEADLINE
                p99 = [outcomes[number].quantile(0.99) for outcomes in (usual, hostile)]
                yield Figure(
                    what=f"{name}: p99 of the {what}, hostile answers",
                    baseline=p99[0] * 1000,
                    ours=p99[1] * 1000,
                    difference=(p99[1] - limit) * 1000,
                    limit="<= 15 ms",
                    unit="ms",
                    notes=[f"baseline: usual answers; {hostile[number].count} pages"],
                    context={"slowest, ms": hostile[number].quantile(1.0) * 1000},
                )


def load(upstream: Upstream, name: str, behavior: str, seconds: float) -> list[Outcome]:
    """Return the outcomes of the pages and of the unrelated view. All of them must be a 200."""
    start, address, probe = SERVERS[name]
    identify = "aidentify" if name == "uvicorn" else "identify"
    moe = {"IDENTIFY": f"benchmarks.site.{identify}", "EXPERIENCES": {address.strip("/"): list(KEYS)}}
    site = build_site(base_url=upstream.url(behavior), view=0.0, DEADLINE=DEADLINE, **moe)
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        server = stack.enter_context(start(site))
        pages, unrelated = (stack.enter_context(connect(server, 8, runner=runner)) for _ in range(2))
        loads = (pages.plan_rate(address, PAGE_RATE), unrelated.plan_rate(probe, UNRELATED_RATE))
        pages.run_together(*loads, seconds=4.0)
        outcomes = [outcome.check() for outcome in pages.run_together(*loads, seconds=seconds)]
        expect(outcomes[0].quantile(0.5) > DEADLINE / 2, "most pages didn't wait: the circuit breaker was open")
        return outcomes


if __name__ == "__main__":
    run("P19", measure)

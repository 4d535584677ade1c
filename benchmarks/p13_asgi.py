"""P13: under uvicorn, throughput of an overlapped page; p99 of an unrelated view while the upstream hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median

from benchmarks.goal import Figure, Options, run
from benchmarks.load import Client, Outcome, connect, pool
from benchmarks.pages import DEFAULT, PERSONAL
from benchmarks.serving import build_site, profile_async, start_uvicorn
from benchmarks.site import READ
from benchmarks.timing import describe
from benchmarks.upstream import Upstream, start_upstream

CONNECTIONS = 96
"""Enough to keep the process busy all the time: then throughput depends on CPU time, not on waiting."""

PERSONAL_RATE, UNRELATED_RATE = 50.0, 200.0
MARKED = 0.99
IDENTIFY = "benchmarks.site.aidentify"


def measure(options: Options) -> Iterator[Figure]:
    """Measure both figures with one process for each site, loaded in turn."""
    with start_upstream() as upstream:
        yield measure_throughput(upstream, *options.pick((4.0, 5), (2.0, 3)))
        yield measure_unrelated(upstream, *options.pick((8.0, 5), (4.0, 3)))


def measure_throughput(upstream: Upstream, seconds: float, blocks: int) -> Figure:
    """Return the pages per second of the overlapped async page, all pages cold, against the plain page's."""
    with ExitStack() as stack:
        # As many fetches as pages: with the default limit some pages would get no experiences.
        raised = {"MAX_CONCURRENT_FETCHES": CONNECTIONS + 32, "DEADLINE": 2.0}
        site = build_site(base_url=upstream.url("delay-0.040"), IDENTIFY=IDENTIFY, **raised)
        plain, ours = (
            stack.enter_context(connect(stack.enter_context(start_uvicorn(described)), CONNECTIONS))
            for described in (build_site(), site)
        )
        loads = {"plain": (plain, "/async_plain/", DEFAULT), "ours": (ours, "/async_ours/", PERSONAL)}
        rates = load(loads, seconds, blocks)
    ratios = [of_ours / of_plain for of_ours, of_plain in zip(rates["ours"], rates["plain"], strict=True)]
    return Figure(
        what="pages/s of an async page, aprefetch overlaps its view, upstream 40 ms / without personalization",
        baseline=median(rates["plain"]),
        ours=median(rates["ours"]),
        ratio=median(ratios),
        limit=">= 0.8",
        unit="pages/s",
        profile=profile_async(site, "/async_ours/", pages=1600),
        notes=[describe(ratios), f"{CONNECTIONS} connections, MAX_CONCURRENT_FETCHES and DEADLINE raised"],
    )


def load(loads: dict[str, tuple[Client, str, str]], seconds: float, blocks: int) -> dict[str, list[float]]:
    """Return the pages per second of each load, one value for each block."""
    rates: dict[str, list[float]] = {name: [] for name in loads}
    for turn in range(blocks + 1):
        for name, (client, address, mark) in loads.items():
            outcome = client.run(address, seconds if turn else 1.0, mark=mark)
            if turn:
                rates[name].append(outcome.check(marked=MARKED).throughput)
    return rates


def measure_unrelated(upstream: Upstream, seconds: float, blocks: int) -> Figure:
    """Return the p99 of a view without personalization while the process also serves 50 personalized pages a second."""
    met: dict[str, list[Outcome]] = {"delay-0.040": [], "hang": []}
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        clients: dict[str, tuple[Client, Client]] = {}
        for behavior in met:
            server = stack.enter_context(start_uvicorn(build_site(base_url=upstream.url(behavior), IDENTIFY=IDENTIFY)))
            clients[behavior] = (
                stack.enter_context(connect(server, 20, runner=runner)),
                stack.enter_context(connect(server, 20, runner=runner)),
            )
        for turn in range(blocks + 1):
            for behavior, (pages, unrelated) in clients.items():
                # The first block is a warm-up; the breaker opens in it.
                outcome = load_together(pages, unrelated, seconds if turn else 2.0)
                if turn:
                    met[behavior].append(outcome)
    # A single block has too few pages for a p99.
    p99 = {behavior: pool(outcomes).quantile(0.99) * 1000 for behavior, outcomes in met.items()}
    blocks_p99 = [hang.quantile(0.99) / live.quantile(0.99) for live, hang in zip(*met.values(), strict=True)]
    return Figure(
        what="p99 of an unrelated async view next to 50 personalized pages/s, upstream hanging / live",
        baseline=p99["delay-0.040"],
        ours=p99["hang"],
        limit="<= 1.1",
        unit="ms",
        notes=["over all blocks together; " + describe(blocks_p99), "DEADLINE and MAX_CONCURRENT_FETCHES are default"],
    )


def load_together(pages: Client, unrelated: Client, seconds: float) -> Outcome:
    """Return the outcome of the unrelated view; all pages must be 200, the others must have asked for experiences."""
    personal, outcome = pages.run_together(
        pages.plan_rate("/async_ours/", PERSONAL_RATE, READ),
        unrelated.plan_rate("/async_worker/", UNRELATED_RATE),
        seconds=seconds,
    )
    personal.check(marked=1)
    return outcome.check()


if __name__ == "__main__":
    run("P13", measure)

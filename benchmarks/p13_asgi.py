"""P13: under uvicorn, throughput of an overlapped page, and an unrelated view's p99 while the upstream hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median

from benchmarks.goal import Figure, Options, run
from benchmarks.load import Client, Outcome, Pace, connect, pool
from benchmarks.pages import DEFAULT, PERSONAL
from benchmarks.serving import build_site, profile_async, start_uvicorn
from benchmarks.site import READ
from benchmarks.timing import describe
from benchmarks.upstream import Upstream, start_upstream

CONNECTIONS = 96
"""Enough that the process is busy all the time: then a page costs what it computes, not what it waits."""

PERSONAL_RATE, UNRELATED_RATE = 50.0, 200.0
MARKED = 0.99
IDENTIFY = "benchmarks.site.aidentify"


def measure(options: Options) -> Iterator[Figure]:
    """Measure both with one process each, loaded by turns."""
    with start_upstream() as upstream:
        yield measure_throughput(upstream, *options.pick((4.0, 5), (2.0, 3)))
        yield measure_unrelated(upstream, *options.pick((8.0, 5), (4.0, 3)))


def measure_throughput(upstream: Upstream, seconds: float, blocks: int) -> Figure:
    """Return pages a second of the overlapped async page, every page cold, against the plain one's."""
    with ExitStack() as stack:
        # As many fetches as pages: with the default bulkhead pages would go without.
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
        what="pages/s of an async page, aprefetch beside its view, upstream 40 ms / no personalization",
        baseline=median(rates["plain"]),
        ours=median(rates["ours"]),
        ratio=median(ratios),
        limit=">= 0.85",
        unit="pages/s",
        profile=profile_async(site, "/async_ours/", pages=1600),
        notes=[describe(ratios), f"{CONNECTIONS} connections, MAX_CONCURRENT_FETCHES and DEADLINE raised"],
    )


def load(loads: dict[str, tuple[Client, str, str]], seconds: float, blocks: int) -> dict[str, list[float]]:
    """Return the pages a second of each, a block at a time."""
    rates: dict[str, list[float]] = {name: [] for name in loads}
    pace = Pace()
    for turn in range(blocks + 1):
        for name, (client, address, mark) in loads.items():
            if name == "ours":
                pace.rest()
            outcome = client.run(address, seconds if turn else 1.0, mark=mark)
            if name == "ours":
                pace.add(outcome)
            if turn:
                rates[name].append(outcome.check(marked=MARKED).throughput)
    return rates


def measure_unrelated(upstream: Upstream, seconds: float, blocks: int) -> Figure:
    """Return the p99 of a view that has nothing to do with us, beside 50 personalised pages a second."""
    met: dict[str, list[Outcome]] = {"delay-0.040": [], "hang": []}
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        clients: dict[str, tuple[Client, Client]] = {}
        for behaviour in met:
            server = stack.enter_context(start_uvicorn(build_site(base_url=upstream.url(behaviour), IDENTIFY=IDENTIFY)))
            clients[behaviour] = (
                stack.enter_context(connect(server, 20, runner=runner)),
                stack.enter_context(connect(server, 20, runner=runner)),
            )
        for turn in range(blocks + 1):
            for behaviour, (pages, unrelated) in clients.items():
                # The first block is a warm-up, in which the breaker opens too.
                outcome = load_together(pages, unrelated, seconds if turn else 2.0)
                if turn:
                    met[behaviour].append(outcome)
    # One page in a hundred: a block alone has too few of them.
    p99 = {behaviour: pool(outcomes).quantile(0.99) * 1000 for behaviour, outcomes in met.items()}
    blocks_p99 = [hang.quantile(0.99) / live.quantile(0.99) for live, hang in zip(*met.values(), strict=True)]
    return Figure(
        what="p99 of an unrelated async view beside 50 personalised pages/s, upstream hanging / live",
        baseline=p99["delay-0.040"],
        ours=p99["hang"],
        limit="<= 1.1",
        unit="ms",
        notes=["over all blocks together; " + describe(blocks_p99), "the default DEADLINE and MAX_CONCURRENT_FETCHES"],
    )


def load_together(pages: Client, unrelated: Client, seconds: float) -> Outcome:
    """Return what the unrelated view met; all pages have to be 200 and to have asked for experiences."""
    personal, outcome = pages.run_together(
        pages.plan_rate("/async_ours/", PERSONAL_RATE, READ),
        unrelated.plan_rate("/async_worker/", UNRELATED_RATE),
        seconds=seconds,
    )
    personal.check(marked=1)
    return outcome.check()


if __name__ == "__main__":
    run("P13", measure)

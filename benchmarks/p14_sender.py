"""P14: pages per second of one process while its event sender runs, against the same pages without events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median

from benchmarks.goal import Figure, Options, expect, run
from benchmarks.load import connect
from benchmarks.pages import PERSONAL
from benchmarks.serving import build_site, start_gunicorn
from benchmarks.timing import describe
from benchmarks.upstream import KEYS, start_upstream

CONNECTIONS = 8


def regular() -> str:
    """Return the one visitor of all pages, whose experiences are in the cache."""
    return "regular"


def measure(options: Options) -> Iterator[Figure]:
    """Load one worker in turn with a CPU-bound page that tracks its impressions and with one that doesn't."""
    with ExitStack() as stack:
        upstream = stack.enter_context(start_upstream())
        described = build_site(base_url=upstream.url("at-once"), CACHE_TTL=3600, CACHE_STALE_TTL=3600)
        server = stack.enter_context(start_gunicorn(described, workers=1))
        client = stack.enter_context(connect(server, CONNECTIONS))
        rates: dict[str, list[float]] = {"/cpu_ours/": [], "/cpu_ours_tracked/": []}
        seconds, blocks = options.pick((6.0, 7), (3.0, 3))
        for address in rates:
            client.run(address, 2.0, visitor=regular)
        for _ in range(blocks):
            for address, found in rates.items():
                outcome = client.run(address, seconds, mark=PERSONAL, visitor=regular).check(marked=0.99)
                found.append(outcome.throughput)
        plain, tracked = rates.values()
        expect(upstream.get_counts("at-once")["actions"] > sum(tracked) * len(KEYS), "the sender didn't run")
        ratios = [of_tracked / of_plain for of_tracked, of_plain in zip(tracked, plain, strict=True)]
        yield Figure(
            what="pages/s of one process that sends three impressions per page / without impressions",
            baseline=median(plain),
            ours=median(tracked),
            ratio=median(ratios),
            limit=">= 0.97",
            unit="pages/s",
            notes=[describe(ratios), "ThreadDelivery with its defaults, upstream at-once"],
        )


if __name__ == "__main__":
    run("P14", measure)

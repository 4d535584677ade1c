"""P8: throughput of a CPU-bound page whose upstream answers at once, against no personalization."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from statistics import median

from benchmarks.goal import Figure, Options, run
from benchmarks.load import Client, connect
from benchmarks.pages import DEFAULT, PERSONAL
from benchmarks.serving import build_peer, build_site, profile, start_gunicorn
from benchmarks.site import name_visitor
from benchmarks.timing import describe
from benchmarks.upstream import start_upstream

CONNECTIONS = 8
MARKED = 0.99


def measure(options: Options) -> Iterator[Figure]:
    """Load one worker of 8 threads in turn. It has one core; the upstream and the load generator share the other."""
    with ExitStack() as stack:
        upstream = stack.enter_context(start_upstream())
        url = upstream.url("at-once")
        plain, ours, threads = (
            stack.enter_context(connect(stack.enter_context(start_gunicorn(site, workers=1)), CONNECTIONS))
            for site in (build_site(), build_site(base_url=url, CACHE_TTL=3600, CACHE_STALE_TTL=3600), build_peer(url))
        )
        loads: dict[str, tuple[Client, str, str, Callable[[], str]]] = {
            "plain": (plain, "/cpu_plain/", DEFAULT, name_visitor),
            "warm": (ours, "/cpu_ours/", PERSONAL, lambda: "regular"),
            "cold": (ours, "/cpu_ours/", PERSONAL, name_visitor),
            "threads": (threads, "/cpu_threads/", PERSONAL, name_visitor),
        }
        rates = load(loads, *options.pick((3.0, 5), (1.5, 3)))
        for name, limit in (("warm", ">= 0.95"), ("cold", ">= 0.75")):
            figure = build_figure(name, limit, rates)
            figure.profile = profile(build_site(base_url=url), "/cpu_ours/", pages=1000, visitor=loads[name][3])
            yield figure


def load(
    loads: dict[str, tuple[Client, str, str, Callable[[], str]]], seconds: float, blocks: int
) -> dict[str, list[float]]:
    """Return the pages per second of each load, one value for each block."""
    rates: dict[str, list[float]] = {name: [] for name in loads}
    for turn in range(blocks + 1):
        for name, (client, address, mark, visitor) in loads.items():
            outcome = client.run(address, seconds if turn else 1.0, mark=mark, visitor=visitor)
            if turn:
                rates[name].append(outcome.check(marked=MARKED).throughput)
    return rates


def build_figure(name: str, limit: str, rates: dict[str, list[float]]) -> Figure:
    """Return our throughput against the plain page's; the context has the peer's."""
    ratios = [ours / plain for ours, plain in zip(rates[name], rates["plain"], strict=True)]
    peer = [of / plain for of, plain in zip(rates["threads"], rates["plain"], strict=True)]
    return Figure(
        what=f"pages/s of a CPU-bound page, all pages {name} / without personalization",
        baseline=median(rates["plain"]),
        ours=median(rates[name]),
        ratio=median(ratios),
        limit=limit,
        unit="pages/s",
        notes=[describe(ratios), "read in the view without impressions (P14 has them)"],
        context={"a requests.Session in a thread pool, cold, ratio": median(peer)},
    )


if __name__ == "__main__":
    run("P8", measure)

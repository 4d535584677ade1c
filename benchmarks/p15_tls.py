"""P15: pages per second with a healthy upstream over TLS, against three ``requests.post`` calls in the view."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median

from benchmarks.goal import Figure, Options, run
from benchmarks.load import Outcome, connect
from benchmarks.pages import PERSONAL
from benchmarks.serving import build_peer, build_site, profile, start_gunicorn
from benchmarks.timing import describe
from benchmarks.upstream import start_upstream

CONNECTIONS = 16
MARKED = 0.99


def measure(options: Options) -> Iterator[Figure]:
    """Load two sites in turn, as fast as they answer; each page is for a new visitor."""
    with ExitStack() as stack:
        upstream = stack.enter_context(start_upstream(tls=True))
        url, bundle = upstream.tls_url("delay-0.040"), upstream.bundle
        ours, posts = (
            stack.enter_context(connect(stack.enter_context(start_gunicorn(described)), CONNECTIONS))
            for described in (build_site(base_url=url, bundle=bundle), build_peer(url, bundle=bundle))
        )
        seconds, blocks = options.pick((6.0, 5), (2.0, 3))
        loads = {"ours": (ours, "/io_ours/"), "posts": (posts, "/io_posts/")}
        found: dict[str, list[Outcome]] = {name: [] for name in loads}
        for client, address in loads.values():
            client.run(address, 1.0)
        for _ in range(blocks):
            for name, (client, address) in loads.items():
                found[name].append(client.run(address, seconds, mark=PERSONAL).check(marked=MARKED))
        rates = {name: [outcome.throughput for outcome in outcomes] for name, outcomes in found.items()}
        ratios = [of_ours / of_posts for of_ours, of_posts in zip(rates["ours"], rates["posts"], strict=True)]
        yield Figure(
            what="pages/s over TLS, view 30 ms and upstream 40 ms / with three requests.post in the view",
            baseline=median(rates["posts"]),
            ours=median(rates["ours"]),
            ratio=median(ratios),
            limit=">= 14",
            unit="pages/s",
            notes=[describe(ratios, 1), "both sides have a CA bundle of full size"],
            profile=profile(build_site(base_url=url, bundle=bundle), "/io_ours/", pages=100),
            context={f"p99 {name}, ms": median(o.quantile(0.99) * 1000 for o in found[name]) for name in loads},
        )


if __name__ == "__main__":
    run("P15", measure)

"""P4: a page whose view takes 30 ms and whose upstream takes 40 ms, against a page that takes 40 ms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median

from benchmarks.goal import Figure, Options, run
from benchmarks.load import Client, Outcome, connect
from benchmarks.pages import DEFAULT, PERSONAL
from benchmarks.serving import build_peer, build_site, profile, start_gunicorn
from benchmarks.timing import describe
from benchmarks.upstream import start_upstream

VIEW, UPSTREAM = 0.03, 0.04
CONNECTIONS = 8
"""Half as many as the server has threads, so that no page waits for a thread."""

MARKED = 0.99
"""The share of pages that must be personal; on a busy machine a few pages miss the deadline."""


def measure(options: Options) -> Iterator[Figure]:
    """Load three sites in turn; each page is for a new visitor."""
    with ExitStack() as stack:
        upstream = stack.enter_context(start_upstream())
        url = upstream.url(f"delay-{UPSTREAM:.3f}")
        alone, ours, posts = (
            stack.enter_context(connect(stack.enter_context(start_gunicorn(described)), CONNECTIONS))
            for described in (
                build_site(view=VIEW, upstream=UPSTREAM),
                build_site(base_url=url, view=VIEW, upstream=UPSTREAM),
                build_peer(url, view=VIEW),
            )
        )
        loads: dict[str, tuple[Client, str, str]] = {
            "alone": (alone, "/io_longest/", DEFAULT),
            "ours": (ours, "/io_ours/", PERSONAL),
            "posts": (posts, "/io_posts/", PERSONAL),
        }
        seconds, blocks = options.pick((5.0, 5), (1.5, 3))
        for client, address, _ in loads.values():
            client.run(address, 1.0)
        found: dict[str, list[Outcome]] = {name: [] for name in loads}
        for _ in range(blocks):
            for name, (client, address, mark) in loads.items():
                found[name].append(client.run(address, seconds, mark=mark).check(marked=MARKED))
        figure = build_figure(found)
        figure.profile = profile(build_site(base_url=url, view=VIEW, upstream=UPSTREAM), "/io_ours/", pages=100)
        yield figure


def build_figure(found: dict[str, list[Outcome]]) -> Figure:
    """Return the ratio of the median pages; the context has the vendor's samples."""
    halves = {name: [outcome.quantile(0.5) * 1000 for outcome in outcomes] for name, outcomes in found.items()}
    ratios = [ours / alone for ours, alone in zip(halves["ours"], halves["alone"], strict=True)]
    missing = sum(outcome.count - outcome.marked for outcome in found["ours"])
    return Figure(
        what="p50 of a page, view 30 ms and upstream 40 ms / of a page that takes 40 ms",
        baseline=median(halves["alone"]),
        ours=median(halves["ours"]),
        ratio=median(ratios),
        limit="<= 1.03",
        unit="ms",
        notes=[describe(ratios), f"{missing} of {sum(o.count for o in found['ours'])} pages showed the default"],
        context={
            "three requests.post, p50 ms": median(halves["posts"]),
            "three requests.post, ratio to ours": median(halves["posts"]) / median(halves["ours"]),
            "p99 alone, ms": median(outcome.quantile(0.99) * 1000 for outcome in found["alone"]),
            "p99 ours, ms": median(outcome.quantile(0.99) * 1000 for outcome in found["ours"]),
        },
    )


if __name__ == "__main__":
    run("P4", measure)

"""P17: the time that 25 experiences add to a warm page, against the time that one experience adds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

from benchmarks import pages, site
from benchmarks.goal import Figure, Options, expect, run
from benchmarks.timing import Rounds, alternate, describe
from benchmarks.upstream import start_upstream

VISITOR = {"HTTP_X_VISITOR": "regular"}


def measure(options: Options) -> Iterator[Figure]:
    """Time the pages without impressions, which cost one event for each experience (P9)."""
    with start_upstream() as upstream:
        site.configure(moe=site.build_moe(upstream.url("at-once"), CACHE_TTL=3600, CACHE_STALE_TTL=3600))
        plain, ours = site.Site([site.NO_OP]), site.Site([site.OURS])
        for address, content in (("/read_one/", "key-00"), ("/read_many/", "key-24")):
            for _ in range(10):
                ours.check(address, f"Title of {content}", **VISITOR)
                time.sleep(0.01)
        asked = upstream.get_counts("at-once")["fetches"]
        get = {
            "plain": lambda: plain.get("/plain/", **VISITOR),
            "1": lambda: ours.get("/read_one/", **VISITOR),
            "25": lambda: ours.get("/read_many/", **VISITOR),
        }
        rounds = alternate(get, rounds=options.pick(201, 61))
        expect(upstream.get_counts("at-once")["fetches"] == asked, "a page was not read from the cache")
        yield build_figure(rounds, lambda: [get["25"]() for _ in range(3000)])
        # Checked again at the end: a page that has lost some experiences would be faster.
        expect(pages.MANY[-1].encode() in get["25"](), "the page does not have all experiences")


def build_figure(rounds: Rounds, profile: Callable[[], object]) -> Figure:
    """Return the ratio of the times that 25 experiences and one add to the plain page."""
    one, many = (rounds.compute(lambda of, name=name: of[name] - of["plain"]) for name in ("1", "25"))
    ratios = [each / first for each, first in zip(many, one, strict=True)]
    return Figure(
        what="time added by 25 cached experiences / by 1",
        baseline=median(one) * 1e6,
        ours=median(many) * 1e6,
        ratio=median(ratios),
        limit="<= 1.3",
        unit="µs",
        notes=[describe(ratios), f"the plain page takes {rounds.median('plain') * 1e6:.1f} µs"],
        profile=profile,
    )


if __name__ == "__main__":
    run("P17", measure)

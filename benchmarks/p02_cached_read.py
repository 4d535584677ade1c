"""P2: three experiences from the cache with their impressions, against peers; times, bytecodes and calls."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from benchmarks import pages, peers, site
from benchmarks.goal import Figure, Options, expect, run
from benchmarks.peers import prepare_waffle, start_launchdarkly
from benchmarks.timing import Rounds, alternate, describe
from benchmarks.upstream import KEYS, Upstream, start_upstream

CALLS = 30
"""Pages in a block. They make less than a batch of events, so no sender is timed here (P14 does that)."""


TITLES = {"plain": "the plain Django page itself", "ours": "3 cached experiences with their impressions"}
LIMITS = {"LaunchDarkly": "<= 0.4", "GrowthBook": "<= 1"}


def configure(upstream: Upstream) -> None:
    """Set up the site that all contenders share."""
    site.configure(
        moe={**site.CREDENTIALS, "BASE_URL": upstream.url("at-once"), "CACHE_TTL": 3600, "CACHE_STALE_TTL": 3600},
        ROOT_URLCONF="benchmarks.peers",
        BENCH={"url": upstream.url("at-once/requests"), "bundle": ""},
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django_moe_personalize",
            "waffle",
        ],
    )
    prepare_waffle()


def become_visitor(ours: site.Site, address: str = "/read_and_track/") -> str:
    """Make the page warm for an anonymous visitor and return the visitor's cookies: the id and the campaign."""
    ours.check(address, pages.PERSONAL)
    cookies = [value.partition(";")[0] for name, value in ours.headers if name == "Set-Cookie"]
    expect(len(cookies) == 2, f"the anonymous visitor got {len(cookies)} cookies")
    return "; ".join(cookies)


def build_contenders() -> dict[str, Callable[[], bytes]]:
    """Return a checked page of each contender; all pages get the same request."""
    from benchmarks.site import NO_OP, OURS

    peers.shown[0] = pages.read_and_track
    more = {"HTTP_COOKIE": become_visitor(site.Site([OURS]), "/page/"), "HTTP_X_VISITOR": "visitor-1"}
    posthog = "posthog.integrations.django.PosthogContextMiddleware"
    contenders: dict[str, Callable[[], bytes]] = {}
    for name, middleware, view, content in (
        ("plain", NO_OP, pages.plain, pages.DEFAULT),
        ("ours", OURS, pages.read_and_track, pages.PERSONAL),
        ("LaunchDarkly", NO_OP, peers.launchdarkly, pages.PERSONAL),
        ("GrowthBook", NO_OP, peers.growthbook, pages.PERSONAL),
        ("waffle", "waffle.middleware.WaffleMiddleware", peers.waffle, pages.PERSONAL),
        ("PostHog's context middleware, nothing evaluated", posthog, pages.plain, pages.DEFAULT),
        ("requests.post, three calls", NO_OP, peers.three_posts, pages.PERSONAL),
        ("requests.post, one call", NO_OP, peers.one_post, pages.PERSONAL),
    ):
        stack = site.Site([middleware])
        peers.shown[0] = view
        for _ in range(20):
            stack.check("/page/", content, **more)
            # The first pages leave work to background threads. The pages are warm when that work is done.
            time.sleep(0.005)

        def get(stack: site.Site = stack, view: Any = view) -> bytes:
            peers.shown[0] = view
            return stack.get("/page/", **more)

        contenders[name] = get
    return contenders


def measure(options: Options) -> Iterator[Figure]:
    """Time what each contender adds to the same request."""
    with start_upstream() as upstream:
        configure(upstream)
        with start_launchdarkly(upstream) as launchdarkly_client:
            contenders = build_contenders()
            from django_moe_personalize.delivery.base import get_delivery

            delivery = get_delivery()

            def settle(name: str, calls: int = 0) -> None:
                if name == "ours":
                    delivery.flush(5.0)
                if name == "LaunchDarkly":
                    launchdarkly_client.flush()
                # LaunchDarkly's threads finish the events of their block here, not in the next block.
                time.sleep(0.003)

            asked = upstream.get_counts("at-once")["fetches"]
            before = delivery.counts()
            number = options.pick(200, 60)
            rounds = alternate(contenders, rounds=number, calls=CALLS, after=settle)
            check_events(upstream, before.accepted, delivery.counts(), pages=(number + 1) * CALLS)
            expect(upstream.get_counts("at-once")["fetches"] == asked, "a page was not read from the cache")
            for peer, limit in LIMITS.items():
                yield build_figure(rounds, peer, limit, lambda: [contenders["ours"]() for _ in range(5000)])
            delivery.flush(5.0)
            yield from count_steps(contenders, rounds, settle)


def check_events(upstream: Upstream, before: int, counts: Any, *, pages: int) -> None:
    """Raise WrongMeasurement unless the impressions of all pages were accepted and delivered, and arrived."""
    expect(counts.accepted - before == pages * len(KEYS), f"{pages} pages had {counts.accepted - before} impressions")
    expect(not counts.pending and counts.delivered == counts.accepted, f"not all events were delivered: {counts}")
    arrived = upstream.get_counts("at-once")["actions"]
    expect(arrived == counts.accepted, f"{arrived} of {counts.accepted} impressions arrived")


def build_figure(rounds: Rounds, peer: str, limit: str, profile: Callable[[], object]) -> Figure:
    """Return the ratio of the times that our page and the peer's add to the plain page."""
    ours, its = (get_added(rounds, name) for name in ("ours", peer))
    ratios = rounds.compute(lambda of: (of["ours"] - of["plain"]) / (of[peer] - of["plain"]))
    return Figure(
        what=f"time added by 3 cached experiences with their impressions / by 3 evaluations of {peer}",
        baseline=its,
        ours=ours,
        ratio=median(ratios),
        limit=limit,
        unit="µs",
        notes=[describe(ratios), f"the plain page takes {rounds.median('plain') * 1e6:.1f} µs"],
        profile=profile,
    )


def get_added(rounds: Rounds, name: str) -> float:
    """Return the µs that a contender adds to the plain page."""
    return median(rounds.compute(lambda of: of[name] - of["plain"])) * 1e6


def count_steps(
    contenders: dict[str, Callable[[], bytes]], rounds: Rounds, settle: Callable[[str], None]
) -> Iterator[Figure]:
    """Yield a row for each contender: the times of the plain page and of its page, and the steps that it adds."""
    if sys.version_info < (3, 12):
        return
    from benchmarks import steps

    plain = None
    for name, page in contenders.items():
        found = steps.count_steps(page, lambda name=name: settle(name))
        plain = plain or found
        bytecodes, calls = (
            sum(getattr(found, each).values()) - (sum(getattr(plain, each).values()) if found is not plain else 0.0)
            for each in ("bytecodes", "calls")
        )
        yield Figure(
            what=f"{TITLES.get(name, name)}: {bytecodes:,.0f} bytecodes and {calls:,.0f} Python calls"
            + (" in all" if found is plain else " added"),
            baseline=rounds.median("plain") * 1e6,
            ours=rounds.median(name) * 1e6,
            difference=get_added(rounds, name),
            unit="µs",
            context={"bytecodes": bytecodes, "calls": calls},
        )


if __name__ == "__main__":
    run("P2", measure)

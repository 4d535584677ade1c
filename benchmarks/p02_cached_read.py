"""P2: three experiences from the cache, against three LaunchDarkly variations in the process, events on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from benchmarks import pages, site
from benchmarks.goal import Figure, Options, expect, run
from benchmarks.peers import prepare_waffle, start_launchdarkly
from benchmarks.timing import Rounds, alternate, describe
from benchmarks.upstream import KEYS, Upstream, start_upstream

CALLS = 30
"""Pages in a block. They make less than a batch of events, so no sender is timed here (P14 does that)."""


def configure(upstream: Upstream) -> None:
    """Set up the site that all contenders share."""
    site.configure(
        moe={**site.CREDENTIALS, "BASE_URL": upstream.url("at-once"), "CACHE_TTL": 3600, "CACHE_STALE_TTL": 3600},
        ROOT_URLCONF="benchmarks.peers",
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


def become_visitor(ours: site.Site) -> str:
    """Make the page warm for an anonymous visitor and return the visitor's cookies: the id and the campaign."""
    ours.check("/read_and_track/", pages.PERSONAL)
    cookies = [value.partition(";")[0] for name, value in ours.headers if name == "Set-Cookie"]
    expect(len(cookies) == 2, f"the anonymous visitor got {len(cookies)} cookies")
    return "; ".join(cookies)


def build_contenders(cookie: str) -> dict[str, Callable[[], bytes]]:
    """Return a checked page of each contender; all pages get the same request."""
    from benchmarks.site import NO_OP, OURS

    posthog = "posthog.integrations.django.PosthogContextMiddleware"
    contenders: dict[str, Callable[[], bytes]] = {}
    for name, middleware, address, content in (
        ("plain", [NO_OP], "/plain/", pages.DEFAULT),
        ("ours", [OURS], "/read_and_track/", pages.PERSONAL),
        ("LaunchDarkly", [NO_OP], "/launchdarkly/", pages.PERSONAL),
        ("GrowthBook", [NO_OP], "/growthbook/", pages.PERSONAL),
        ("waffle", ["waffle.middleware.WaffleMiddleware"], "/waffle/", pages.PERSONAL),
        ("PostHog's context middleware, nothing evaluated", [posthog], "/plain/", pages.DEFAULT),
    ):
        stack = site.Site(middleware)
        for _ in range(20):
            stack.check(address, content, HTTP_COOKIE=cookie)
            # The first pages leave work to background threads. The pages are warm when that work is done.
            time.sleep(0.005)
        contenders[name] = lambda get=stack.get, address=address: get(address, HTTP_COOKIE=cookie)
    return contenders


def measure(options: Options) -> Iterator[Figure]:
    """Time what each contender adds to the same request."""
    with start_upstream() as upstream:
        configure(upstream)
        with start_launchdarkly(upstream) as launchdarkly_client:
            contenders = build_contenders(become_visitor(site.Site([site.OURS])))
            from django_moe_personalize.delivery.base import get_delivery

            delivery = get_delivery()

            def settle(name: str, calls: int) -> None:
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
            yield build_figure(rounds, lambda: [contenders["ours"]() for _ in range(5000)])
            delivery.flush(5.0)


def check_events(upstream: Upstream, before: int, counts: Any, *, pages: int) -> None:
    """Raise WrongMeasurement unless the impressions of all pages were accepted and delivered, and arrived."""
    expect(counts.accepted - before == pages * len(KEYS), f"{pages} pages had {counts.accepted - before} impressions")
    expect(not counts.pending and counts.delivered == counts.accepted, f"not all events were delivered: {counts}")
    arrived = upstream.get_counts("at-once")["actions"]
    expect(arrived == counts.accepted, f"{arrived} of {counts.accepted} impressions arrived")


def build_figure(rounds: Rounds, profile: Callable[[], object]) -> Figure:
    """Return the ratio of the times that our page and LaunchDarkly's add to the plain page."""
    added = {name: median(rounds.compute(lambda of, name=name: of[name] - of["plain"])) * 1e6 for name in rounds.values}
    ratios = rounds.compute(lambda of: (of["ours"] - of["plain"]) / (of["LaunchDarkly"] - of["plain"]))
    context = {f"{name}, added µs": µs for name, µs in added.items() if name not in ("plain", "ours", "LaunchDarkly")}
    return Figure(
        what="time added by 3 cached experiences with their impressions / by 3 LaunchDarkly variations",
        baseline=added["LaunchDarkly"],
        ours=added["ours"],
        ratio=median(ratios),
        limit="<= 0.75",
        unit="µs",
        notes=[describe(ratios), f"the plain page takes {rounds.median('plain') * 1e6:.1f} µs"],
        context=context,
        profile=profile,
    )


if __name__ == "__main__":
    run("P2", measure)

"""P1: a page that reads no experience, against the same page with a no-op class middleware."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from benchmarks import site
from benchmarks.goal import Figure, Options, expect, run
from benchmarks.pages import DEFAULT
from benchmarks.timing import alternate, describe
from benchmarks.upstream import start_upstream

BELOW = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]


def measure(options: Options) -> Iterator[Figure]:
    """Time the bare page; check on a site with sessions and users that nothing is touched."""
    with start_upstream() as upstream:
        # The site as its owner would have it: default identity, thread delivery, a reachable vendor.
        site.configure(moe={**site.CREDENTIALS, "BASE_URL": upstream.url("at-once")})
        notes = check_untouched()
        plain, ours = site.Site([site.NO_OP]), site.Site([site.OURS])
        bare = site.Site([])
        rounds = alternate(
            {
                "no middleware": lambda: bare.get("/plain/"),
                "no-op": lambda: plain.get("/plain/"),
                "ours": lambda: ours.get("/plain/"),
            },
            rounds=options.pick(301, 101),
        )
        counts = upstream.get_counts("at-once")
        expect(not any(counts.values()), f"the upstream was asked: {counts}")
        ratios = rounds.ratio("ours", "no-op")
        yield Figure(
            what="a page that reads nothing / with a no-op middleware",
            baseline=rounds.median("no-op") * 1e6,
            ours=rounds.median("ours") * 1e6,
            ratio=median(ratios),
            limit="<= 1.05",
            unit="µs",
            notes=[describe(ratios), *notes],
            context={"no middleware, µs": rounds.median("no middleware") * 1e6},
            profile=lambda: [ours.get("/plain/") for _ in range(20_000)],
        )


def check_untouched() -> list[str]:
    """Return what was proved beside the timing: nothing touched, and the same bytes."""
    plain, ours = site.Site([*BELOW, site.NO_OP]), site.Site([*BELOW, "benchmarks.site.Witness", site.OURS])
    cookie = {"HTTP_COOKIE": "sessionid=0123456789abcdef0123456789abcdef; moe_id=x"}
    expected, got = plain.check("/plain/", DEFAULT, **cookie), ours.check("/plain/", DEFAULT, **cookie)
    expect((plain.status, plain.headers, expected) == (ours.status, ours.headers, got), "the response differs")
    expect(site.Witness.seen == 1, "the middleware was not there")
    # DATABASES is empty: a query would have been an ImproperlyConfigured.
    return ["response identical byte by byte; no query, session and user untouched, upstream not asked"]


if __name__ == "__main__":
    run("P1", measure)

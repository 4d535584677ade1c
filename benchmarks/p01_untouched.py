"""P1: a page that reads no experience, against the same page with a middleware class that does nothing."""

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
    """Time the bare page; check on a site with sessions and users that the package touches neither."""
    with start_upstream() as upstream:
        # A usual site: default identity, thread delivery, a reachable vendor.
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
        expect(not any(counts.values()), f"the upstream got calls: {counts}")
        ratios = rounds.ratio("ours", "no-op")
        yield Figure(
            what="a page that reads nothing / the page with a no-op middleware",
            baseline=rounds.median("no-op") * 1e6,
            ours=rounds.median("ours") * 1e6,
            ratio=median(ratios),
            limit="<= 1.03",
            unit="µs",
            notes=[describe(ratios), *notes],
            context={"no middleware, µs": rounds.median("no middleware") * 1e6},
            profile=lambda: [ours.get("/plain/") for _ in range(20_000)],
        )


def check_untouched() -> list[str]:
    """Check that a page that reads nothing is the same, byte for byte, and touches nothing; return the notes."""
    plain, ours = site.Site([*BELOW, site.NO_OP]), site.Site([*BELOW, "benchmarks.site.Witness", site.OURS])
    cookie = {"HTTP_COOKIE": "sessionid=0123456789abcdef0123456789abcdef; moe_id=x"}
    expected, got = plain.check("/plain/", DEFAULT, **cookie), ours.check("/plain/", DEFAULT, **cookie)
    expect((plain.status, plain.headers, expected) == (ours.status, ours.headers, got), "the response differs")
    expect(site.Witness.seen == 1, "the page did not pass the middleware")
    # DATABASES is empty: any query raises ImproperlyConfigured.
    return ["the response is the same, byte for byte; no query, no session, no user, no upstream call"]


if __name__ == "__main__":
    run("P1", measure)

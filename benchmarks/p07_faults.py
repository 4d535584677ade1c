"""P7: throughput and slow pages while the upstream fails in six ways, against no personalization."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.goal import Figure, Options, run
from benchmarks.load import Client, Outcome, connect, pool
from benchmarks.serving import build_site, profile, start_gunicorn
from benchmarks.site import READ
from benchmarks.timing import describe
from benchmarks.upstream import KEYS, Upstream, never_accept, refuse, start_upstream

CONNECTIONS = 16
DEADLINE = 0.1
BEFORE_SECONDS = 0.5
"""The time after the first page in which the breaker is still closed and pages wait for the upstream."""

SETTLE_SECONDS = 1.0

FAULTS = ("refusing", "hanging", "dripping", "never accepting", "500", "429")


@dataclass
class Met:
    """The outcomes under one fault."""

    before: Outcome
    plain: list[Outcome] = field(default_factory=list)
    ours: list[Outcome] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Our throughput divided by the plain site's, for each block."""
        return [ours.throughput / plain.throughput for ours, plain in zip(self.ours, self.plain, strict=True)]

    @property
    def late(self) -> float:
        """Milliseconds by which our p99 is above the plain site's."""
        return (pool(self.ours).quantile(0.99) - pool(self.plain).quantile(0.99)) * 1000


@contextmanager
def start_fault(upstream: Upstream, fault: str) -> Iterator[str]:
    """Yield a base URL that has the fault."""
    if fault == "refusing":
        with refuse() as url:
            yield url
    elif fault == "never accepting":
        with never_accept() as url:
            yield url
    else:
        behaviors = {"hanging": "hang", "dripping": "drip", "500": "status-500", "429": "status-429"}
        yield upstream.url(behaviors[fault])


def measure(options: Options) -> Iterator[Figure]:
    """Load the plain site and ours in turn; ours is started again for each fault. Every page must be a 200."""
    with ExitStack() as stack:
        upstream = stack.enter_context(start_upstream())
        plain = stack.enter_context(connect(stack.enter_context(start_gunicorn(build_site())), CONNECTIONS))
        plain.run("/io_plain/", 1.0)
        met = {fault: meet(upstream, plain, fault, *options.pick((3.0, 3), (1.2, 2))) for fault in FAULTS}
        for fault, found in met.items():
            figure = build_throughput(fault, found)
            with start_fault(upstream, fault) as url:
                figure.profile = profile(build_faulty(url, view=0.0), "/io_ours/", pages=1000)
                yield figure
        yield build_late(met)
        yield build_before(met, start_plain())


def build_faulty(url: str, view: float = 0.03) -> dict[str, Any]:
    """Return our site. It declares its keys, since a site that starts in an outage can't learn them."""
    return build_site(base_url=url, view=view, DEADLINE=DEADLINE, EXPERIENCES={"io_ours": list(KEYS)})


def start_plain() -> Outcome:
    """Return the outcome of a plain site's first pages, some of which are slow by themselves."""
    with start_gunicorn(build_site()) as server, connect(server, CONNECTIONS) as client:
        return client.run("/io_plain/", BEFORE_SECONDS).check()


def meet(upstream: Upstream, plain: Client, fault: str, seconds: float, blocks: int) -> Met:
    """Return the outcomes under ``fault``, beginning with the first page of a new site."""
    with ExitStack() as stack:
        url = stack.enter_context(start_fault(upstream, fault))
        site = build_faulty(url)
        ours = stack.enter_context(connect(stack.enter_context(start_gunicorn(site)), CONNECTIONS))
        found = Met(ours.run("/io_ours/", BEFORE_SECONDS, mark=READ).check(marked=1))
        ours.run("/io_ours/", SETTLE_SECONDS).check()
        for _ in range(blocks):
            found.plain.append(plain.run("/io_plain/", seconds).check())
            found.ours.append(ours.run("/io_ours/", seconds, mark=READ).check(marked=1))
        return found


def build_throughput(fault: str, met: Met) -> Figure:
    """Return the pages per second under one fault, against the plain site's."""
    return Figure(
        what=f"pages/s, upstream {fault} / without personalization",
        baseline=median(outcome.throughput for outcome in met.plain),
        ours=median(outcome.throughput for outcome in met.ours),
        ratio=median(met.ratios),
        limit=">= 0.98",
        unit="pages/s",
        notes=[describe(met.ratios), "every page is a 200"],
        context={
            "p99 without personalization, ms": pool(met.plain).quantile(0.99) * 1000,
            "p99 ours, ms": pool(met.ours).quantile(0.99) * 1000,
            "slowest page before the breaker opened, ms": met.before.quantile(1.0) * 1000,
        },
    )


def build_late(met: dict[str, Met]) -> Figure:
    """Return the p99 above the plain site's while the breaker is open, for the worst fault."""
    fault = max(met, key=lambda name: met[name].late)
    return Figure(
        what=f"p99 above that without personalization, breaker open, worst fault ({fault})",
        baseline=pool(met[fault].plain).quantile(0.99) * 1000,
        ours=pool(met[fault].ours).quantile(0.99) * 1000,
        difference=met[fault].late,
        limit="<= 3 ms more",
        unit="ms",
        notes=[f"{name}: {found.late:+.1f} ms" for name, found in met.items()],
    )


def build_before(met: dict[str, Met], plain: Outcome) -> Figure:
    """Return the slowest page beyond the deadline before the breaker opened, for the worst fault."""
    slowest = {name: found.before.quantile(1.0) * 1000 for name, found in met.items()}
    fault = max(slowest, key=lambda name: slowest[name])
    return Figure(
        what=f"slowest page beyond the deadline, before the breaker opened, worst fault ({fault})",
        baseline=DEADLINE * 1000,
        ours=slowest[fault],
        difference=slowest[fault] - DEADLINE * 1000,
        limit="<= 15 ms more",
        unit="ms",
        notes=[f"{name}: {ms:.0f} ms, {met[name].before.count} pages" for name, ms in slowest.items()],
        context={"slowest of the plain site's first pages, ms": plain.quantile(1.0) * 1000},
    )


if __name__ == "__main__":
    run("P7", measure)

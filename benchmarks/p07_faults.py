"""P7: throughput and late pages while the upstream fails in six ways, against no personalization."""

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
"""From the first page on: the time in which the breaker has seen nothing yet and pages wait."""

SETTLE_SECONDS = 1.0

FAULTS = ("refusing", "hanging", "dripping", "never accepting", "500", "429")


@dataclass
class Met:
    """What pages met under one fault."""

    before: Outcome
    plain: list[Outcome] = field(default_factory=list)
    ours: list[Outcome] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Throughput against the plain site, block by block."""
        return [ours.throughput / plain.throughput for ours, plain in zip(self.ours, self.plain, strict=True)]

    @property
    def late(self) -> float:
        """Milliseconds by which our p99 is above the plain one."""
        return (pool(self.ours).quantile(0.99) - pool(self.plain).quantile(0.99)) * 1000


@contextmanager
def start_fault(upstream: Upstream, fault: str) -> Iterator[str]:
    """Give a base URL that fails so."""
    if fault == "refusing":
        with refuse() as url:
            yield url
    elif fault == "never accepting":
        with never_accept() as url:
            yield url
    else:
        behaviours = {"hanging": "hang", "dripping": "drip", "500": "status-500", "429": "status-429"}
        yield upstream.url(behaviours[fault])


def measure(options: Options) -> Iterator[Figure]:
    """Load the plain site and ours by turns, ours started anew for each fault. Every page has to be a 200."""
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
    """Return our site; it declares its keys, since a site that starts in an outage has nothing to learn them from."""
    return build_site(base_url=url, view=view, DEADLINE=DEADLINE, EXPERIENCES={"io_ours": list(KEYS)})


def start_plain() -> Outcome:
    """Return what the first pages of a plain site meet: a start has slow pages of its own."""
    with start_gunicorn(build_site()) as server, connect(server, CONNECTIONS) as client:
        return client.run("/io_plain/", BEFORE_SECONDS).check()


def meet(upstream: Upstream, plain: Client, fault: str, seconds: float, blocks: int) -> Met:
    """Return what pages met under ``fault``, from the first page of a new site on."""
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
    """Return pages a second under one fault, against the plain site's."""
    return Figure(
        what=f"pages/s, upstream {fault} / no personalization",
        baseline=median(outcome.throughput for outcome in met.plain),
        ours=median(outcome.throughput for outcome in met.ours),
        ratio=median(met.ratios),
        limit=">= 0.97",
        unit="pages/s",
        notes=[describe(met.ratios), "no page but 200"],
        context={
            "p99 no personalization, ms": pool(met.plain).quantile(0.99) * 1000,
            "p99 ours, ms": pool(met.ours).quantile(0.99) * 1000,
            "slowest page before the breaker opened, ms": met.before.quantile(1.0) * 1000,
        },
    )


def build_late(met: dict[str, Met]) -> Figure:
    """Return the fault under which p99 is furthest above the plain one, the breaker being open."""
    fault = max(met, key=lambda name: met[name].late)
    return Figure(
        what=f"p99 with the breaker open, worst of all faults ({fault}), above no personalization",
        baseline=pool(met[fault].plain).quantile(0.99) * 1000,
        ours=pool(met[fault].ours).quantile(0.99) * 1000,
        difference=met[fault].late,
        limit="<= 3 ms more",
        unit="ms",
        notes=[f"{name}: {found.late:+.1f} ms" for name, found in met.items()],
    )


def build_before(met: dict[str, Met], plain: Outcome) -> Figure:
    """Return the fault with the slowest page before the breaker opened, beyond the deadline."""
    slowest = {name: found.before.quantile(1.0) * 1000 for name, found in met.items()}
    fault = max(slowest, key=lambda name: slowest[name])
    return Figure(
        what=f"slowest page before the breaker opened, worst of all faults ({fault}), beyond the deadline",
        baseline=DEADLINE * 1000,
        ours=slowest[fault],
        difference=slowest[fault] - DEADLINE * 1000,
        limit="<= 15 ms more",
        unit="ms",
        notes=[f"{name}: {ms:.0f} ms, {met[name].before.count} pages" for name, ms in slowest.items()],
        context={"slowest of a plain site's first pages, ms": plain.quantile(1.0) * 1000},
    )


if __name__ == "__main__":
    run("P7", measure)

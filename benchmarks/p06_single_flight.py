"""P6: upstream calls of 1,000 concurrent identical misses: in one process, and in four with Redis. Counts."""

from __future__ import annotations

import multiprocessing
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import pages, site
from benchmarks.goal import Figure, Options, expect, run
from benchmarks.upstream import Upstream, start_upstream, stop

MISSES = 1000
PROCESSES = 4
BEHAVIOUR = "delay-0.300"
DEADLINE = 20.0
VISITOR = "the-same"
START_SECONDS = 60.0


def ask_together(ours: site.Site, number: int, meet: Any) -> int:
    """Return how many of ``number`` pages of one visitor, asked for at once, have their experiences."""
    found: list[bool] = []
    barrier = threading.Barrier(number + 1)

    def ask() -> None:
        barrier.wait(START_SECONDS)
        body = ours.get("/read_first/", HTTP_X_VISITOR=VISITOR)
        found.append(pages.PERSONAL.encode() in body)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    meet()
    barrier.wait(START_SECONDS)
    for thread in threads:
        thread.join(DEADLINE + 10)
    expect(len(found) == number, f"{number - len(found)} pages never came")
    return sum(found)


def build_figure(what: str, calls: int, personal: int) -> Figure:
    """Return a count of calls; pages without their experiences make it a miss whatever the count."""
    notes = [f"{personal} of {MISSES} pages have their experiences"]
    if personal < MISSES:
        notes.append("so it is not reached: a call that is not made for a page that goes without is no single flight")
        return Figure(what=what, baseline=1, ours=calls, ratio=float("nan"), limit="<= 1", unit="calls", notes=notes)
    return Figure(what=what, baseline=1, ours=calls, limit="<= 1", unit="calls", notes=notes)


def measure(options: Options) -> Iterator[Figure]:
    """Count in this process, then in four."""
    with start_upstream() as upstream:
        site.configure(moe=site.build_moe(upstream.url(BEHAVIOUR), DEADLINE=DEADLINE))
        ours = site.Site([site.OURS])
        # The route is known, as it is on a running site; the visitor is not.
        ours.check("/read_first/", pages.PERSONAL, HTTP_X_VISITOR="another")
        before = upstream.get_counts(BEHAVIOUR)["fetches"]
        personal = ask_together(ours, MISSES, lambda: None)
        calls = upstream.get_counts(BEHAVIOUR)["fetches"] - before
        expect(personal and calls, "no page had an experience")
        yield build_figure(f"calls for {MISSES:,} concurrent identical misses in one process", calls, personal)
        yield measure_processes(upstream)


def measure_processes(upstream: Upstream) -> Figure:
    """Return the count of four processes on one Redis; unmeasured where there is no redis-server."""
    what = f"calls for {MISSES:,} concurrent identical misses in {PROCESSES} processes with Redis"
    if shutil.which("redis-server") is None:
        notes = ["not measured: there is no redis-server in PATH"]
        return Figure(what=what, baseline=1, ours=float("nan"), limit="<= 1", unit="calls", notes=notes)
    base_url = upstream.url(f"{BEHAVIOUR}/redis")
    context = multiprocessing.get_context("spawn")
    with start_redis() as redis, context.Pool(PROCESSES, _keep, (context.Barrier(PROCESSES),)) as pool:
        counts = [pool.apply_async(work, (base_url, redis)) for _ in range(PROCESSES)]
        personal = sum(count.get(2 * START_SECONDS + DEADLINE) for count in counts)
    # Each process made its route known with a visitor of its own.
    calls = upstream.get_counts(f"{BEHAVIOUR}/redis")["fetches"] - PROCESSES
    return build_figure(what, calls, personal)


_together: list[Any] = []


def _keep(barrier: Any) -> None:
    # A barrier is inherited, not sent.
    _together.append(barrier)


def work(base_url: str, redis: str) -> int:
    """Ask for a process's share of the pages when all processes are ready; return how many are whole."""
    cache = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": redis}}
    site.configure(moe=site.build_moe(base_url, DEADLINE=DEADLINE), CACHES=cache)
    ours = site.Site([site.OURS])
    ours.check("/read_first/", pages.PERSONAL, HTTP_X_VISITOR=site.name_visitor())
    return ask_together(ours, MISSES // PROCESSES, lambda: _together[0].wait(START_SECONDS))


@contextmanager
def start_redis() -> Iterator[str]:
    """Run a Redis of our own, in memory, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([*command, "--loglevel", "warning"], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                expect(time.monotonic() < end and process.poll() is None, "redis-server did not start")
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}"
    finally:
        stop(process)


if __name__ == "__main__":
    run("P6", measure)

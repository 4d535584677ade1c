"""P6: count the upstream calls of 1,000 concurrent identical misses, in one process and in four with Redis."""

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
BEHAVIOR = "delay-0.300"
DEADLINE = 20.0
VISITOR = "the-same"
START_SECONDS = 60.0


def ask_together(ours: site.Site, number: int, meet: Any) -> int:
    """Ask for ``number`` pages of one visitor at once; return how many of them have their experiences.

    ``meet`` is called when all threads have started, to wait for the other processes.
    """
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
    expect(len(found) == number, f"{number - len(found)} pages did not end")
    return sum(found)


def build_figure(what: str, calls: int, personal: int) -> Figure:
    """Return the count of calls; it is not reached if a page lacks its experiences."""
    notes = [f"{personal} of {MISSES} pages have their experiences"]
    if personal < MISSES:
        notes.append("not reached: a page without its experiences also saves a call")
        return Figure(what=what, baseline=1, ours=calls, ratio=float("nan"), limit="<= 1", unit="calls", notes=notes)
    return Figure(what=what, baseline=1, ours=calls, limit="<= 1", unit="calls", notes=notes)


def measure(options: Options) -> Iterator[Figure]:
    """Count in this process, then in four processes."""
    with start_upstream() as upstream:
        site.configure(moe=site.build_moe(upstream.url(BEHAVIOR), DEADLINE=DEADLINE))
        ours = site.Site([site.OURS])
        # The route has learned its experiences, as on a running site; the visitor is new.
        ours.check("/read_first/", pages.PERSONAL, HTTP_X_VISITOR="another")
        before = upstream.get_counts(BEHAVIOR)["fetches"]
        personal = ask_together(ours, MISSES, lambda: None)
        calls = upstream.get_counts(BEHAVIOR)["fetches"] - before
        expect(personal and calls, "no page has its experiences")
        yield build_figure(f"calls for {MISSES:,} concurrent identical misses in one process", calls, personal)
        yield measure_processes(upstream)


def measure_processes(upstream: Upstream) -> Figure:
    """Return the count of four processes on one Redis; without a redis-server it is not measured."""
    what = f"calls for {MISSES:,} concurrent identical misses in {PROCESSES} processes with Redis"
    if shutil.which("redis-server") is None:
        notes = ["not measured: PATH has no redis-server"]
        return Figure(what=what, baseline=1, ours=float("nan"), limit="<= 1", unit="calls", notes=notes)
    base_url = upstream.url(f"{BEHAVIOR}/redis")
    context = multiprocessing.get_context("spawn")
    with start_redis() as redis, context.Pool(PROCESSES, _keep, (context.Barrier(PROCESSES),)) as pool:
        counts = [pool.apply_async(work, (base_url, redis)) for _ in range(PROCESSES)]
        personal = sum(count.get(2 * START_SECONDS + DEADLINE) for count in counts)
    # Each process made one more call, with a visitor of its own, to learn its route.
    calls = upstream.get_counts(f"{BEHAVIOR}/redis")["fetches"] - PROCESSES
    return build_figure(what, calls, personal)


_together: list[Any] = []


def _keep(barrier: Any) -> None:
    # A child process inherits a barrier; it can't be sent to one.
    _together.append(barrier)


def work(base_url: str, redis: str) -> int:
    """Ask for this process's share of the pages when all processes are ready; return how many are personal."""
    cache = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": redis}}
    site.configure(moe=site.build_moe(base_url, DEADLINE=DEADLINE), CACHES=cache)
    ours = site.Site([site.OURS])
    ours.check("/read_first/", pages.PERSONAL, HTTP_X_VISITOR=site.name_visitor())
    return ask_together(ours, MISSES // PROCESSES, lambda: _together[0].wait(START_SECONDS))


@contextmanager
def start_redis() -> Iterator[str]:
    """Run a Redis on a free port, without persistence; yield its URL."""
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

"""What the processes of a site share through Redis or Memcached, and what becomes of pages without it."""

from __future__ import annotations

import itertools
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.services.echo import Echo
from tests.services.load import Line, Page, companions, connect, count_statuses, name_visitor, together, visit
from tests.services.serving import (
    build_memcached_cache,
    build_redis_cache,
    find_free_port,
    start_gunicorn,
    start_memcached,
    start_redis,
)
from tests.services.test_faults import poll

PROCESSES = 4
DEADLINE = 10.0
"""So long that nobody sees a default because a machine is busy."""

SHORT_DEADLINE = 0.5


@pytest.fixture(params=["redis", "memcached"])
def caches(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Run a cache server and give the CACHES for it."""
    start, build = {
        "redis": (start_redis, build_redis_cache),
        "memcached": (start_memcached, build_memcached_cache),
    }[request.param]
    port = find_free_port()
    with start(port):
        yield build(port)


def test_identical_misses_of_all_processes_are_one_call(caches: dict[str, Any], folder: Path) -> None:
    """12 pages of a new visitor at once, in 4 processes: one asks, all show its answer, then and later."""
    with (
        Echo(delay=0.3) as upstream,
        start_gunicorn(upstream.url, folder, workers=PROCESSES, caches=caches, DEADLINE=DEADLINE) as server,
        connect(server, 3) as lines,
    ):
        # Each process opens its connections to the cache and to the upstream.
        assert all(name in get(line, name).body for line in lines for name in [name_visitor()])
        for visitor in (name_visitor() for _ in range(3)):
            pages = together([lambda line=line, visitor=visitor: get(line, visitor) for line in lines])
            calls = upstream.count_fetches(visitor)
            later = [get(line, visitor) for line in lines]

            print(f"{len(pages)} pages in {len({page.worker for page in pages})} processes: {calls} call")
            assert len({page.worker for page in pages}) == PROCESSES
            assert {page.body for page in pages + later} == {pages[0].body}
            assert visitor in pages[0].body
            assert (calls, upstream.count_fetches(visitor)) == (1, 1)
        assert server.read_log() == ""


def test_what_one_process_learned_the_others_read(caches: dict[str, Any], folder: Path) -> None:
    """A visitor who moves between processes is asked for once."""
    with (
        Echo() as upstream,
        start_gunicorn(upstream.url, folder, caches=caches, DEADLINE=DEADLINE) as server,
        connect(server, 1) as lines,
    ):
        for visitor in (name_visitor() for _ in range(10)):
            assert upstream_calls_for_a_round(upstream, lines, visitor) == 1


def get(line: Line, visitor: str) -> Page:
    """Read the visitor's page."""
    return line.get("/page/", visitor)


def upstream_calls_for_a_round(upstream: Echo, lines: list[Line], visitor: str) -> int:
    """Return the calls made for a visitor who reads one page in each process, the second when the first has stored."""
    first, *others = lines
    assert visitor in get(first, visitor).body
    poll(first.read_state, lambda state: state["in_flight"] == 0, 10.0)
    assert all(visitor in get(line, visitor).body for line in others)
    return upstream.count_fetches(visitor)


@contextmanager
def serving_on_redis(folder: Path, **moe: Any) -> Iterator[tuple[Any, Echo, list[Line], Callable[[], Any], ExitStack]]:
    """Give a site on a Redis, its upstream, its lines, and what starts the Redis on an ExitStack."""
    port = find_free_port()
    with ExitStack() as redis, Echo() as upstream:
        start = lambda: redis.enter_context(start_redis(port))  # noqa: E731 - said once, used twice
        process = start()
        with (
            start_gunicorn(upstream.url, folder, caches=build_redis_cache(port), **moe) as server,
            connect(server, 4) as lines,
        ):
            yield server, upstream, lines, start, process


def test_redis_killed_and_started_again_costs_no_page(folder: Path) -> None:
    """Pages keep status and content; each process says once what is wrong; then the cache is used again."""
    with serving_on_redis(folder, DEADLINE=DEADLINE) as (server, upstream, lines, start, redis):
        assert upstream_calls_for_a_round(upstream, lines[:2], name_visitor()) == 1
        pages = []
        for number in itertools.count():
            pages += visit(lines, 40, lambda line, _: (name := name_visitor(), get(line, name)))
            if number == 1:
                redis.kill()
                redis.wait(10)
            elif number == 3:
                start()
            elif number == 5:
                break
        calls = [upstream_calls_for_a_round(upstream, lines[:2], name_visitor()) for _ in range(3)]
        said = server.read_log().splitlines()

    print(f"{len(pages)} pages, {len(said)} lines in the log of {len({page.worker for _, page in pages})} processes")
    assert count_statuses([page for _, page in pages]) == {200: 240}
    assert [name for name, page in pages if name not in page.body] == []
    assert calls == [1, 1, 1]
    assert said
    assert all("The cache" in line for line in said), said
    assert max(Counter(said).values()) == 1, said


def test_redis_that_hangs_costs_no_page_more_than_its_deadline(folder: Path) -> None:
    """A Redis that takes connections and answers nothing delays pages up to the deadline; then content is back."""
    with serving_on_redis(folder, DEADLINE=SHORT_DEADLINE) as (server, _, lines, _, redis):
        beside, lines = lines[:2], lines[2:]
        visit(lines, 12, lambda line, _: get(line, name_visitor()))
        with companions(beside) as find_lateness:
            redis.send_signal(signal.SIGSTOP)
            try:
                pages = visit(lines, 60, lambda line, _: get(line, name_visitor()))
            finally:
                redis.send_signal(signal.SIGCONT)
        back = [poll(lambda line=line: get(line, name_visitor()), lambda page: "visitor-" in page.body, 10.0) for line in lines]

    slowest = max(page.seconds for page in pages)
    late = max(page.seconds - SHORT_DEADLINE - 0.1 - find_lateness(page) for page in pages)
    print(f"{len(pages)} pages while Redis hung, slowest {slowest:.3f} s")
    assert count_statuses(pages) == {200: 60}
    assert late <= 0.0
    assert all("visitor-" in page.body for page in back)

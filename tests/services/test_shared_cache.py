"""The processes of a site share answers through Redis or Memcached, and pages survive without it."""

import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.services.echo import Echo
from tests.services.load import ANSWER_SECONDS, Line, Page, companions, connect, name_visitor, poll, together, visit
from tests.services.serving import (
    Server,
    build_redis_cache,
    find_free_port,
    start_cache,
    start_gunicorn,
    start_redis,
)

PROCESSES = 4
DEADLINE = 10.0
"""So long that no page shows a default because the machine is busy."""

SHORT_DEADLINE = 0.5
ALLOWANCE = 0.1


@pytest.fixture(params=["redis", "memcached"])
def caches(request):
    with start_cache(request.param) as caches:
        yield caches


def test_identical_misses_of_all_processes_are_one_call(caches, folder, tell):
    """Of 12 pages of a new visitor at once, in 4 processes, one asks; all show its answer, then and later."""
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

            tell(f"{len(pages)} pages in {len({page.worker for page in pages})} processes: {calls} call")
            assert len({page.worker for page in pages}) == PROCESSES
            assert {page.body for page in pages + later} == {pages[0].body}
            assert visitor in pages[0].body
            assert (calls, upstream.count_fetches(visitor)) == (1, 1)
        assert server.read_log() == ""


def test_processes_read_each_others_answers(caches, folder):
    """MoEngage is asked once for a visitor who moves between processes."""
    with (
        Echo() as upstream,
        start_gunicorn(upstream.url, folder, caches=caches, DEADLINE=DEADLINE) as server,
        connect(server, 1) as lines,
    ):
        for visitor in (name_visitor() for _ in range(10)):
            assert count_calls_for_a_round(upstream, lines, visitor) == 1


def get(line: Line, visitor: str) -> Page:
    return line.get("/page/", visitor)


def count_calls_for_a_round(upstream: Echo, lines: list[Line], visitor: str) -> int:
    """Return the calls made for a visitor who reads one page in each process, the second when the first has stored."""
    first, *others = lines
    assert visitor in get(first, visitor).body
    poll(first.read_state, lambda state: state["in_flight"] == 0, ANSWER_SECONDS)
    assert all(visitor in get(line, visitor).body for line in others)
    return upstream.count_fetches(visitor)


@dataclass
class OnRedis:
    """A site and its Redis; ``start_again()`` starts another Redis on the same port."""

    server: Server
    upstream: Echo
    lines: list[Line]
    redis: subprocess.Popen[bytes]
    start_again: Callable[[], object]


@contextmanager
def serving_on_redis(folder: Path, **moe: Any) -> Iterator[OnRedis]:
    port = find_free_port()
    with ExitStack() as stack:
        redis = stack.enter_context(start_redis(port))
        upstream = stack.enter_context(Echo())
        server = stack.enter_context(start_gunicorn(upstream.url, folder, caches=build_redis_cache(port), **moe))
        lines = stack.enter_context(connect(server, 4))
        yield OnRedis(server, upstream, lines, redis, lambda: stack.enter_context(start_redis(port)))


def read_as_new(line: Line, _: int) -> tuple[str, Page]:
    """Return a new visitor and their page."""
    visitor = name_visitor()
    return visitor, get(line, visitor)


def test_redis_killed_and_started_again_costs_no_page(folder, tell):
    """Pages keep status and content, each process logs the problem once, and then the cache is used again."""
    with serving_on_redis(folder, DEADLINE=DEADLINE) as site:
        assert count_calls_for_a_round(site.upstream, site.lines[:2], name_visitor()) == 1
        pages = visit(site.lines, 80, read_as_new)
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(visit, site.lines, 160, read_as_new)
            site.redis.kill()
            site.redis.wait(10)
            pages += beside.result()
        calls_without = count_calls_for_a_round(site.upstream, site.lines[:2], name_visitor())
        site.start_again()
        pages += visit(site.lines, 80, read_as_new)
        calls = [count_calls_for_a_round(site.upstream, site.lines[:2], name_visitor()) for _ in range(3)]
        said = site.server.read_log().splitlines()

    tell(f"{len(pages)} pages, {len(said)} lines in the log of {len({page.worker for _, page in pages})} processes")
    assert Counter(page.status for _, page in pages) == {200: 320}
    assert [visitor for visitor, page in pages if visitor not in page.body] == []
    assert (calls_without, calls) == (2, [1, 1, 1])
    assert said
    assert all("The cache" in line for line in said), said
    assert max(Counter(said).values()) == 1, said


def test_redis_that_hangs_costs_no_page_more_than_its_deadline(folder, tell):
    """A Redis that accepts connections and answers nothing delays pages up to the deadline; then content is back."""
    with serving_on_redis(folder, DEADLINE=SHORT_DEADLINE) as site:
        beside, lines = site.lines[:2], site.lines[2:]
        visit(lines, 12, read_as_new)
        with companions(beside) as find_lateness:
            site.redis.send_signal(signal.SIGSTOP)
            try:
                pages = [page for _, page in visit(lines, 60, read_as_new)]
            finally:
                site.redis.send_signal(signal.SIGCONT)
        for line in lines:
            visitor, page = poll(partial(read_as_new, line, 0), lambda read: read[0] in read[1].body, ANSWER_SECONDS)
            assert visitor in page.body

    late = max(page.seconds - SHORT_DEADLINE - ALLOWANCE - find_lateness(page) for page in pages)
    tell(f"{len(pages)} pages while Redis hung, slowest {max(page.seconds for page in pages):.3f} s")
    assert Counter(page.status for page in pages) == {200: 60}
    assert late <= 0.0

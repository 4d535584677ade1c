"""Visitors of a running site: connections to each of its processes, and the time that each page takes."""

import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.pages import BROWSER
from tests.services.serving import Server
from tests.services.site import WITHOUT

T = TypeVar("T")

ANSWER_SECONDS = 30.0
PACE = 0.01
EVENTS = "X-Events"

_visitors = itertools.count()


def name_visitor() -> str:
    return f"visitor-{next(_visitors)}"


@dataclass(frozen=True)
class Page:
    """One response. ``due`` is the moment on the monotonic clock at which its request was due."""

    status: int
    body: str
    worker: str
    due: float
    end: float
    events: Sequence[str] = ()
    """The UUIDs of its events, from a site that tells them in the header EVENTS."""

    @property
    def seconds(self) -> float:
        return self.end - self.due


class Line:
    """One connection to the site, for one page after another."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
        self.worker = ""

    def get(self, path: str, visitor: str = "", *, due: float | None = None) -> Page:
        due = time.monotonic() if due is None else due
        self._connection.request("GET", path, headers={"X-Visitor": visitor or name_visitor(), "User-Agent": BROWSER})
        answer = self._connection.getresponse()
        body = answer.read().decode()
        events = [event for event in answer.headers.get(EVENTS, "").split(",") if event]
        page = Page(answer.status, body, answer.headers.get("X-Worker", self.worker), due, time.monotonic(), events)
        assert self.worker in ("", page.worker), "a connection went from one process to another"
        self.worker = page.worker
        return page

    def read_state(self) -> dict[str, Any]:
        return json.loads(self.get("/state/").body)

    def close(self) -> None:
        self._connection.close()


@contextmanager
def connect(server: Server, lines_a_worker: int) -> Iterator[list[Line]]:
    """Give the same number of lines to each process of the site, in turns.

    The kernel may give all connections to one process. So lines are opened until each process has its share.
    """
    shares: dict[str, list[Line]] = {}
    opened: list[Line] = []
    end = time.monotonic() + ANSWER_SECONDS
    try:
        while len(shares) < server.workers or min(map(len, shares.values())) < lines_a_worker:
            assert time.monotonic() < end, f"connections go to {list(shares)} alone"
            batch = [Line(server.port) for _ in range(8)]
            opened += batch
            # At the same time, so that a process that is busy leaves some lines to the others.
            together([lambda line=line: line.get("/unrelated/") for line in batch])
            for line in batch:
                share = shares.setdefault(line.worker, [])
                (share.append if len(share) < lines_a_worker else lambda line: line.close())(line)
        yield [line for turn in zip(*shares.values(), strict=True) for line in turn]
    finally:
        for line in opened:
            line.close()


def together(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make the calls at the same time, each in its own thread, and return the results."""
    barrier = threading.Barrier(len(calls))

    def call(function: Callable[[], T]) -> T:
        barrier.wait(ANSWER_SECONDS)
        return function()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def visit(lines: Sequence[Line], count: int, ask: Callable[[Line, int], T]) -> list[T]:
    """Call ``ask(line, number)`` for each number below ``count``, on all lines at the same time."""
    numbers = iter(range(count))
    lock = threading.Lock()

    def work(line: Line) -> list[T]:
        answers = []
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return answers
            answers.append(ask(line, number))

    return list(itertools.chain(*together([lambda line=line: work(line) for line in lines])))


@contextmanager
def in_background(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run ``work(over)`` in a thread. ``over`` is set when the context ends, and then work() has to return."""
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(2 * ANSWER_SECONDS)


class Companion:
    """A page read every ``pace`` seconds in the background: how late this machine is at any moment."""

    def __init__(self, line: Line, path: str, pace: float) -> None:
        self._line = line
        self._path = path
        self._pace = pace
        self.pages: list[Page] = []

    def read(self, over: threading.Event) -> None:
        due = time.monotonic()
        while not over.wait(max(0.0, due - time.monotonic())):
            # From the moment it was due: whatever delays this thread delays the others too.
            page = self._line.get(self._path, due=due)
            self.pages.append(page)
            due = max(due + self._pace, page.end)

    def find_lateness(self, page: Page) -> float:
        """Return the seconds by which its own pages were late in the process of ``page`` at its time."""
        best = min((own.seconds for own in self.pages), default=0.0)
        met = [own for own in self.pages if own.end > page.due and own.due < page.end]
        # A page may overlap in part. At most the common time counts.
        return sum(min(own.seconds - best, min(own.end, page.end) - max(own.due, page.due)) for own in met)


@contextmanager
def companions(lines: Sequence[Line]) -> Iterator[Callable[[Page], float]]:
    """Read pages without us on a line for each process. Give the function that says how late a page's process was."""
    by_worker = {line.worker: Companion(line, WITHOUT + "/page/", PACE) for line in lines}
    with ExitStack() as stack:
        for companion in by_worker.values():
            stack.enter_context(in_background(companion.read))
        yield lambda page: by_worker[page.worker].find_lateness(page)


def poll(read: Callable[[], T], is_right: Callable[[T], bool], seconds: float) -> T:
    """Read until the result is right or the time is over; return the last result."""
    end = time.monotonic() + seconds
    while True:
        found = read()
        if is_right(found) or time.monotonic() > end:
            return found
        time.sleep(0.02)

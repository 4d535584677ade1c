"""A load generator with keep-alive connections, the same number to each worker of the server.

gunicorn may give all connections of a client to one worker; then the figures are those of one worker.
So the client opens connections until each worker has its share, and closes the others.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.goal import expect
from benchmarks.serving import Server
from benchmarks.site import USER_AGENT, name_visitor

ANSWER_SECONDS = 30.0


@dataclass
class Outcome:
    """The pages of a load: (start, seconds) of each, their statuses, and how many of them have the mark."""

    pages: list[tuple[float, float]] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    marked: int = 0
    elapsed: float = 0.0

    @property
    def count(self) -> int:
        """The number of pages."""
        return len(self.pages)

    @property
    def throughput(self) -> float:
        """Pages a second."""
        return self.count / self.elapsed

    def quantile(self, share: float) -> float:
        """Return the seconds within which ``share`` of the pages came."""
        ordered = sorted(seconds for _, seconds in self.pages)
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]

    def check(self, *, marked: float | None = None) -> Outcome:
        """Raise WrongMeasurement unless all pages are 200 and at least the share ``marked`` of them has the mark."""
        expect(self.count, "no page came")
        expect(set(self.statuses) == {200}, f"pages answered {dict(self.statuses)}")
        if marked is not None:
            expect(self.marked >= marked * self.count, f"only {self.marked} of {self.count} pages have the mark")
        return self


def pool(outcomes: Iterable[Outcome]) -> Outcome:
    """Return several outcomes as one."""
    together = Outcome()
    for outcome in outcomes:
        together.pages += outcome.pages
        together.statuses += outcome.statuses
        together.marked += outcome.marked
        together.elapsed += outcome.elapsed
    return together


class _Connection(asyncio.Protocol):
    """One keep-alive connection that sends one request at a time."""

    def __init__(self) -> None:
        self.received = b""
        self.waiting: asyncio.Future[tuple[bytes, bytes]] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_exception(error or ConnectionResetError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, separator, body = self.received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(_read_header(head, b"content-length"))
        if len(body) >= length and self.waiting is not None and not self.waiting.done():
            self.received = b""
            self.waiting.set_result((head, body))

    async def get(self, path: str, visitor: str) -> tuple[int, str, bytes]:
        """Return the status, the worker and the complete response."""
        self.waiting = asyncio.get_running_loop().create_future()
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: {USER_AGENT}\r\nX-Visitor: {visitor}\r\n\r\n"
        self.transport.write(head.encode())
        answer, body = await self.waiting
        return int(answer[9:12]), _read_header(answer, b"x-worker"), answer + body


def _read_header(head: bytes, name: bytes) -> str:
    place = head.lower().find(b"\r\n" + name + b":")
    expect(place >= 0, f"a response without the header {name.decode()}: {head[:200]!r}")
    return head[place + len(name) + 3 :].split(b"\r\n", 1)[0].decode().strip()


class Client:
    """The connections to one server, for any number of runs."""

    def __init__(self, runner: asyncio.Runner, connections: list[_Connection]) -> None:
        self._runner = runner
        self._connections = connections

    def run(self, path: str, seconds: float, *, mark: str = "", visitor: Callable[[], str] = name_visitor) -> Outcome:
        """Load ``path`` on each connection again and again for ``seconds``; count the responses that have ``mark``."""

        async def work(connection: _Connection, outcome: Outcome, end: float) -> None:
            while time.perf_counter() < end:
                await _ask(connection, path, visitor(), mark.encode(), outcome)

        return self._run(work, seconds)

    def plan_rate(self, path: str, rate: float, mark: str = "", visitor: Callable[[], str] = name_visitor) -> Any:
        """Return a load for run_together(): ``rate`` pages per second in all, spread over the connections."""
        connections = self._connections
        step = len(connections) / rate

        async def load(end: float) -> Outcome:
            outcome, started = Outcome(), time.perf_counter()

            async def work(number: int, connection: _Connection) -> None:
                due = started + number / rate
                while due < end:
                    await asyncio.sleep(due - time.perf_counter())
                    # Timed from its due time: a server that stalls also delays later pages.
                    await _ask(connection, path, visitor(), mark.encode(), outcome, since=due)
                    due = max(due + step, time.perf_counter())

            await asyncio.gather(*(work(number, one) for number, one in enumerate(connections)))
            outcome.elapsed = time.perf_counter() - started
            return outcome

        return load

    def run_together(self, *loads: Callable[[float], Awaitable[Outcome]], seconds: float) -> list[Outcome]:
        """Run several loads at the same time; their clients share one runner."""

        async def gather() -> list[Outcome]:
            end = time.perf_counter() + seconds
            async with asyncio.timeout(seconds + ANSWER_SECONDS):
                return list(await asyncio.gather(*(load(end) for load in loads)))

        return self._runner.run(gather())

    def _run(self, work: Callable[[_Connection, Outcome, float], Awaitable[None]], seconds: float) -> Outcome:
        async def load(end: float) -> Outcome:
            outcome, started = Outcome(), time.perf_counter()
            await asyncio.gather(*(work(connection, outcome, end) for connection in self._connections))
            outcome.elapsed = time.perf_counter() - started
            return outcome

        return self.run_together(load, seconds=seconds)[0]


async def _ask(
    connection: _Connection, path: str, visitor: str, mark: bytes, outcome: Outcome, *, since: float | None = None
) -> None:
    asked = time.perf_counter() if since is None else since
    status, _, answer = await connection.get(path, visitor)
    outcome.pages.append((asked, time.perf_counter() - asked))
    outcome.statuses[status] += 1
    if mark and mark in answer:
        outcome.marked += 1


@contextmanager
def connect(server: Server, connections: int, *, runner: asyncio.Runner | None = None) -> Iterator[Client]:
    """Open ``connections`` connections to ``server``, the same number to each worker."""
    own = asyncio.Runner() if runner is None else runner
    opened: list[_Connection] = []
    try:
        opened = own.run(_open_balanced(server, connections))
        yield Client(own, opened)
    finally:
        for connection in opened:
            connection.transport.abort()
        if runner is None:
            own.close()


async def _open_balanced(server: Server, wanted: int) -> list[_Connection]:
    share = wanted // server.workers
    by_worker: dict[str, list[_Connection]] = {}
    surplus: list[_Connection] = []
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(ANSWER_SECONDS):
        while sum(len(kept) for kept in by_worker.values()) < share * server.workers:
            expect(len(surplus) < 50 * wanted, f"one worker got no connection: {list(by_worker)}")
            # All at once, so that a worker that is busy accepting leaves some to the others.
            batch = [(await loop.create_connection(_Connection, "127.0.0.1", server.port))[1] for _ in range(8)]
            answers = await asyncio.gather(*(one.get(server.probe, "balance") for one in batch))
            for connection, (status, worker, _) in zip(batch, answers, strict=True):
                expect(status == 200, f"{server.probe} answered {status}")
                kept = by_worker.setdefault(worker, [])
                (kept if len(kept) < share else surplus).append(connection)
    for connection in surplus:
        connection.transport.abort()
    # Interleaved, so that a load that starts them one by one reaches all workers alike.
    return [one for turn in zip(*by_worker.values(), strict=True) for one in turn]

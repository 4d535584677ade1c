"""A load generator on keep-alive connections, as many to each worker of the server.

gunicorn may give one worker all the connections of a client; then figures speak of one worker. So
connections are opened until every worker has its share, and the others are closed.
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

ASKED_A_MINUTE = 9_000
"""By cold pages at most: past 10,000 our governor, for the vendor's sake, lets no more through."""


@dataclass
class Outcome:
    """What a load met: seconds a page with when each was asked for, statuses, and how many had the mark."""

    pages: list[tuple[float, float]] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    marked: int = 0
    elapsed: float = 0.0

    @property
    def count(self) -> int:
        """How many pages came."""
        return len(self.pages)

    @property
    def throughput(self) -> float:
        """Pages a second."""
        return self.count / self.elapsed

    def quantile(self, share: float) -> float:
        """Return the seconds that ``share`` of the pages took at most."""
        ordered = sorted(seconds for _, seconds in self.pages)
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]

    def check(self, *, marked: float | None = None) -> Outcome:
        """Raise WrongMeasurement unless all pages are 200 and at least the share ``marked`` has the mark."""
        expect(self.count, "no page came")
        expect(set(self.statuses) == {200}, f"pages answered {dict(self.statuses)}")
        if marked is not None:
            expect(self.marked >= marked * self.count, f"only {self.marked} of {self.count} pages were the wanted ones")
        return self


def pool(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the pages of several blocks as those of one."""
    together = Outcome()
    for outcome in outcomes:
        together.pages += outcome.pages
        together.statuses += outcome.statuses
        together.marked += outcome.marked
        together.elapsed += outcome.elapsed
    return together


class Pace:
    """Keeps the blocks of a load whose every page asks within the vendor's requests a minute."""

    def __init__(self) -> None:
        self._asked = self._last = 0

    def rest(self) -> None:
        """Wait for the next minute where another block like the last would be too much for this one."""
        if self._asked + 1.5 * self._last > ASKED_A_MINUTE:
            time.sleep(60.0)
            self._asked = 0

    def add(self, outcome: Outcome) -> None:
        """Take in a block that has asked."""
        self._last = outcome.count
        self._asked += outcome.count


class _Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

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
        """Return status, worker and the whole answer."""
        self.waiting = asyncio.get_running_loop().create_future()
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: {USER_AGENT}\r\nX-Visitor: {visitor}\r\n\r\n"
        self.transport.write(head.encode())
        answer, body = await self.waiting
        return int(answer[9:12]), _read_header(answer, b"x-worker"), answer + body


def _read_header(head: bytes, name: bytes) -> str:
    place = head.lower().find(b"\r\n" + name + b":")
    expect(place >= 0, f"an answer without {name.decode()}: {head[:200]!r}")
    return head[place + len(name) + 3 :].split(b"\r\n", 1)[0].decode().strip()


class Client:
    """The connections to one server, for as many runs as wanted."""

    def __init__(self, runner: asyncio.Runner, connections: list[_Connection]) -> None:
        self._runner = runner
        self._connections = connections

    def run(self, path: str, seconds: float, *, mark: str = "", visitor: Callable[[], str] = name_visitor) -> Outcome:
        """Ask for a page on every connection, again and again, for ``seconds``; ``mark`` is counted in answers."""

        async def work(connection: _Connection, outcome: Outcome, end: float) -> None:
            while time.perf_counter() < end:
                await _ask(connection, path, visitor(), mark.encode(), outcome)

        return self._run(work, seconds)

    def plan_rate(self, path: str, rate: float, mark: str = "", visitor: Callable[[], str] = name_visitor) -> Any:
        """Return a load for run_together(): ``rate`` pages a second in all, each connection at its own moments."""
        connections = self._connections
        step = len(connections) / rate

        async def load(end: float) -> Outcome:
            outcome, started = Outcome(), time.perf_counter()

            async def work(number: int, connection: _Connection) -> None:
                due = started + number / rate
                while due < end:
                    await asyncio.sleep(due - time.perf_counter())
                    # From when it was due: a server that stalls makes later pages wait too.
                    await _ask(connection, path, visitor(), mark.encode(), outcome, since=due)
                    due = max(due + step, time.perf_counter())

            await asyncio.gather(*(work(number, one) for number, one in enumerate(connections)))
            outcome.elapsed = time.perf_counter() - started
            return outcome

        return load

    def run_together(self, *loads: Callable[[float], Awaitable[Outcome]], seconds: float) -> list[Outcome]:
        """Run loads of one or several clients of the same runner at once."""

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
    """Open as many connections to each worker of ``server``; ``connections`` is their number in all."""
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
            # At once, so that workers that are busy accepting leave some to the others.
            batch = [(await loop.create_connection(_Connection, "127.0.0.1", server.port))[1] for _ in range(8)]
            answers = await asyncio.gather(*(one.get(server.probe, "balance") for one in batch))
            for connection, (status, worker, _) in zip(batch, answers, strict=True):
                expect(status == 200, f"{server.probe} answered {status}")
                kept = by_worker.setdefault(worker, [])
                (kept if len(kept) < share else surplus).append(connection)
    for connection in surplus:
        connection.transport.abort()
    # Interleaved: a load that starts them one by one reaches all workers alike.
    return [one for turn in zip(*by_worker.values(), strict=True) for one in turn]

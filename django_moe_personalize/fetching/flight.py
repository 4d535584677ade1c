"""One question under way, shared by all pages that ask the same meanwhile: single flight.

The page that asks first leads: its request is written at once on a warm connection, and whichever page
wants the response first reads it, in its own thread or task. Where that isn't possible a thread of the
pool resolves the question.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress

from django.db import close_old_connections

from django_moe_personalize.client import get_client
from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.exceptions import APIError, DeadlineExceeded
from django_moe_personalize.fetching.cache import Known, get_cache, pick
from django_moe_personalize.fetching.resolve import (
    Answer,
    Experiences,
    Outcome,
    conclude,
    explain,
    follow_up,
    leave_out_unavailable,
    log_error,
    resolve,
)
from django_moe_personalize.fetching.shared import has_shared_cache
from django_moe_personalize.fetching.upstream import Question, get_pool, start_call, tell_breaker
from django_moe_personalize.moengage.messages import Exchange, NotTakenError
from django_moe_personalize.moengage.types import MAX_KEYS, Experience
from django_moe_personalize.resilience import Deadline, PoolBusy
from django_moe_personalize.runtime import Runtime, part
from django_moe_personalize.visitor import Visitor

EXTRA_SECONDS = 0.1
"""Extra time to read the rest of a response that no page started to read before the deadline.

The operating system buffers some 64 KB of it, and a page that was busy with its view isn't MoEngage's fault.
"""

MAX_SECONDS = 30.0
"""How long a flight can be joined. A leader that never finishes delays nobody for longer."""

MAX_FLIGHTS = 4096
"""How many flights are shared at a time; beyond this bound each page asks for itself."""


class Flight(Future[Experiences]):
    """A question and, later, its experiences by key. No page can cancel it for the others.

    ``known`` are the experiences to show when the answer doesn't come in time.
    """

    def __init__(self, question: Question, known: Experiences, until: float) -> None:
        super().__init__()
        self.question = question
        self.known = known
        self.until = until
        self.is_followed = False
        # The request that was sent, until its response is read. Only the holder of the turn uses it.
        self._exchange: Exchange | None = None
        self._answers: Mapping[str, Experience | None] = {}
        self._missing: tuple[str, ...] = ()
        self._turn = threading.Lock()
        self._deadline = question.deadline
        self._has_thread = False
        self._is_unread = True

    def cancel(self) -> bool:
        """Return False: not even an event loop that cancels one waiting task cancels it for the others."""
        return False

    # A page waits.

    def join(self, seconds: float) -> Experiences:
        """Return the experiences by key after at most ``seconds``; without an answer by then, the known ones."""
        until = time.monotonic() + seconds
        if self._exchange is not None:
            self._read(seconds)
        try:
            return self.result(max(0.0, until - time.monotonic()))
        except TimeoutError:
            return self._abandon()

    async def ajoin(self, seconds: float) -> Experiences:
        """See join()."""
        if self.done():
            return self.result(0.0)
        try:
            async with asyncio.timeout(seconds):
                if self._exchange is not None:
                    await self._aread()
                return self.result(0.0) if self.done() else await asyncio.shield(asyncio.wrap_future(self))
        except TimeoutError:
            return self._abandon()

    def poll(self) -> bool:
        """Read the part of the response that is here, without waiting; return whether the answer is complete."""
        if self._exchange is not None:
            self._read(0.0)
        return self.done()

    def release(self) -> None:
        """Leave the response to others: the caller doesn't read it any more. A thread reads it if need be."""
        if self._exchange is not None and self._deadline.expired:
            self._read(0.0)
        if self._exchange is not None and not self._start_thread():
            self._give_up()

    def _abandon(self) -> Experiences:
        log_error(self.question.runtime, DeadlineExceeded("the page's deadline passed"))
        self.release()
        return self.known

    # The leader asks.

    def take_off(self, known: Known, *, is_waited_for: bool) -> None:
        """Ask the question: here and now where that can't block, else in a thread of the pool."""
        question, exchange = self.question, None
        # No page reads the response of a mere refresh, and a shared cache takes a round trip: threads do both.
        if is_waited_for and not has_shared_cache(question.runtime):
            # If this raises, the thread meets the same error, and logs it.
            with suppress(Exception):
                self._answers, self._missing = leave_out_unavailable(question.runtime, known)
                if not self._missing:
                    self._land(conclude(question, self._answers, ()))
                    return
                if len(self._missing) <= MAX_KEYS:
                    exchange = self._exchange = start_call(question, self._missing)
        if exchange is None:
            self._submit()
        elif self.is_followed:
            # A page that joined while the request was being sent waits for the future, so a thread has to read.
            self._start_thread()

    def _submit(self) -> None:
        pool = get_pool(self.question.runtime)
        try:
            pool.submit(self._run)
        except PoolBusy as error:
            message = "All threads that fetch experiences are busy (%s); pages show cached content or their defaults."
            self.question.runtime.log_once("busy", message, error)
            get_flights(self.question.runtime).finish(self, self.known)

    def _run(self) -> None:
        """Resolve the question in a thread of the pool, then do the work that no page waits for."""
        found = Answer()
        try:
            found = resolve(self.question, publish=self._publish)
        except ConfigurationError as error:
            self.question.runtime.log_once(("configuration", str(error)), "MoEngage is not asked: %s", error)
        except Exception as error:
            self._log_bug(error)
        finally:
            self._land(found)
        self._follow_up(found)

    def _publish(self, known: Experiences) -> None:
        self.known = known

    def _follow_up(self, found: Answer) -> None:
        follow_up(self.question, found)
        # The site's cache may be its database. No request ends in this thread, so close its connections here.
        close_old_connections()

    def _land(self, found: Answer) -> None:
        """Give the answer to all pages that wait for it."""
        runtime = self.question.runtime
        try:
            # First the cache: a page that finds no flight must find the answer.
            if found.learned:
                get_cache(runtime).keep(self.question.visitor.digest, found.learned)
        finally:
            get_flights(runtime).finish(self, found.experiences)

    def _log_bug(self, error: Exception) -> None:
        # The page shows its defaults. No traceback: its frames hold the visitor.
        message = "Fetching experiences failed unexpectedly (%s); pages show their defaults. Please report this."
        self.question.runtime.log_once(("bug", type(error)), message, type(error).__name__)

    # Whoever has the turn reads.

    def _read(self, seconds: float) -> None:
        """Read the response, after the thread that reads it already, waiting at most ``seconds`` in all."""
        until = time.monotonic() + seconds
        if self._turn.acquire(timeout=seconds):
            try:
                self._advance(max(0.0, until - time.monotonic()))
            finally:
                self._turn.release()

    async def _aread(self) -> None:
        """Read the response without blocking the event loop, unless another thread or task is reading it."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            while (exchange := self._exchange) is not None:
                await _wait_readable(exchange.fileno())
                self._advance(0.0)
        except Exception:
            # Not every event loop can watch every socket. Windows' proactor loop can't watch any.
            self.question.runtime.log_once("add_reader", "This event loop can't watch sockets, so a thread reads.")
        finally:
            self._turn.release()
            self.release()

    def _start_thread(self) -> bool:
        """Have a thread of the pool read the response; return False when all threads are busy."""
        if not self._has_thread:
            # One thread is enough, however many pages leave.
            self._has_thread = True
            if not get_pool(self.question.runtime).offer(self._read_on):
                self._has_thread = False
        return self._has_thread

    def _read_on(self) -> None:
        try:
            self._read(self._deadline.remaining() or 0.0)
        finally:
            self._has_thread = False

    def _advance(self, seconds: float) -> None:
        """Read for at most ``seconds``, and land if that completes the response or ends in an error."""
        exchange = self._exchange
        if exchange is None:
            return
        try:
            outcome = self._receive(exchange, seconds)
        except NotTakenError:
            self._ask_again()
        except Exception as error:
            self._log_bug(error)
            exchange.release()
            self._conclude([])
        else:
            if outcome is not None:
                self._conclude([outcome])

    def _receive(self, exchange: Exchange, seconds: float) -> Outcome | None:
        runtime = self.question.runtime
        client, until = get_client(runtime), time.monotonic() + seconds
        is_late, self._is_unread = self._is_unread and self._deadline.expired, False
        try:
            result = client.finish_fetch(exchange, min(seconds, self._deadline.remaining() or 0.0))
            if result is None and is_late and exchange.has_begun:
                self._deadline = Deadline(EXTRA_SECONDS)
                result = client.finish_fetch(exchange, max(0.0, min(until - time.monotonic(), EXTRA_SECONDS)))
        except NotTakenError:
            raise
        except Exception as error:
            tell_breaker(runtime, error)
            if isinstance(error, APIError):
                return error
            raise
        if result is not None:
            tell_breaker(runtime, None)
            return self._missing, result
        if not self._deadline.expired:
            return None
        exchange.release()
        late = DeadlineExceeded("MoEngage did not answer in time")
        tell_breaker(runtime, late)
        return late

    def _ask_again(self) -> None:
        """Ask on a new connection, since this one had died while it was idle; after the deadline, don't."""
        if self.question.deadline.expired:
            self._conclude([])
            return
        self._exchange = None
        self._submit()

    def _conclude(self, outcomes: list[Outcome]) -> None:
        self._exchange = None
        found = conclude(self.question, self._answers, outcomes)
        self._land(found)
        if not found.errors:
            explain(self.question.runtime, found)
        # A receiver of the signal has nothing to do with this page.
        elif not get_pool(self.question.runtime).offer(self._follow_up, found):
            follow_up(self.question, found)

    def _give_up(self) -> None:
        """End the flight without an answer. That tells nothing about MoEngage, so the breaker isn't told."""
        if self._turn.acquire(blocking=False):
            try:
                if (exchange := self._exchange) is not None:
                    exchange.release()
                    self._conclude([])
            finally:
                self._turn.release()


class Flights:
    """The flights of this process, by visitor and keys."""

    def __init__(self, *, max_seconds: float = MAX_SECONDS, max_flights: int = MAX_FLIGHTS) -> None:
        self.landed = 0
        """How many flights have landed. A page that saw another number may have missed one, so it looks again."""
        self._max_seconds = max_seconds
        self._max_flights = max_flights
        self._lock = threading.Lock()
        # The oldest first: a flight is only ever added, never moved.
        self._flights: dict[tuple[str, tuple[str, ...]], Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, question: Question, known: Experiences) -> tuple[Flight, bool]:
        """Return the flight for this question, and True to the caller that leads it and must let it take off."""
        key = question.visitor.digest, question.keys
        with self._lock:
            now = time.monotonic()
            flight = self._flights.get(key)
            if flight is not None and now < flight.until:
                flight.is_followed = True
                return flight, False
            flight = Flight(question, known, now + self._max_seconds)
            self._drop_overdue(now)
            if len(self._flights) < self._max_flights:
                self._flights[key] = flight
        return flight, True

    def finish(self, flight: Flight, experiences: Experiences) -> None:
        """Give ``experiences`` to all pages of the flight. The next page that asks the same starts another."""
        question = flight.question
        flight.set_result(experiences)
        with self._lock:
            self.landed += 1
            key = question.visitor.digest, question.keys
            # Another flight has this place if this one was overdue.
            if self._flights.get(key) is flight:
                del self._flights[key]

    def _drop_overdue(self, now: float) -> None:
        while self._flights:
            key, flight = next(iter(self._flights.items()))
            if now < flight.until:
                return
            del self._flights[key]


@part
def get_flights(runtime: Runtime) -> Flights:
    """Return the questions that are under way in this process."""
    return Flights()


def start_fetch(
    runtime: Runtime, visitor: Visitor, keys: tuple[str, ...]
) -> tuple[Mapping[str, Experience | None], Flight | None]:
    """Return the answers if this process has all of them in memory, else the flight that fetches them.

    A stale answer is returned at once and refreshed in the background. Never raises.
    """
    flights, cache = get_flights(runtime), get_cache(runtime)
    landed = flights.landed
    known = cache.peek(visitor.digest, keys)
    if not known.due:
        return known.answers, None
    question = Question(runtime, visitor, keys, Deadline(runtime.settings.deadline))
    flight, leads = flights.join(question, pick(known.answers, keys))
    is_complete = all(key in known.answers for key in known.due)
    if leads:
        if flights.landed != landed:
            # A flight that has just landed may have brought the answer after peek() looked.
            known = cache.peek(visitor.digest, keys)
        if known.due:
            flight.take_off(known, is_waited_for=not is_complete)
        else:
            flights.finish(flight, pick(known.answers, keys))
    return known.answers, None if is_complete else flight


async def _wait_readable(fileno: int) -> None:
    loop = asyncio.get_running_loop()
    arrived = loop.create_future()
    loop.add_reader(fileno, _set, arrived)
    try:
        await arrived
    finally:
        loop.remove_reader(fileno)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

"""Single flight: pages that ask the same question at the same time share one call.

The page that asks first leads the flight, and writes its request on an idle connection immediately. The first page
that needs the response reads the response, in its own thread or task. If the leader would have to wait before it
can write the request, a thread of the pool resolves the question instead.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from django.db import close_old_connections

from django_moe_personalize.exceptions import DeadlineExceeded
from django_moe_personalize.fetching import upstream
from django_moe_personalize.fetching.cache import Answers, Known, get_cache, pick
from django_moe_personalize.fetching.metadata import get_metadata_store
from django_moe_personalize.fetching.resolve import (
    Answer,
    Experiences,
    conclude_failure,
    explain,
    follow_up,
    log_bug,
    resolve_or_log,
)
from django_moe_personalize.fetching.upstream import Question, get_pool
from django_moe_personalize.moengage.client import get_answers
from django_moe_personalize.moengage.http1 import HTTPExchange, NotTakenError, Response, is_light
from django_moe_personalize.moengage.types import MAX_KEYS
from django_moe_personalize.resilience import Deadline, monotonic

if TYPE_CHECKING:
    from django_moe_personalize.fetching.flights import Flights

EXTRA_SECONDS = 0.1
"""Extra time to read a response that no page read before the deadline. The system has buffered some 64 KB of it."""

HEAVY_SECONDS = 0.025
"""The most seconds that a thread takes to read a response with MAX_VALUES."""

Key = tuple[str, tuple[str, ...]]
"""The digest of the visitor, and the experience keys."""


class Flight:
    """A question on its way. ``found`` is the experiences by key, or ``None`` until the flight has ended.

    ``known`` holds the experiences that pages show if the answer doesn't arrive in time.
    """

    found: Experiences | None = None
    followers: tuple[Future[Experiences], ...] = ()
    is_followed = False
    # The call, until its response is read. Only the thread or task that holds ``_turn`` uses the exchange.
    _exchange: HTTPExchange | None = None
    _answers: Answers = MappingProxyType({})
    _missing: tuple[str, ...] = ()
    _has_thread = False
    _is_late = False
    _is_unread = True

    def __init__(self, key: Key, question: Question, known: Experiences, until: float, flights: Flights) -> None:
        self.key = key
        self.question = question
        self.known = known
        self.until = until
        self._flights = flights
        self._turn = threading.Lock()
        self._deadline = question.deadline

    def done(self) -> bool:
        """Return whether the flight has ended."""
        return self.found is not None

    def result(self, seconds: float | None = None) -> Experiences:
        """Return the experiences. Raises TimeoutError if the flight doesn't end within ``seconds``."""
        return self._flights.follow(self).result(seconds) if self.found is None else self.found

    # A page waits.

    def join(self, seconds: float) -> Experiences:
        """Wait at most ``seconds`` for the experiences. If they don't arrive in time, return the known experiences."""
        until = monotonic() + seconds
        if self._exchange is not None:
            self._read(seconds)
        if self.found is not None:
            return self.found
        try:
            return self.result(max(0.0, until - monotonic()))
        except TimeoutError:
            return self._abandon()

    async def ajoin(self, seconds: float) -> Experiences:
        """See join()."""
        if self.done() or (self._deadline.expired and self.poll()):
            return self.result(0.0)
        if self._exchange is not None:
            # The flight's deadline limits MoEngage, even if this page could wait longer.
            seconds = min(seconds, self._deadline.remaining() or 0.0)
        until = monotonic() + seconds
        if self._exchange is not None and seconds > 0.0:
            await self._aread(until)
        if self.found is not None:
            return self.found
        try:
            async with asyncio.timeout(max(0.0, until - monotonic())):
                return await asyncio.wrap_future(self._flights.follow(self))
        except TimeoutError:
            return self._abandon()

    def poll(self) -> bool:
        """Read the bytes that have arrived, without waiting. Return whether the answer is complete."""
        if self._exchange is not None:
            self._read(0.0)
            if self.is_followed and not self.done():
                # Another task may wait without reading, because this page had the turn. So a thread reads on.
                self._start_thread()
        return self.done()

    def release(self) -> None:
        """Stop reading for the caller's page. A thread of the pool reads the rest of the response."""
        if self._exchange is not None and self._deadline.expired:
            self._read(0.0)
        if self._exchange is not None and not self._start_thread() and self._turn.acquire(blocking=False):
            # All threads are busy, so the flight ends. MoEngage may be fine, so the breaker isn't told.
            try:
                if (exchange := self._exchange) is not None:
                    exchange.release()
                    self._fail()
            finally:
                self._turn.release()

    def _abandon(self) -> Experiences:
        """End the caller's wait. Return the answer if it has just arrived, else return the known experiences."""
        if self.poll():
            return self.result(0.0)
        upstream.log_late_page(self.question.runtime, is_counted=self._is_late)
        self._is_late = True
        self.release()
        return self.known

    # Methods of the leader: the page that asks the question, for all pages that share the flight.

    def take_off(self, known: Known, *, is_waited_for: bool) -> None:
        """Ask the question in this thread if this thread can't block, else in a thread of the pool."""
        question, exchange = self.question, None
        # After an exception here, the thread of the pool meets the same error and logs it.
        with suppress(Exception):
            # Threads refresh stale answers, which no page waits for, and read a shared cache: that takes a round trip.
            if is_waited_for and self._flights.may_start_in_page:
                store = get_metadata_store.find(question.runtime)
                self._answers, self._missing = known if store is None else store.leave_out_unavailable(known)
                if not self._missing:
                    self._land({}, pick(self._answers, question.keys))
                    return
                if len(self._missing) <= MAX_KEYS:
                    exchange = self._exchange = upstream.start_call(question, self._missing)
        if exchange is None:
            self._submit(self._run)
        elif self.is_followed:
            # A page that joined before the request was sent waits without reading. So a thread reads.
            self._start_thread()

    def _submit(self, work: Callable[..., None], *args: object) -> None:
        if not upstream.offer_fetch(self.question.runtime, work, *args):
            self._flights.finish(self, self.known)

    def _run(self) -> None:
        """Resolve the question in a thread of the pool, then do the work that no page waits for."""
        found = resolve_or_log(self.question, partial(setattr, self, "known"))
        self._land(found.learned, found.experiences)
        self._follow_up(found)

    def _follow_up(self, found: Answer) -> None:
        try:
            follow_up(self.question, found, is_late=self._is_late)
        finally:
            # The site's cache may use the database. Django closes connections only at the end of a request.
            close_old_connections()

    def _land(self, learned: Answers, experiences: Experiences) -> None:
        """Give the experiences to all pages that wait. ``learned`` holds MoEngage's own answers, for the cache."""
        runtime = self.question.runtime
        try:
            # Fill the cache before the flight ends: a page that doesn't find the flight must find the answer.
            get_cache(runtime).keep(self.key[0], learned)
        except Exception as error:
            log_bug(runtime, error)
        finally:
            self._flights.finish(self, experiences)

    # Reading. Only the thread or task that holds ``_turn`` reads.

    def _read(self, seconds: float) -> None:
        """Wait for the turn, then read. The wait and the read together take at most ``seconds``."""
        if not self._turn.acquire(blocking=False):
            until = monotonic() + seconds
            if not self._turn.acquire(timeout=seconds):
                return
            seconds = max(0.0, until - monotonic())
        try:
            self._advance(seconds)
        finally:
            self._turn.release()

    async def _aread(self, until: float) -> None:
        """Read the response without blocking the event loop, unless another thread or task is reading it."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            while (exchange := self._exchange) is not None and (left := until - monotonic()) > 0.0:
                await upstream.wait_readable(exchange.fileno(), left)
                self._advance(0.0)
        except Exception:
            # Some event loops can't watch every socket. Windows' proactor loop can't watch any.
            message = "This event loop can't watch sockets, so threads read MoEngage's responses."
            self.question.runtime.log_once("add_reader", message)
        finally:
            self._turn.release()
            self.release()

    def _start_thread(self) -> bool:
        """Have a thread of the pool read the response; return False if all threads are busy."""
        if not self._has_thread:
            # One thread is enough, even if several pages stop reading.
            self._has_thread = True
            if not get_pool(self.question.runtime).offer(self._read_on):
                self._has_thread = False
        return self._has_thread

    def _read_on(self) -> None:
        try:
            while self._exchange is not None:
                self._read(self._deadline.remaining() or 0.0)
                # If this thread started after the deadline, _read() has just set a later deadline.
                if self._deadline.expired:
                    return
        finally:
            self._has_thread = False

    def _advance(self, seconds: float) -> None:
        """Read for at most ``seconds``. End the flight if the response is complete or the call has failed."""
        exchange, left = self._exchange, self._deadline.remaining() or 0.0
        if exchange is None:
            return
        is_late, self._is_unread = self._is_unread and not left, False
        try:
            response = exchange.receive(min(seconds, left))
            if response is None and is_late and exchange.has_begun:
                self._deadline = Deadline(EXTRA_SECONDS)
                response = exchange.receive(min(seconds, EXTRA_SECONDS))
            if response is None and self._deadline.expired:
                exchange.abandon()
                raise DeadlineExceeded("MoEngage did not answer in time")
        except NotTakenError:
            # The server had closed the idle connection. If there is time, ask again on a new connection.
            self._exchange = None
            if self.question.deadline.expired:
                self._fail()
            else:
                self._submit(self._run)
        except Exception as error:
            upstream.tell_breaker(self.question.runtime, error, age=self._deadline.overdue)
            exchange.release()
            self._fail(error)
        else:
            if response is not None:
                self._finish(response)

    def _finish(self, response: Response) -> None:
        """Build the experiences in a complete response, in this thread if that is quick."""
        self._exchange = None
        if is_light(response.body):
            self._open(response)
        else:
            self._submit(self._open, response, True)

    def _open(self, response: Response, is_heavy: bool = False) -> None:
        """Read the experiences in a complete response, and end the flight."""
        runtime = self.question.runtime
        if is_heavy and (self._deadline.remaining() or 0.0) < HEAVY_SECONDS:
            # All pages will leave without the answer. Until they have left, they need Python's lock themselves.
            time.sleep(HEAVY_SECONDS)
        try:
            result = upstream.read_call(runtime, response, self._missing)
        except Exception as error:
            self._fail(error)
            return
        learned = get_answers(result)
        known = self._answers
        self._land(learned, pick({**known, **learned}, self.question.keys) if known else result.experiences)
        if len(result.experiences) < len(learned):
            explain(runtime, learned)

    def _fail(self, error: Exception | None = None) -> None:
        self._exchange = None
        found = conclude_failure(self.question, self._answers, error)
        self._land({}, found.experiences)
        # The page's own thread runs the signal's receivers only if no thread of the pool is free.
        if found.errors and not get_pool(self.question.runtime).offer(self._follow_up, found):
            follow_up(self.question, found, is_late=self._is_late)

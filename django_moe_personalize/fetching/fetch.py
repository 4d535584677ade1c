"""Fetch: memory → one bulk call beside the view, under one deadline; on a page's path nothing here raises.

A page starts a ``Fetch``, goes on with its view, and joins it at the first read for no longer than
its deadline. What memory knows is answered at once. The rest is asked for once, whoever asks the
same meanwhile: on a warm connection the question is sent at once, and its answer read by the first
who wants it; what may block (a new connection, a cache beyond this process) goes to a pool of
threads that the page can abandon.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Mapping, Sequence

from django.db import close_old_connections

from django_moe_personalize.client import get_client
from django_moe_personalize.conf import ConfigurationError, get_settings
from django_moe_personalize.exceptions import APIError, DeadlineExceeded
from django_moe_personalize.fetching.answering import (
    Answer,
    Experiences,
    Outcome,
    answer,
    conclude,
    explain,
    follow_up,
    log_error,
    look_up,
    pick,
)
from django_moe_personalize.fetching.cache import get_cache
from django_moe_personalize.fetching.flight import Flight, SingleFlight
from django_moe_personalize.fetching.shared import has_shared_cache
from django_moe_personalize.fetching.upstream import Question, SplitCall, get_pool, start_call
from django_moe_personalize.moengage.messages import NotTakenError
from django_moe_personalize.moengage.types import MAX_KEYS, Experience
from django_moe_personalize.resilience import Deadline, PoolBusy
from django_moe_personalize.runtime import Runtime, log_once, part
from django_moe_personalize.visitor.gather import Visitor

REST_SECONDS = 0.1
"""What is left of an answer may take, where the whole deadline was over before anyone began to read it: a system
takes in some 64 KB by itself, and the vendor is not to blame for a page that had other things to do."""


@part
def get_flights(runtime: Runtime) -> SingleFlight[tuple[str, tuple[str, ...]], Experiences]:
    """Return the questions that are under way in this process."""
    return SingleFlight()


class Fetch:
    """One question of a page. ``keys`` are what it asks for, ``known`` what to show when no answer comes in time."""

    __slots__ = ("_flight", "_known", "keys")

    def __init__(self, keys: Sequence[str], known: Experiences, flight: Flight[Experiences] | None = None) -> None:
        self.keys = tuple(keys)
        self._known = known
        self._flight = flight

    @property
    def done(self) -> bool:
        """Whether the answer can be read without waiting."""
        return self._flight is None or self._flight.done()

    def poll(self) -> bool:
        """Take in what has come without waiting; return whether that is the answer."""
        if self._flight is not None and (reader := self._flight.reader) is not None:
            reader.read(0.0)
        return self.done

    def result(self, seconds: float) -> Experiences:
        """Return the experiences by key, waiting at most ``seconds``; what is absent shows its default."""
        flight = self._flight
        if flight is None:
            return self._known
        until = time.monotonic() + seconds
        if (reader := flight.reader) is not None:
            reader.read(seconds)
        try:
            return flight.result(max(0.0, until - time.monotonic()))
        except TimeoutError:
            return self._abandon(flight)

    async def aresult(self, seconds: float) -> Experiences:
        """See result()."""
        flight = self._flight
        if flight is None or flight.done():
            return self.result(0.0)
        try:
            async with asyncio.timeout(seconds):
                if (reader := flight.reader) is not None:
                    await reader.aread()
                return flight.result(0.0) if flight.done() else await asyncio.shield(asyncio.wrap_future(flight))
        except TimeoutError:
            return self._abandon(flight)

    def release(self) -> None:
        """Leave the answer to others: this page reads no more of it."""
        if self._flight is not None and (reader := self._flight.reader) is not None:
            reader.release()

    def _abandon(self, flight: Flight[Experiences]) -> Experiences:
        log_error(DeadlineExceeded("the page's deadline passed"))
        self.release()
        return self._known if flight.partial is None else flight.partial


def start_fetch(visitor: Visitor, keys: Sequence[str]) -> Fetch:
    """Ask for ``keys`` beside the page and return at once.

    What memory has is the answer, also when it is stale: then it is refreshed beside the page. Who
    asks the same at the same time shares one question. Past the bulkhead the answer is what memory
    has, or nothing.
    """
    digest = visitor.build_digest()
    answers, due = get_cache().peek(digest, keys)
    known = pick(answers, keys)
    if not due:
        return Fetch(keys, known)
    is_stale = all(key in answers for key in keys)
    flight, leads = get_flights().join((digest, tuple(keys)))
    if leads:
        question = Question(visitor, tuple(keys), Deadline(get_settings().deadline))
        # Nobody of this page waits for what is only refreshed, so a thread does.
        if is_stale or not _send(question, flight):
            _submit(question, flight, known)
    return Fetch(keys, known, None if is_stale else flight)


def _send(question: Question, flight: Flight[Experiences]) -> bool:
    """Send the question here and now, without waiting for anything; return False where that cannot be."""
    try:
        if has_shared_cache() or get_client.find() is None:
            return False
        # Again: the flight that this one just missed may have filled it.
        local = get_cache().peek(question.visitor.build_digest(), question.keys)
        known, missing = look_up(local)
        if len(missing) > MAX_KEYS:
            return False
        call = start_call(question, missing) if missing else None
    except Exception:
        # The thread meets the same, and tells.
        return False
    if call is not None:
        flight.partial = pick(local.answers, question.keys)
        reader = flight.reader = _Reader(question, flight, known, missing, call)
        if flight.followed:
            # Who came while this was sent found no reader, and waits for a thread's.
            reader.start_thread()
    elif not missing:
        _finish(question, flight, conclude(question, known, ()))
    return call is not None or not missing


def _submit(question: Question, flight: Flight[Experiences], known: Experiences) -> None:
    """Have a thread of the pool answer; past the bulkhead the answer is what is known."""
    try:
        get_pool().submit(_run, question, flight)
    except PoolBusy as error:
        log_once("busy", "All fetching threads are busy (%s); stale content or defaults are shown.", error)
        get_flights().finish((question.visitor.build_digest(), question.keys), flight, known)


def _run(question: Question, flight: Flight[Experiences]) -> None:
    """Answer a page's question, then do what the page need not wait for."""
    found = Answer()
    try:
        found = answer(question, publish=functools.partial(setattr, flight, "partial"))
    except ConfigurationError as error:
        log_once(("configuration", str(error)), "MoEngage is not asked: %s", error)
    except Exception as error:
        _log_bug(error)
    finally:
        _finish(question, flight, found)
    _follow_up(question, found)


def _follow_up(question: Question, found: Answer) -> None:
    follow_up(question, found)
    # The site's cache may be its database, whose connections no request of this thread closes.
    close_old_connections()


def _finish(question: Question, flight: Flight[Experiences], found: Answer) -> None:
    try:
        # Before the flight is over: who comes between would ask again for what is known.
        get_cache().keep(question.visitor.build_digest(), found.learned)
    finally:
        get_flights().finish((question.visitor.build_digest(), question.keys), flight, found.experiences)


def _log_bug(error: Exception) -> None:
    # Whatever it is, the page shows its defaults. No traceback: its frames hold the visitor.
    log_once(("bug", type(error)), "Fetching experiences failed unexpectedly (%s).", type(error).__name__)


class _Reader:
    """Reads the answer to a question that was sent, in the thread or the task of whoever wants it first.

    Nobody waits for one who reads and is in no hurry: whoever's time is over leaves what has come so
    far to the next, and to a thread of the pool when there may be no next.
    """

    __slots__ = ("_call", "_deadline", "_flight", "_has_thread", "_is_new", "_known", "_missing", "_question", "_turn")

    def __init__(
        self,
        question: Question,
        flight: Flight[Experiences],
        known: Mapping[str, Experience | None],
        missing: Sequence[str],
        call: SplitCall,
    ) -> None:
        self._question = question
        self._flight = flight
        self._known = known
        self._missing = missing
        self._call = call
        self._deadline = question.deadline
        self._turn = threading.Lock()
        self._has_thread = False
        self._is_new = True

    def read(self, seconds: float) -> None:
        """Read the answer, after whoever is at it, waiting at most ``seconds``."""
        until = time.monotonic() + seconds
        if self._turn.acquire(timeout=seconds):
            try:
                self._advance(max(0.0, until - time.monotonic()))
            finally:
                self._turn.release()

    async def aread(self) -> None:
        """Read the answer without blocking the event loop, unless somebody else is at it."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            while self._flight.reader is self:
                await _wait_readable(self._call.fileno())
                self._advance(0.0)
        except Exception:
            # Not every event loop can watch every socket (Windows' own can watch none).
            log_once("add_reader", "This event loop cannot watch sockets, so a thread does.")
        finally:
            self._turn.release()
            self.release()

    def release(self) -> None:
        """Have a thread read on, if there is anything left to wait for."""
        if self._flight.reader is self and self._deadline.expired:
            self.read(0.0)
        if self._flight.reader is self and not self.start_thread():
            self._give_up()

    def start_thread(self) -> bool:
        """Have a thread of the pool read the answer, after whoever is at it; return False when all are busy."""
        if not self._has_thread:
            # One is enough, however many pages share the question and leave.
            self._has_thread = True
            if not get_pool().offer(self._read_on):
                self._has_thread = False
        return self._has_thread

    def _read_on(self) -> None:
        try:
            self.read(self._deadline.remaining() or 0.0)
        finally:
            self._has_thread = False

    def _advance(self, seconds: float) -> None:
        """Read, and answer the question if that brought an outcome."""
        if self._flight.reader is not self:
            return
        outcome: Outcome | None = None
        try:
            outcome = self._receive(seconds)
        except NotTakenError:
            self._ask_again()
        except Exception as error:
            _log_bug(error)
            self._call.release()
            self._conclude([])
        if outcome is not None:
            self._conclude([outcome])

    def _receive(self, seconds: float) -> Outcome | None:
        until = time.monotonic() + seconds
        is_late, self._is_new = self._is_new and self._deadline.expired, False
        try:
            result = self._call.receive(min(seconds, self._deadline.remaining() or 0.0))
            if result is None and is_late and self._call.has_begun:
                self._deadline = Deadline(REST_SECONDS)
                result = self._call.receive(max(0.0, min(until - time.monotonic(), REST_SECONDS)))
        except NotTakenError:
            raise
        except APIError as error:
            return error
        if result is not None:
            return self._missing, result
        return self._call.give_up() if self._deadline.expired else None

    def _ask_again(self) -> None:
        """Ask on a new connection: this one had died while it was idle. Past the deadline nobody waits for that."""
        if self._question.deadline.expired:
            self._conclude([])
            return
        self._flight.reader = None
        _submit(self._question, self._flight, self._flight.partial or {})

    def _conclude(self, outcomes: Sequence[Outcome]) -> None:
        self._flight.reader = None
        found = conclude(self._question, self._known, outcomes)
        _finish(self._question, self._flight, found)
        if not found.errors:
            explain(found)
            return
        # Who listens to the signal has nothing to do with this page.
        if not get_pool().offer(_follow_up, self._question, found):
            follow_up(self._question, found)

    def _give_up(self) -> None:
        """Leave the question unanswered, which says nothing of the vendor."""
        if self._turn.acquire(blocking=False):
            try:
                if self._flight.reader is self:
                    self._call.release()
                    self._conclude([])
            finally:
                self._turn.release()


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

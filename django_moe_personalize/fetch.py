"""Fetch: memory → cache → breaker → one bulk call, under one deadline; on a page's path nothing here raises.

A page starts a ``Fetch``, goes on with its view, and joins it at the first read for no longer than
its deadline. What memory knows is answered at once; the rest is asked on a pool of threads that
the page can abandon, once for all who ask the same. ``ask`` is the same without a page.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from django.core.signals import setting_changed
from django.db import close_old_connections
from django.dispatch import receiver

from django_moe_personalize import metadata, signals
from django_moe_personalize.breaker import CircuitBreaker
from django_moe_personalize.cache import CachedExperience, ExperienceCache
from django_moe_personalize.callables import log_once, logger
from django_moe_personalize.conf import ConfigurationError, get_settings
from django_moe_personalize.connection import get_client
from django_moe_personalize.coordination import add_to_count, claim
from django_moe_personalize.exceptions import (
    APIError,
    AuthenticationError,
    CircuitOpenError,
    DeadlineExceeded,
    RateLimitedError,
    ResponseError,
)
from django_moe_personalize.flight import Flight, SingleFlight
from django_moe_personalize.governor import Governor
from django_moe_personalize.interning import build_experience
from django_moe_personalize.moengage.types import MAX_KEYS, Experience, ExperienceFailure, ExperiencesResult
from django_moe_personalize.resilience import Deadline, PoolBusy, WorkerPool
from django_moe_personalize.visitor import Visitor

GATE_SECONDS = 5.0
"""How long nothing is asked after a 429 that does not say how long."""

REQUESTS_A_MINUTE = 10_000
"""The vendor's limit for a workspace (contract §1)."""

Experiences = Mapping[str, Experience]


@dataclass(slots=True)
class Answer:
    """What is known of the keys asked for; ``errors`` tell why some are ``unanswered``."""

    experiences: dict[str, Experience] = field(default_factory=dict)
    failures: list[ExperienceFailure] = field(default_factory=list)
    errors: list[APIError] = field(default_factory=list)
    learned: dict[str, Experience | None] = field(default_factory=dict)
    unanswered: tuple[str, ...] = ()


@functools.cache
def get_pool() -> WorkerPool:
    """Return the process's pool of fetching threads, MAX_CONCURRENT_FETCHES wide."""
    return WorkerPool(get_settings().max_concurrent_fetches, name="moe-personalize-fetch")


@functools.cache
def get_breaker() -> CircuitBreaker:
    """Return the process's circuit breaker around fetches; every change of state is one line in the log."""
    return CircuitBreaker(on_change=_log_breaker)


def _log_breaker(old: str, new: str, reason: str) -> None:
    logger.warning("MoEngage: the circuit breaker went from %s to %s (%s).", old, new, reason)


@functools.cache
def get_governor() -> Governor:
    """Return what keeps the workspace within its requests a minute, with all processes that share the cache."""
    return Governor(REQUESTS_A_MINUTE, add=add_to_count)


@functools.cache
def get_flights() -> SingleFlight[tuple[str, tuple[str, ...]], Experiences]:
    """Return the questions that are under way in this process."""
    return SingleFlight()


@receiver(setting_changed, dispatch_uid=f"{__name__}.forget")
def forget(*, setting: str = "MOE_PERSONALIZE", **kwargs: Any) -> None:
    """Start anew: no thread, no failure, no question known."""
    if setting == "MOE_PERSONALIZE":
        for shared in (get_pool, get_breaker, get_governor, get_flights):
            shared.cache_clear()


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

    def result(self, seconds: float) -> Experiences:
        """Return the experiences by key, waiting at most ``seconds``; what is absent shows its default."""
        if self._flight is None:
            return self._known
        try:
            return self._flight.result(seconds)
        except TimeoutError:
            return self._abandon(self._flight)

    async def aresult(self, seconds: float) -> Experiences:
        """See result()."""
        if self._flight is None or self._flight.done():
            return self.result(0.0)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(asyncio.wrap_future(self._flight))
        except TimeoutError:
            return self._abandon(self._flight)

    def _abandon(self, flight: Flight[Experiences]) -> Experiences:
        log_error(DeadlineExceeded("the page's deadline passed"))
        return self._known if flight.partial is None else flight.partial


def start_fetch(visitor: Visitor, keys: Sequence[str]) -> Fetch:
    """Ask for ``keys`` beside the page and return at once.

    What memory has is the answer, also when it is stale: then it is refreshed beside the page. Who
    asks the same at the same time shares one question. Past the bulkhead the answer is what memory
    has, or nothing.
    """
    cache = ExperienceCache(visitor.build_digest(), get_settings())
    local = cache.get_local(keys)
    known = _pick(local, keys)
    if len(local) == len(keys) and all(entry.fresh for entry in local.values()):
        return Fetch(keys, known)
    flight, leads = get_flights().join((cache.visitor, tuple(keys)))
    if leads:
        question = _Question(visitor, tuple(keys), cache, Deadline(get_settings().deadline))
        try:
            get_pool().submit(_run, question, flight)
        except PoolBusy as error:
            log_once("busy", "All fetching threads are busy (%s); stale content or defaults are shown.", error)
            get_flights().finish((cache.visitor, tuple(keys)), flight, known)
    return Fetch(keys, known, None if len(local) == len(keys) else flight)


def _pick(entries: Mapping[str, CachedExperience], keys: Iterable[str]) -> dict[str, Experience]:
    return {key: e for key in keys if key in entries and (e := entries[key].experience) is not None}


@dataclass(frozen=True, slots=True)
class _Question:
    visitor: Visitor = field(repr=False)
    keys: tuple[str, ...]
    cache: ExperienceCache
    deadline: Deadline
    is_page: bool = True


def _run(question: _Question, flight: Flight[Experiences]) -> None:
    """Answer a page's question, then do what the page need not wait for."""
    answer = Answer()
    try:
        answer = _answer(question, publish=functools.partial(setattr, flight, "partial"))
        # Before the flight is over: who comes between would ask again for what is known.
        question.cache.set_local(answer.learned)
    except ConfigurationError as error:
        log_once(("configuration", str(error)), "MoEngage is not asked: %s", error)
    except Exception as error:
        # Whatever it is, the page shows its defaults. No traceback: its frames hold the visitor.
        log_once(("bug", type(error)), "Fetching experiences failed unexpectedly (%s).", type(error).__name__)
    finally:
        get_flights().finish((question.cache.visitor, question.keys), flight, answer.experiences)
    _follow_up(question, answer)
    # The site's cache may be its database, whose connections no request of this thread closes.
    close_old_connections()


def _follow_up(question: _Question, answer: Answer) -> None:
    """Remember, report and explain; and probe a vendor whose time in the open breaker is over."""
    remember(question.cache, answer)
    for problem in answer.errors:
        report(problem, answer.unanswered)
    if absent := [key for key, experience in answer.learned.items() if experience is None]:
        metadata.explain(absent)
    if any(isinstance(problem, CircuitOpenError) for problem in answer.errors):
        _probe(question)


def _probe(question: _Question) -> None:
    """Ask once beside the pages, if the breaker wants to know whether the vendor is back."""
    if ticket := get_breaker().claim_probe():
        keys, deadline = question.keys[:MAX_KEYS], Deadline(get_settings().deadline)
        try:
            result = _call(replace(question, deadline=deadline), keys, ticket)
        except APIError:
            return
        question.cache.set({key: result.experiences.get(key) for key in keys})


def log_error(error: APIError) -> None:
    """Say once a kind why pages show their defaults."""
    status = getattr(error, "status", None)
    log_once(("fetch", type(error), status), "MoEngage gave no experiences (%s: %s).", type(error).__name__, error)


def report(error: APIError, keys: Sequence[str]) -> None:
    """Say that the vendor failed: once a kind in the log, each time in the signal; ``keys`` have no answer."""
    # What opened the breaker was said already, and so was that it opened.
    if not isinstance(error, CircuitOpenError):
        log_error(error)
    signals.fetch_failed.send_robust(sender=Fetch, error=error, experience_keys=tuple(keys))


def ask(visitor: Visitor, keys: Sequence[str], *, deadline: Deadline) -> Answer:
    """Answer ``keys`` from the cache and, for the rest, from the vendor; stale where the vendor fails.

    The vendor's failures are in ``Answer.errors``. Raises ConfigurationError without credentials.
    """
    cache = ExperienceCache(visitor.build_digest(), get_settings())
    answer = _answer(_Question(visitor, tuple(keys), cache, deadline, is_page=False))
    remember(cache, answer)
    return answer


def remember(cache: ExperienceCache, answer: Answer) -> None:
    """Cache what was learned; a failure overwrites nothing."""
    if answer.learned:
        cache.set(answer.learned)


def _answer(question: _Question, *, publish: Callable[[Experiences], None] | None = None) -> Answer:
    """Answer a question; ``publish`` is given what the cache knows before the vendor is asked."""
    keys, cache = question.keys, question.cache
    cached = cache.get(keys)
    if publish is not None:
        publish(_pick(cached, keys))
    missing = [key for key in keys if key not in cached or not cached[key].fresh]
    unavailable = metadata.find_unavailable(missing)
    missing = [key for key in missing if key not in unavailable]
    answer = Answer()
    if missing and (elsewhere := _wait_for_another_process(question, missing)):
        cached |= elsewhere
        missing = [key for key in missing if key not in elsewhere]
    for outcome in _call_in_batches(question, missing):
        if isinstance(outcome, APIError):
            answer.errors.append(outcome)
            continue
        batch, result = outcome
        answer.learned.update((key, _freeze(result.experiences.get(key))) for key in batch)
        answer.failures.extend(result.failures)
    known = {key: entry.experience for key, entry in cached.items()} | answer.learned | dict.fromkeys(unavailable)
    answer.unanswered = tuple(key for key in keys if key not in known)
    answer.experiences = {key: e for key in keys if (e := known.get(key)) is not None}
    return answer


def _freeze(experience: Experience | None) -> Experience | None:
    """Return an answer as unchangeable as it comes from the cache: a view that changes it fails at once, not later."""
    if experience is None:
        return None
    frozen = build_experience(experience.experience_key, experience.payload, experience.experience_context)
    return replace(frozen, source=experience.source)


def _wait_for_another_process(question: _Question, missing: Sequence[str]) -> dict[str, CachedExperience]:
    """Return what another process that asks the same at this moment has found; nothing when we are to ask.

    Only where the site's cache is shared: who adds the claim asks, the others look for its answer
    until it is there, the claim is gone, or half the time is over.
    """
    left = question.deadline.remaining() or 0.0
    # Without a TTL nothing is ever fresh that another has found.
    if not get_settings().cache_ttl or claim(question.cache.visitor, missing, left):
        return {}
    until = time.monotonic() + left / 2
    pause = 0.002
    while time.monotonic() < until:
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
        found = question.cache.get(missing)
        if all(key in found and found[key].fresh for key in missing):
            return found
    return {}


def _call_in_batches(
    question: _Question, keys: Sequence[str]
) -> Iterator[tuple[Sequence[str], ExperiencesResult] | APIError]:
    """Yield an outcome for every MAX_KEYS keys: the first asked here, the others beside it on the pool."""
    batches = [keys[start : start + MAX_KEYS] for start in range(0, len(keys), MAX_KEYS)]
    beside: list[Future[ExperiencesResult] | None] = []
    for batch in batches[1:]:
        try:
            beside.append(get_pool().submit(_call, question, batch))
        except PoolBusy:
            beside.append(None)
    for batch, future in zip(batches, [None, *beside], strict=False):
        try:
            if future is None:
                yield batch, _call(question, batch)
            else:
                yield batch, future.result(question.deadline.remaining())
        except TimeoutError:
            yield DeadlineExceeded("no whole answer before the deadline")
        except APIError as error:
            yield error


def _call(question: _Question, keys: Sequence[str], ticket: int = 0) -> ExperiencesResult:
    """Ask the vendor for at most MAX_KEYS keys, if breaker and governor let us, and tell the breaker what came.

    A page is never the probe of an open breaker; ``ticket`` is the probe's, and who is no page may be one.
    """
    client, breaker = get_client(), get_breaker()
    if not ticket and not breaker.allow():
        ticket = 0 if question.is_page else breaker.claim_probe()
        if not ticket:
            raise CircuitOpenError("not asked: the circuit breaker is open")
    if not get_governor().take():
        breaker.return_probe(ticket)
        raise CircuitOpenError(f"not asked: the workspace has made its {REQUESTS_A_MINUTE} requests of this minute")
    try:
        result = client.fetch_experiences(
            keys,
            customer_id=question.visitor.identity.customer_id,
            user_identifiers=question.visitor.identity.user_identifiers,
            attributes=question.visitor.attributes,
            deadline=question.deadline,
        )
    except RateLimitedError as error:
        breaker.close_gate(GATE_SECONDS if error.retry_after is None else error.retry_after, ticket)
        raise
    except ResponseError as error:
        # A 400 is about this question; the vendor is well. A redirect is no answer of the vendor's.
        healthy = 400 <= error.status < 500 and not isinstance(error, AuthenticationError)
        (breaker.success if healthy else breaker.failure)(ticket)
        raise
    except Exception:
        breaker.failure(ticket)
        raise
    breaker.success(ticket)
    return result

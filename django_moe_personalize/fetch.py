"""Fetch: cache → breaker → one bulk call, under one deadline; on a page's path nothing here raises.

A page starts a ``Fetch`` on a pool of threads that it can abandon, goes on with its view, and
joins it at the first read for no longer than its deadline. ``ask`` is the same without a page.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from django.core.signals import setting_changed
from django.db import close_old_connections
from django.dispatch import receiver

from django_moe_personalize import metadata, signals
from django_moe_personalize.cache import ExperienceCache
from django_moe_personalize.callables import log_once, logger
from django_moe_personalize.conf import ConfigurationError, get_settings
from django_moe_personalize.connection import get_client
from django_moe_personalize.exceptions import (
    APIError,
    AuthenticationError,
    CircuitOpenError,
    DeadlineExceeded,
    RateLimitedError,
    ResponseError,
)
from django_moe_personalize.moengage.types import MAX_KEYS, Experience, ExperienceFailure, ExperiencesResult
from django_moe_personalize.resilience import CircuitBreaker, Deadline, PoolBusy, WorkerPool
from django_moe_personalize.visitor import Visitor

GATE_SECONDS = 5.0
"""How long nothing is asked after a 429 that does not say how long."""


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
    return CircuitBreaker(
        on_change=lambda old, new: logger.warning("MoEngage: the circuit breaker went from %s to %s.", old, new)
    )


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "MOE_PERSONALIZE":
        get_pool.cache_clear()
        get_breaker.cache_clear()


class Fetch:
    """One question of a page in flight. ``keys`` are what it asks for."""

    __slots__ = ("_outcome", "keys")

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = tuple(keys)
        self._outcome: Future[Mapping[str, Experience]] = Future()

    @property
    def done(self) -> bool:
        """Whether the answer can be read without waiting."""
        return self._outcome.done()

    def finish(self, experiences: Mapping[str, Experience]) -> None:
        """Hand the answer to whoever waits or will come."""
        self._outcome.set_result(experiences)

    def result(self, seconds: float) -> Mapping[str, Experience]:
        """Return the experiences by key, waiting at most ``seconds``; what is absent shows its default."""
        try:
            return self._outcome.result(seconds)
        except TimeoutError:
            return self._abandon()

    async def aresult(self, seconds: float) -> Mapping[str, Experience]:
        """See result()."""
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(asyncio.wrap_future(self._outcome))
        except TimeoutError:
            return self._abandon()

    def _abandon(self) -> Mapping[str, Experience]:
        report(DeadlineExceeded("the page's deadline passed"), self.keys)
        return {}


def start_fetch(visitor: Visitor, keys: Sequence[str]) -> Fetch:
    """Ask for ``keys`` beside the page and return at once. Past the bulkhead the answer is empty."""
    fetch = Fetch(keys)
    deadline = Deadline(get_settings().deadline)
    try:
        get_pool().submit(_run, fetch, visitor, deadline)
    except PoolBusy as error:
        log_once("busy", "All fetching threads are busy (%s); defaults are shown.", error)
        fetch.finish({})
    return fetch


def _run(fetch: Fetch, visitor: Visitor, deadline: Deadline) -> None:
    """Answer ``fetch``, then do what the page need not wait for."""
    answer = Answer()
    try:
        answer = ask(visitor, fetch.keys, deadline=deadline)
    except ConfigurationError as error:
        log_once(("configuration", str(error)), "MoEngage is not asked: %s", error)
    except Exception as error:
        # Whatever it is, the page shows its defaults. No traceback: its frames hold the visitor.
        log_once(("bug", type(error)), "Fetching experiences failed unexpectedly (%s).", type(error).__name__)
    finally:
        fetch.finish(answer.experiences)
    for problem in answer.errors:
        report(problem, fetch.keys)
    remember(visitor, answer)
    if absent := [key for key, experience in answer.learned.items() if experience is None]:
        metadata.explain(absent)
    # The site's cache may be its database, whose connections no request of this thread closes.
    close_old_connections()


def report(error: APIError, keys: Sequence[str]) -> None:
    """Say why keys show their defaults: once a kind in the log, every time in the signal."""
    # What opened the breaker was said already, and so was that it opened.
    if not isinstance(error, CircuitOpenError):
        status = getattr(error, "status", None)
        log_once(("fetch", type(error), status), "MoEngage gave no experiences (%s: %s).", type(error).__name__, error)
    signals.fetch_failed.send_robust(sender=Fetch, error=error, experience_keys=tuple(keys))


def ask(visitor: Visitor, keys: Sequence[str], *, deadline: Deadline) -> Answer:
    """Answer ``keys`` from the cache and, for the rest, from the vendor; stale where the vendor fails.

    The vendor's failures are in ``Answer.errors``. Raises ConfigurationError without credentials.
    """
    cached = ExperienceCache(visitor.build_digest(), get_settings()).get(keys)
    answer = Answer()
    missing = [key for key in keys if key not in cached or not cached[key].fresh]
    unavailable = metadata.find_unavailable(missing)
    missing = [key for key in missing if key not in unavailable]
    for outcome in _call_in_batches(visitor, missing, deadline):
        if isinstance(outcome, APIError):
            answer.errors.append(outcome)
            continue
        batch, result = outcome
        answer.learned.update((key, result.experiences.get(key)) for key in batch)
        answer.failures.extend(result.failures)
    known = {key: entry.experience for key, entry in cached.items()} | answer.learned | dict.fromkeys(unavailable)
    answer.unanswered = tuple(key for key in keys if key not in known)
    answer.experiences = {key: e for key in keys if (e := known.get(key)) is not None}
    return answer


def remember(visitor: Visitor, answer: Answer) -> None:
    """Cache what was learned."""
    if answer.learned:
        ExperienceCache(visitor.build_digest(), get_settings()).set(answer.learned)


def _call_in_batches(
    visitor: Visitor, keys: Sequence[str], deadline: Deadline
) -> Iterator[tuple[Sequence[str], ExperiencesResult] | APIError]:
    """Yield an outcome for every MAX_KEYS keys: the first asked here, the others beside it on the pool."""
    batches = [keys[start : start + MAX_KEYS] for start in range(0, len(keys), MAX_KEYS)]
    beside: list[Future[ExperiencesResult] | None] = []
    for batch in batches[1:]:
        try:
            beside.append(get_pool().submit(_call, visitor, batch, deadline))
        except PoolBusy:
            beside.append(None)
    for batch, future in zip(batches, [None, *beside], strict=False):
        try:
            if future is None:
                yield batch, _call(visitor, batch, deadline)
            else:
                yield batch, future.result(deadline.remaining())
        except TimeoutError:
            yield DeadlineExceeded("no whole answer before the deadline")
        except APIError as error:
            yield error


def _call(visitor: Visitor, keys: Sequence[str], deadline: Deadline) -> ExperiencesResult:
    """Ask the vendor for at most MAX_KEYS keys, if the breaker lets us, and tell it what came."""
    client, breaker = get_client(), get_breaker()
    if not breaker.allow():
        raise CircuitOpenError("not asked: the circuit breaker is open")
    try:
        result = client.fetch_experiences(
            keys,
            customer_id=visitor.identity.customer_id,
            user_identifiers=visitor.identity.user_identifiers,
            attributes=visitor.attributes,
            deadline=deadline,
        )
    except RateLimitedError as error:
        breaker.close_gate(GATE_SECONDS if error.retry_after is None else error.retry_after)
        raise
    except ResponseError as error:
        # A 400 is about this question; the vendor is well.
        healthy = not error.retryable and not isinstance(error, AuthenticationError)
        (breaker.success if healthy else breaker.failure)()
        raise
    except Exception:
        breaker.failure()
        raise
    breaker.success()
    return result

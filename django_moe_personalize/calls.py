"""Calls: what breaker and governor let through to the vendor, in one step or in two, and what it says of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from django.core.signals import setting_changed
from django.dispatch import receiver

from django_moe_personalize import metadata
from django_moe_personalize.breaker import CircuitBreaker
from django_moe_personalize.cache import ExperienceCache
from django_moe_personalize.callables import logger
from django_moe_personalize.conf import get_settings
from django_moe_personalize.connection import get_client
from django_moe_personalize.coordination import add_to_count, put_up_notice
from django_moe_personalize.exceptions import (
    AuthenticationError,
    CircuitOpenError,
    DeadlineExceeded,
    RateLimitedError,
    ResponseError,
)
from django_moe_personalize.governor import Governor
from django_moe_personalize.moengage.client import PersonalizeClient
from django_moe_personalize.moengage import Exchange, NotTakenError
from django_moe_personalize.moengage.types import ExperiencesResult
from django_moe_personalize.resilience import Deadline, WorkerPool
from django_moe_personalize.signals import breaker_changed
from django_moe_personalize.visitor import Visitor

GATE_SECONDS = 5.0
"""How long nothing is asked after a 429 that does not say how long."""

BREAKER_TOPIC = "breaker"
"""Under which a process tells the others of its site what its breaker does."""

REQUESTS_A_MINUTE = 10_000
"""The vendor's limit for a workspace (contract §1)."""


class Question(NamedTuple):
    """What a visitor is asked for, and until when."""

    visitor: Visitor
    keys: tuple[str, ...]
    cache: ExperienceCache
    deadline: Deadline
    is_page: bool = True


@functools.cache
def get_pool() -> WorkerPool:
    """Return the process's pool of fetching threads, MAX_CONCURRENT_FETCHES wide."""
    return WorkerPool(get_settings().max_concurrent_fetches, name="moe-personalize-fetch")


@functools.cache
def get_breaker() -> CircuitBreaker:
    """Return the process's circuit breaker around fetches; every change of state is one line in the log."""
    return CircuitBreaker(on_change=_tell_change)


def _tell_change(old: str, new: str, reason: str) -> None:
    """Say it in the log at once, and beside the page to the signal's receivers and to the other processes."""
    logger.warning("MoEngage: the circuit breaker went from %s to %s (%s).", old, new, reason)
    if any(pool.offer(_announce_change, old, new, reason) for pool in (metadata.get_pool(), get_pool())):
        return
    # Nobody is free. An async receiver cannot be reached from an event loop.
    with suppress(RuntimeError):
        breaker_changed.send_robust(sender=CircuitBreaker, old=old, new=new, reason=reason)


def _announce_change(old: str, new: str, reason: str) -> None:
    breaker_changed.send_robust(sender=CircuitBreaker, old=old, new=new, reason=reason)
    put_up_notice(BREAKER_TOPIC, state=new, reason=reason)


@functools.cache
def get_governor() -> Governor:
    """Return what keeps the workspace within its requests a minute, with all processes that share the cache."""
    return Governor(REQUESTS_A_MINUTE, add=add_to_count)


@receiver(setting_changed, dispatch_uid=f"{__name__}.forget")
def forget(*, setting: str = "MOE_PERSONALIZE", **kwargs: Any) -> None:
    """Start anew: no thread, no failure, nothing counted."""
    if setting == "MOE_PERSONALIZE":
        for shared in (get_pool, get_breaker, get_governor):
            shared.cache_clear()


def call(question: Question, keys: Sequence[str], ticket: int = 0) -> ExperiencesResult:
    """Ask the vendor for at most MAX_KEYS keys; raises the APIError tree.

    A page is never the probe of an open breaker; ``ticket`` is the probe's, and who is no page may be one.
    """
    client, breaker = get_client(), get_breaker()
    if not ticket and not breaker.allow():
        ticket = 0 if question.is_page else breaker.claim_probe()
        if not ticket:
            raise CircuitOpenError("not asked: the circuit breaker is open")
    _take(ticket)
    try:
        result = client.fetch_experiences(
            keys,
            customer_id=question.visitor.identity.customer_id,
            user_identifiers=question.visitor.identity.user_identifiers,
            attributes=question.visitor.attributes,
            deadline=question.deadline,
        )
    except Exception as error:
        _tell_breaker(error, ticket)
        raise
    _tell_breaker(None, ticket)
    return result


class SplitCall:
    """A call that is out on a warm connection, and whose answer is read when somebody wants it."""

    __slots__ = ("_client", "_exchange")

    def __init__(self, client: PersonalizeClient, exchange: Exchange) -> None:
        self._client = client
        self._exchange = exchange

    def receive(self, seconds: float) -> ExperiencesResult | None:
        """Return the answer, waiting at most ``seconds``; ``None`` when it is not there by then.

        Raises the APIError tree; NotTakenError says that it is worth to be asked again, in one step.
        """
        try:
            result = self._client.finish_fetch(self._exchange, seconds)
        except NotTakenError:
            raise
        except Exception as error:
            _tell_breaker(error)
            raise
        if result is not None:
            _tell_breaker(None)
        return result

    def give_up(self) -> DeadlineExceeded:
        """Take it that no answer will come, and return the error that says so."""
        self._exchange.release()
        error = DeadlineExceeded("MoEngage did not answer in time")
        _tell_breaker(error)
        return error

    @property
    def has_begun(self) -> bool:
        """Whether some of the answer was received."""
        return self._exchange.has_begun

    def fileno(self) -> int:
        """Return what an event loop watches for the answer."""
        return self._exchange.fileno()

    def release(self) -> None:
        """Let go of the connection; nobody wants the answer."""
        self._exchange.release()


def start_call(question: Question, keys: Sequence[str]) -> SplitCall | None:
    """Send a question now and return at once; ``None`` where that could block, or nothing may be asked."""
    client = get_client()
    if not get_breaker().allow():
        return None
    _take(0)
    exchange = client.start_fetch(
        keys,
        customer_id=question.visitor.identity.customer_id,
        user_identifiers=question.visitor.identity.user_identifiers,
        attributes=question.visitor.attributes,
    )
    return None if exchange is None else SplitCall(client, exchange)


def _take(ticket: int) -> None:
    if not get_governor().take():
        get_breaker().return_probe(ticket)
        raise CircuitOpenError(f"not asked: the workspace has made its {REQUESTS_A_MINUTE} requests of this minute")


def _tell_breaker(error: Exception | None, ticket: int = 0) -> None:
    """Report what came of a call; ``None`` is an answer."""
    breaker = get_breaker()
    if isinstance(error, RateLimitedError):
        breaker.close_gate(GATE_SECONDS if error.retry_after is None else error.retry_after, ticket)
    elif error is None or _is_about_question(error):
        breaker.success(ticket)
    else:
        breaker.failure(ticket)


def _is_about_question(error: Exception) -> bool:
    """Whether the vendor is well and only did not like what it was asked. A redirect is no answer of the vendor's."""
    return isinstance(error, ResponseError) and 400 <= error.status < 500 and not isinstance(error, AuthenticationError)

"""Call MoEngage as often as the circuit breaker allows, and tell the breaker how each call ended."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from django_moe_personalize.client import get_client
from django_moe_personalize.exceptions import (
    AuthenticationError,
    CircuitOpenError,
    RateLimitedError,
    ResponseError,
)
from django_moe_personalize.fetching.shared import put_up_notice
from django_moe_personalize.log import logger
from django_moe_personalize.moengage.messages import Exchange
from django_moe_personalize.moengage.types import ExperiencesResult
from django_moe_personalize.resilience import CircuitBreaker, Deadline, WorkerPool
from django_moe_personalize.runtime import Runtime, part
from django_moe_personalize.signals import breaker_changed
from django_moe_personalize.visitor import Visitor

GATE_SECONDS = 5.0
"""How long no call is made after a 429 that names no time."""

BREAKER_TOPIC = "breaker"
"""The topic under which a process tells the site's other processes about its breaker. The doctor reads it."""


class Question(NamedTuple):
    """Which experiences to fetch for whom, and until when. ``is_page`` says that a page waits for the answer."""

    runtime: Runtime
    visitor: Visitor
    keys: tuple[str, ...]
    deadline: Deadline
    is_page: bool = True


@part
def get_pool(runtime: Runtime) -> WorkerPool:
    """Return the threads that fetch for pages: MAX_CONCURRENT_FETCHES of them at most."""
    return WorkerPool(runtime.settings.max_concurrent_fetches, name="moe-personalize-fetch")


@part
def get_background(runtime: Runtime) -> WorkerPool:
    """Return the one thread for work that no page waits for, such as reading the metadata."""
    return WorkerPool(1, name="moe-personalize-background")


@part
def get_breaker(runtime: Runtime) -> CircuitBreaker:
    """Return the circuit breaker around fetches. Each change of its state is one log line."""

    def tell(old: str, new: str, reason: str) -> None:
        logger.warning("MoEngage: the circuit breaker went from %s to %s (%s).", old, new, reason)
        if any(get(runtime).offer(_announce, old, new, reason) for get in (get_background, get_pool)):
            return
        # All threads are busy. An async receiver can't be reached from an event loop.
        with suppress(RuntimeError):
            breaker_changed.send_robust(sender=CircuitBreaker, old=old, new=new, reason=reason)

    return CircuitBreaker(on_change=tell)


def _announce(old: str, new: str, reason: str) -> None:
    breaker_changed.send_robust(sender=CircuitBreaker, old=old, new=new, reason=reason)
    put_up_notice(BREAKER_TOPIC, state=new, reason=reason)


def call(question: Question, keys: tuple[str, ...], ticket: int = 0) -> ExperiencesResult:
    """Fetch at most MAX_KEYS experiences and wait for them. Raises the APIError tree.

    A page is never the probe of an open breaker. Another caller may be, and ``ticket`` is the probe's.
    """
    runtime, visitor = question.runtime, question.visitor
    client, breaker = get_client(runtime), get_breaker(runtime)
    if not ticket and not breaker.allow():
        ticket = 0 if question.is_page else breaker.claim_probe()
        if not ticket:
            raise CircuitOpenError("MoEngage was not asked: the circuit breaker is open")
    try:
        result = client.fetch_experiences(
            keys,
            customer_id=visitor.identity.customer_id,
            user_identifiers=visitor.identity.user_identifiers,
            attributes=visitor.attributes,
            deadline=question.deadline,
        )
    except Exception as error:
        tell_breaker(runtime, error, ticket)
        raise
    tell_breaker(runtime, None, ticket)
    return result


def start_call(question: Question, keys: tuple[str, ...]) -> Exchange | None:
    """Send the request now and return at once, or return ``None`` where sending could block or isn't allowed."""
    client = get_client.find(question.runtime)
    if client is None or not get_breaker(question.runtime).allow():
        return None
    visitor = question.visitor
    return client.start_fetch(
        keys,
        customer_id=visitor.identity.customer_id,
        user_identifiers=visitor.identity.user_identifiers,
        attributes=visitor.attributes,
    )


def tell_breaker(runtime: Runtime, error: Exception | None, ticket: int = 0) -> None:
    """Report how a call ended: ``error`` is ``None`` after a response that can be used."""
    breaker = get_breaker(runtime)
    if isinstance(error, RateLimitedError):
        breaker.close_gate(GATE_SECONDS if error.retry_after is None else error.retry_after, ticket)
    elif error is None or _is_about_request(error):
        breaker.success(ticket)
    else:
        breaker.failure(ticket)


def _is_about_request(error: Exception) -> bool:
    """Return whether MoEngage works and only refused this request. A redirect is not a response of MoEngage's."""
    return isinstance(error, ResponseError) and 400 <= error.status < 500 and not isinstance(error, AuthenticationError)

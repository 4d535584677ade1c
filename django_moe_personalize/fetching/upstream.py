"""Call MoEngage only if the circuit breaker allows the call, and tell the breaker how each call ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from django.db import close_old_connections

from django_moe_personalize.client import get_client
from django_moe_personalize.exceptions import (
    APIError,
    AuthenticationError,
    CircuitOpenError,
    DeadlineExceeded,
    ProxyError,
    RateLimitedError,
    ResponseError,
    StillConnecting,
)
from django_moe_personalize.fetching.shared import put_up_notice
from django_moe_personalize.log import CREDENTIALS_FIX, DOCTOR_FIX, PROXY_FIX, Outage, logger
from django_moe_personalize.moengage.client import read_answer
from django_moe_personalize.moengage.http1 import HTTPExchange, Response
from django_moe_personalize.moengage.types import ExperiencesResult, UnreadableExperience
from django_moe_personalize.resilience import CircuitBreaker, Deadline, PoolBusy, WorkerPool
from django_moe_personalize.runtime import Runtime, part, protect_transactions
from django_moe_personalize.signals import breaker_changed
from django_moe_personalize.visitor import Visitor

GATE_SECONDS = 5.0
"""How long this process makes no call after a 429 response without a usable ``Retry-After`` header."""

CONNECT_SECONDS = 10.0
"""How long a probe waits for a connection. DEADLINE then limits the probe's call alone, because no page waits."""

BREAKER_TOPIC = "breaker"
"""The topic of the notices in which each process publishes its breaker's state. ``moe_doctor`` reads the notices."""


_SHOWN = "Pages show cached content or their defaults."


class Question(NamedTuple):
    """A visitor, the keys to fetch for this visitor, and the deadline. ``is_page``: a page waits for the answer."""

    runtime: Runtime
    visitor: Visitor
    keys: tuple[str, ...]
    deadline: Deadline
    is_page: bool = True


class _RuntimePool(WorkerPool):
    """A pool whose threads work for one runtime, even after new settings have replaced this runtime."""

    def __init__(self, runtime: Runtime, max_workers: int, *, name: str) -> None:
        super().__init__(max_workers, name=name)
        self._runtime = runtime

    def _work(self) -> None:
        with self._runtime.use():
            super()._work()


@part
def get_pool(runtime: Runtime) -> WorkerPool:
    """Return the threads that fetch for pages: at most MAX_CONCURRENT_FETCHES threads."""
    return _RuntimePool(runtime, runtime.settings.max_concurrent_fetches, name="moe-personalize-fetch")


class _Background(_RuntimePool):
    def _run(self, *job: Any) -> None:
        super()._run(*job)
        # The site's cache may use the database. Django closes connections only at the end of a request.
        close_old_connections()


@part
def get_background(runtime: Runtime) -> WorkerPool:
    """Return the one thread for work that no page waits for, such as reading the metadata."""
    return _Background(runtime, 1, name="moe-personalize-background")


@part
def get_breaker(runtime: Runtime) -> CircuitBreaker:
    """Return the circuit breaker for fetches."""

    def tell(old: str, new: str, reason: str) -> None:
        # At DEBUG, because the log of the outage says why fetches fail, and each probe of an outage changes the state.
        fields = {"moe_event": "breaker_change", "moe_old": old, "moe_new": new, "moe_cause": reason}
        logger.debug("The circuit breaker for MoEngage went from %s to %s (%s).", old, new, reason, extra=fields)
        if any(get(runtime).offer(_announce, old, new, reason) for get in (get_background, get_pool)):
            return
        # All threads are busy, so call the receivers here. Django can't call async receivers from an event loop.
        with suppress(RuntimeError), protect_transactions():
            breaker_changed.send_robust(sender=CircuitBreaker, old=old, new=new, reason=reason)

    return CircuitBreaker(on_change=tell)


@part
def get_outage(runtime: Runtime) -> Outage:
    """Return the log of the failures of fetches."""
    return Outage("MoEngage fetches fail", "MoEngage fetches work again", part="fetch")


@part
def get_shortage(runtime: Runtime) -> Outage:
    """Return the log of the fetches that find no free thread."""
    return Outage("Fetches find no free thread", "Fetches find free threads again", part="threads")


def offer_fetch(runtime: Runtime, fetch: Callable[..., object], *args: object) -> bool:
    """Run ``fetch(*args)`` for the caller's page in a thread, or return False and log that all are busy."""
    try:
        get_pool(runtime).submit(runtime.copy_context().run, fetch, *args)
    except PoolBusy as error:
        fix = "Find out why MoEngage is slow, or raise MAX_CONCURRENT_FETCHES."
        get_shortage(runtime).fail(str(error), f"{_SHOWN} {fix}")
        return False
    get_shortage(runtime).end()
    return True


def log_late_page(runtime: Runtime, *, is_counted: bool = False) -> None:
    """Log that a page can't wait any longer. The thread that makes the call may hang for long, for example in DNS.

    Count the fetch as late, unless another page has counted it.
    """
    if not is_counted:
        runtime.count("deadline_misses")
    if not get_outage(runtime).is_on:
        _log_failure(runtime, DeadlineExceeded("the page's deadline passed"))


def _log_failure(runtime: Runtime, error: Exception) -> None:
    fix, level = DOCTOR_FIX, logging.WARNING
    if isinstance(error, RateLimitedError):
        fix = "Raise CACHE_TTL, narrow VARY_CACHE_ON, or ask MoEngage for a higher limit."
    elif isinstance(error, AuthenticationError):
        fix, level = CREDENTIALS_FIX, logging.ERROR
    elif isinstance(error, ProxyError):
        fix = PROXY_FIX
    elif isinstance(error, StillConnecting):
        fix = "The next page uses the connection. If this happens often, raise DEADLINE."
    # Only messages of APIError surely have no personal data.
    cause = f"{type(error).__name__}: {error}" if isinstance(error, APIError) else type(error).__name__
    if isinstance(error, RateLimitedError):
        cause = f"{cause}, {get_breaker(runtime).reason}"
    get_outage(runtime).fail(cause, f"{_SHOWN} {fix}", level)


def _announce(old: str, new: str, reason: str) -> None:
    breaker_changed.send_robust(sender=CircuitBreaker, old=old, new=new, reason=reason)
    put_up_notice(BREAKER_TOPIC, state=new, reason=reason)


def call(question: Question, keys: tuple[str, ...], ticket: int = 0) -> ExperiencesResult:
    """Fetch at most MAX_KEYS experiences, and wait for the response. Raises APIError.

    If the breaker is open, a page's call raises CircuitOpenError, and another caller may make the half-open probe.
    ``ticket`` is the ticket of a probe that the caller has claimed already.
    """
    runtime, visitor = question.runtime, question.visitor
    client, breaker = get_client(runtime), get_breaker(runtime)
    if question.deadline.expired:
        # The site's cache took all the time, so the breaker isn't told.
        raise DeadlineExceeded("no time was left to ask MoEngage")
    if not ticket and not breaker.allow():
        ticket = 0 if question.is_page else breaker.claim_probe()
        if not ticket:
            get_outage(runtime).skip()
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
        tell_breaker(runtime, error, ticket, age=question.deadline.overdue)
        raise
    tell_breaker(runtime, None, ticket)
    log_unreadable(runtime, result)
    return result


def connect(runtime: Runtime, ticket: int) -> None:
    """Open a connection for the probe with this ticket, unless one is idle. Raises APIError."""
    client = get_client(runtime)
    try:
        client.connect(deadline=Deadline(CONNECT_SECONDS))
    except Exception as error:
        tell_breaker(runtime, error, ticket)
        raise


def start_call(question: Question, keys: tuple[str, ...]) -> HTTPExchange | None:
    """Send the request and return immediately. Return ``None`` if sending could block or the breaker is open."""
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


def read_call(runtime: Runtime, response: Response, keys: tuple[str, ...]) -> ExperiencesResult:
    """Return the experiences in the response to start_call(), and tell the breaker whether it is usable."""
    try:
        result = read_answer(response, keys)
    except Exception as error:
        tell_breaker(runtime, error)
        raise
    tell_breaker(runtime, None)
    log_unreadable(runtime, result)
    return result


def tell_breaker(runtime: Runtime, error: Exception | None, ticket: int = 0, *, age: float = 0.0) -> None:
    """Tell the breaker and the log how a call ended. ``error`` is ``None`` after a usable response.

    ``age``: how many seconds ago the call's deadline passed.
    """
    breaker = get_breaker(runtime)
    if error is None or is_refusal(error):
        breaker.success(ticket)
        # While the breaker is open, a call that began before the outage may still succeed.
        if breaker.state == "closed" and (outage := get_outage.find(runtime)) is not None:
            outage.end()
        return
    if isinstance(error, StillConnecting) and error.is_early and not ticket:
        # The breaker isn't told, because the connection may be open soon.
        _log_failure(runtime, error)
        return
    if isinstance(error, RateLimitedError):
        breaker.close_gate(error.retry_after or GATE_SECONDS, ticket)
    else:
        breaker.failure(ticket, age=age)
    _log_failure(runtime, error)


def is_refusal(error: Exception) -> bool:
    """Return whether MoEngage works and refused only this request."""
    # A 3xx response is a failure: MoEngage never redirects.
    is_refused = isinstance(error, ResponseError) and 400 <= error.status < 500
    return is_refused and not isinstance(error, AuthenticationError | RateLimitedError)


def log_unreadable(runtime: Runtime, result: ExperiencesResult) -> None:
    """Log, once for each key, why the package can't read an experience."""
    if not result.failures:
        return
    message = "Experience %r can't be read: %s. Pages show its default. Correct its content in MoEngage's dashboard."
    for failure in [failure for failure in result.failures if isinstance(failure, UnreadableExperience)]:
        (key,) = failure.experience_keys
        runtime.log_once(("unreadable", key), message, key, failure.problem)


async def wait_readable(fileno: int, seconds: float) -> None:
    """Wait in the event loop until the socket has data, at most ``seconds``."""
    # asyncio.timeout() and an Event would take 230 bytecodes more.
    loop = asyncio.get_running_loop()
    woken = loop.create_future()
    loop.add_reader(fileno, _wake, woken)
    timer = loop.call_later(seconds, _wake, woken)
    try:
        await woken
    finally:
        timer.cancel()
        # The event loop may have been closed before this task ended.
        if not loop.is_closed():
            loop.remove_reader(fileno)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)

"""Answer a question from the site's cache, through another process that asks the same question, or from MoEngage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial

from django_moe_personalize import signals
from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.exceptions import APIError, CircuitOpenError, DeadlineExceeded, StillConnecting
from django_moe_personalize.fetching import shared, upstream
from django_moe_personalize.fetching.cache import Answers, get_cache, pick
from django_moe_personalize.fetching.metadata import get_metadata_store
from django_moe_personalize.fetching.switch import get_switch
from django_moe_personalize.fetching.upstream import Question, get_pool
from django_moe_personalize.moengage.client import get_answers
from django_moe_personalize.moengage.types import MAX_KEYS, Experience, ExperienceFailure, ExperiencesResult
from django_moe_personalize.resilience import Deadline, PoolBusy, monotonic
from django_moe_personalize.runtime import Runtime, protect_transactions

Experiences = Mapping[str, Experience]


class Answer:
    """The answer to a question.

    ``experiences`` come from the cache or from MoEngage. ``learned`` holds only MoEngage's answers: ``None`` means
    that this visitor gets no experience. ``errors`` explain why some keys are ``unanswered``.
    """

    __slots__ = ("errors", "experiences", "failures", "learned", "unanswered")

    def __init__(self) -> None:
        self.experiences: Experiences = {}
        self.failures: list[ExperienceFailure] = []
        self.errors: list[APIError] = []
        self.learned: Answers = {}
        self.unanswered: tuple[str, ...] = ()


def resolve(question: Question, *, publish: Callable[[Experiences], None] | None = None) -> Answer:
    """Answer a question. Block at most until the question's deadline.

    Call ``publish`` with the cached experiences before the call to MoEngage.
    """
    runtime = question.runtime
    if not get_switch(runtime).wait(question.deadline):
        answer = Answer()
        answer.errors, answer.unanswered = [DeadlineExceeded("the state of the kill switch isn't known")], question.keys
        return answer
    known = get_cache(runtime).read(question.visitor.digest, question.keys)
    if publish is not None:
        publish(pick(known.answers, question.keys))
    store = get_metadata_store.find(runtime)
    answers, missing = known if store is None else store.leave_out_unavailable(known)
    if missing and (elsewhere := _wait_for_another_process(question, missing)):
        answers, missing = {**answers, **elsewhere}, ()
    return conclude(question, answers, _call_in_batches(question, missing))


def resolve_or_log(question: Question, publish: Callable[[Experiences], None]) -> Answer:
    """See resolve(). Never raises: after an unexpected error, log the error and return an empty answer."""
    try:
        return resolve(question, publish=publish)
    except ConfigurationError as error:
        message = "MoEngage can't be asked, so pages show their defaults: %s"
        question.runtime.log_once(("configuration", str(error)), message, error)
    except Exception as error:
        log_bug(question.runtime, error)
    return Answer()


def conclude(question: Question, known: Answers, outcomes: Iterable[ExperiencesResult | APIError]) -> Answer:
    """Combine the results and errors of the calls with the known answers."""
    answer = Answer()
    for outcome in outcomes:
        if isinstance(outcome, APIError):
            answer.errors.append(outcome)
        else:
            learned = get_answers(outcome)
            answer.learned = {**answer.learned, **learned} if answer.learned else learned
            answer.failures.extend(outcome.failures)
    answers = {**known, **answer.learned}
    answer.experiences = pick(answers, question.keys)
    if answer.errors:
        answer.unanswered = tuple(key for key in question.keys if key not in answers)
    return answer


def conclude_failure(question: Question, known: Answers, error: Exception | None) -> Answer:
    """Combine the error of a call, if there is one, with the known answers. Log an unexpected error."""
    errors = (error,) if isinstance(error, APIError) else ()
    if error is not None and not errors:
        log_bug(question.runtime, error)
    return conclude(question, known, errors)


def _wait_for_another_process(question: Question, missing: tuple[str, ...]) -> Answers:
    """Return the answers of another process that asks the same question now, or nothing if this process must ask.

    Only the process that gets the claim asks MoEngage. Other processes search the shared cache for the answers,
    for at most half of the remaining time.
    """
    runtime, visitor = question.runtime, question.visitor.digest
    left = question.deadline.remaining() or 0.0
    # If CACHE_TTL is 0, an answer in the cache is never fresh.
    if not runtime.settings.cache_ttl or shared.claim(visitor, missing, left):
        return {}
    until = monotonic() + left / 2
    pause = 0.002
    while monotonic() < until:
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
        found = get_cache(runtime).read(visitor, missing)
        if not found.due:
            return {key: found.answers[key] for key in missing}
    return {}


def _call_in_batches(question: Question, keys: tuple[str, ...]) -> Iterator[ExperiencesResult | APIError]:
    """Ask in batches of MAX_KEYS keys, and yield the result or the error of each batch.

    Threads of the pool ask for all batches but the first. If the pool has no free thread, this thread asks.
    """
    batches = [keys[start : start + MAX_KEYS] for start in range(0, len(keys), MAX_KEYS)]
    pooled: list[Future[ExperiencesResult] | None] = []
    for batch in batches[1:]:
        try:
            run = question.runtime.copy_context().run
            pooled.append(get_pool(question.runtime).submit(run, upstream.call, question, batch))
        except PoolBusy:
            pooled.append(None)
    for batch, future in zip(batches, [None, *pooled], strict=False):
        try:
            yield upstream.call(question, batch) if future is None else future.result(question.deadline.remaining())
        except TimeoutError:
            yield DeadlineExceeded("no complete response before the deadline")
        except APIError as error:
            yield error


def follow_up(question: Question, answer: Answer, *, is_late: bool = False) -> None:
    """Do the work that no page waits for: store the answer, report its errors, and probe MoEngage if a probe is due.

    ``is_late``: a page has counted the fetch as late.
    """
    if not is_late and any(isinstance(error, DeadlineExceeded) for error in answer.errors):
        question.runtime.count("deadline_misses")
    # An error isn't stored, so it overwrites no cached answer.
    with question.runtime.use():
        get_cache(question.runtime).write(question.visitor.digest, answer.learned)
    explain(question.runtime, answer.learned)
    for error in answer.errors:
        # The log of the outage has all other errors.
        if upstream.is_refusal(error):
            log_error(question.runtime, error)
        if isinstance(error, StillConnecting) and error.attempt is not None:
            error.attempt.add_done_callback(partial(_probe_connection, question))
        # Django can't call async receivers from an event loop. This code runs there if all threads are busy.
        with suppress(RuntimeError), protect_transactions():
            signals.fetch_failed.send_robust(sender=Question, error=error, experience_keys=answer.unanswered)
    if any(isinstance(error, CircuitOpenError) for error in answer.errors):
        _probe(question)


def explain(runtime: Runtime, learned: Answers) -> None:
    """Log why keys have no experience. The background thread finds the reasons."""
    if absent := [key for key, experience in learned.items() if experience is None]:
        get_metadata_store(runtime).explain(absent)


def _probe(question: Question) -> None:
    """Make the circuit breaker's half-open probe, if a probe is due."""
    runtime = question.runtime
    keys = get_switch(runtime).leave_out(question.keys)[:MAX_KEYS]
    if keys and (ticket := upstream.get_breaker(runtime).claim_probe()):
        try:
            upstream.connect(runtime, ticket)
            probe = question._replace(deadline=Deadline(runtime.settings.deadline))
            result = upstream.call(probe, keys, ticket)
        except APIError:
            return
        get_cache(runtime).write(question.visitor.digest, get_answers(result))


def _probe_connection(question: Question, attempt: Future[None]) -> None:
    """Probe now if the connection is open for which the question's call waited too long."""
    runtime = question.runtime
    if attempt.exception() is None and upstream.get_breaker(runtime).hasten():
        # If the background thread is busy, the next page starts the probe.
        upstream.get_background(runtime).offer(_probe, question)


def log_error(runtime: Runtime, error: APIError) -> None:
    """Log, once for each kind of error, why pages show their defaults."""
    status = getattr(error, "status", None)
    message = "MoEngage gave no experiences (%s: %s), so pages show cached content or their defaults."
    runtime.log_once(("fetch", type(error), status), message, type(error).__name__, error)


def log_bug(runtime: Runtime, error: Exception) -> None:
    """Log an unexpected error, without a traceback: the traceback would show the visitor's data."""
    message = "Fetching experiences failed unexpectedly (%s), so pages show their defaults. Please report this."
    runtime.log_once(("bug", type(error)), message, type(error).__name__)

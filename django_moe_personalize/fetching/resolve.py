"""Answer a question: from the site's cache, from another process that asks the same, or from MoEngage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress

from django_moe_personalize import signals
from django_moe_personalize.exceptions import APIError, CircuitOpenError, DeadlineExceeded, RateLimitedError
from django_moe_personalize.fetching import shared, upstream
from django_moe_personalize.fetching.cache import Known, get_cache, pick
from django_moe_personalize.fetching.metadata import get_metadata_store
from django_moe_personalize.fetching.upstream import Question, get_pool
from django_moe_personalize.moengage.types import MAX_KEYS, Experience, ExperienceFailure, ExperiencesResult
from django_moe_personalize.resilience import Deadline, PoolBusy
from django_moe_personalize.runtime import Runtime

Experiences = Mapping[str, Experience]

Outcome = tuple[tuple[str, ...], ExperiencesResult] | APIError
"""How one call ended: the keys it asked for with their result, or an error."""


class Answer:
    """The experiences found for a question. ``errors`` explain why some keys are ``unanswered``.

    ``learned`` holds MoEngage's own answers: ``None`` for a key without an experience for this visitor.
    """

    __slots__ = ("errors", "experiences", "failures", "learned", "unanswered")

    def __init__(self) -> None:
        self.experiences: dict[str, Experience] = {}
        self.failures: list[ExperienceFailure] = []
        self.errors: list[APIError] = []
        self.learned: dict[str, Experience | None] = {}
        self.unanswered: tuple[str, ...] = ()


def resolve(question: Question, *, publish: Callable[[Experiences], None] | None = None) -> Answer:
    """Answer a question, blocking at most until its deadline.

    ``publish`` is called with the experiences that the cache has, before MoEngage is asked.
    """
    runtime = question.runtime
    known = get_cache(runtime).read(question.visitor.digest, question.keys)
    if publish is not None:
        publish(pick(known.answers, question.keys))
    answers, missing = leave_out_unavailable(runtime, known)
    if missing and (elsewhere := _wait_for_another_process(question, missing)):
        answers, missing = {**answers, **elsewhere}, ()
    return conclude(question, answers, _call_in_batches(question, missing))


def leave_out_unavailable(runtime: Runtime, known: Known) -> tuple[Mapping[str, Experience | None], tuple[str, ...]]:
    """Return the known answers, and the due keys that MoEngage may have an experience for."""
    store = get_metadata_store.find(runtime)
    unavailable = frozenset[str]() if store is None else store.find_unavailable(known.due)
    if not unavailable:
        return known.answers, known.due
    answers = {**known.answers, **dict.fromkeys(unavailable)}
    return answers, tuple(key for key in known.due if key not in unavailable)


def conclude(question: Question, known: Mapping[str, Experience | None], outcomes: Iterable[Outcome]) -> Answer:
    """Combine the calls' outcomes with the known answers."""
    answer = Answer()
    for outcome in outcomes:
        if isinstance(outcome, APIError):
            answer.errors.append(outcome)
            continue
        keys, result = outcome
        answer.learned.update((key, result.experiences.get(key)) for key in keys)
        answer.failures.extend(result.failures)
    for key in question.keys:
        experience = answer.learned[key] if key in answer.learned else known.get(key)
        if experience is not None:
            answer.experiences[key] = experience
    if answer.errors:
        answered = known.keys() | answer.learned.keys()
        answer.unanswered = tuple(key for key in question.keys if key not in answered)
    return answer


def _wait_for_another_process(question: Question, missing: tuple[str, ...]) -> dict[str, Experience | None]:
    """Return the answers of another process that asks the same question now, or nothing if this process must ask.

    Works only where processes share a cache. The process that adds the claim asks MoEngage. The others look for
    its answers in the cache, for at most half of the time that is left.
    """
    runtime, visitor = question.runtime, question.visitor.digest
    left = question.deadline.remaining() or 0.0
    # If CACHE_TTL is 0, an answer in the cache is never fresh.
    if not runtime.settings.cache_ttl or shared.claim(visitor, missing, left):
        return {}
    until = time.monotonic() + left / 2
    pause = 0.002
    while time.monotonic() < until:
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
        found = get_cache(runtime).read(visitor, missing)
        if not found.due:
            return {key: found.answers[key] for key in missing}
    return {}


def _call_in_batches(question: Question, keys: tuple[str, ...]) -> Iterator[Outcome]:
    """Yield the outcome of each batch of MAX_KEYS keys. This thread asks for the first batch, the pool for the others.

    This thread also asks for the batches that the pool has no thread for.
    """
    batches = [keys[start : start + MAX_KEYS] for start in range(0, len(keys), MAX_KEYS)]
    pooled: list[Future[ExperiencesResult] | None] = []
    for batch in batches[1:]:
        try:
            pooled.append(get_pool(question.runtime).submit(upstream.call, question, batch))
        except PoolBusy:
            pooled.append(None)
    for batch, future in zip(batches, [None, *pooled], strict=False):
        try:
            if future is None:
                yield batch, upstream.call(question, batch)
            else:
                yield batch, future.result(question.deadline.remaining())
        except TimeoutError:
            yield DeadlineExceeded("no complete response before the deadline")
        except APIError as error:
            yield error


def follow_up(question: Question, answer: Answer) -> None:
    """Do the work that no page waits for: store, explain and report the answer, and probe MoEngage if that is due."""
    # Only answers are stored, so an error overwrites nothing.
    get_cache(question.runtime).write(question.visitor.digest, answer.learned)
    explain(question.runtime, answer.learned)
    for error in answer.errors:
        # The breaker logs each of its changes itself.
        if not isinstance(error, CircuitOpenError | RateLimitedError):
            log_error(question.runtime, error)
        # Async receivers can't be called from an event loop. A page runs this there if all threads are busy.
        with suppress(RuntimeError):
            signals.fetch_failed.send_robust(sender=Question, error=error, experience_keys=answer.unanswered)
    if any(isinstance(error, CircuitOpenError) for error in answer.errors):
        _probe(question)


def explain(runtime: Runtime, learned: Mapping[str, Experience | None]) -> None:
    """Have the log say why some keys have no experience."""
    if absent := [key for key, experience in learned.items() if experience is None]:
        get_metadata_store(runtime).explain(absent)


def _probe(question: Question) -> None:
    """Make the half-open probe if it is due."""
    runtime, keys = question.runtime, question.keys[:MAX_KEYS]
    if ticket := upstream.get_breaker(runtime).claim_probe():
        probe = question._replace(deadline=Deadline(runtime.settings.deadline))
        try:
            result = upstream.call(probe, keys, ticket)
        except APIError:
            return
        get_cache(runtime).write(question.visitor.digest, {key: result.experiences.get(key) for key in keys})


def log_error(runtime: Runtime, error: APIError) -> None:
    """Log, once for each kind of error, why pages show their defaults."""
    status = getattr(error, "status", None)
    message = "MoEngage gave no experiences (%s: %s), so pages show cached content or their defaults."
    runtime.log_once(("fetch", type(error), status), message, type(error).__name__, error)


def log_bug(runtime: Runtime, error: Exception) -> None:
    """Log an error that this package didn't expect. Without a traceback: its frames hold the visitor."""
    message = "Fetching experiences failed unexpectedly (%s), so pages show their defaults. Please report this."
    runtime.log_once(("bug", type(error)), message, type(error).__name__)

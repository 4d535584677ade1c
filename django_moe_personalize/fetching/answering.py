"""Answering a question: cache → other processes → the vendor, and what is made of it all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future

from django_moe_personalize import signals
from django_moe_personalize.conf import get_settings
from django_moe_personalize.exceptions import APIError, CircuitOpenError, DeadlineExceeded
from django_moe_personalize.fetching import metadata, upstream
from django_moe_personalize.fetching.cache import Known, get_cache
from django_moe_personalize.fetching.shared import claim
from django_moe_personalize.fetching.upstream import Question
from django_moe_personalize.moengage.types import MAX_KEYS, Experience, ExperienceFailure, ExperiencesResult
from django_moe_personalize.resilience import Deadline, PoolBusy
from django_moe_personalize.runtime import log_once
from django_moe_personalize.visitor.gather import Visitor

Experiences = Mapping[str, Experience]

Outcome = tuple[Sequence[str], ExperiencesResult] | APIError
"""What came of one call: the keys it asked for and what they got, or why nothing came."""


class Answer:
    """What is known of the keys asked for; ``errors`` tell why some are ``unanswered``."""

    __slots__ = ("errors", "experiences", "failures", "learned", "unanswered")

    def __init__(self) -> None:
        self.experiences: dict[str, Experience] = {}
        self.failures: list[ExperienceFailure] = []
        self.errors: list[APIError] = []
        self.learned: dict[str, Experience | None] = {}
        self.unanswered: tuple[str, ...] = ()


def pick(answers: Mapping[str, Experience | None], keys: Iterable[str]) -> dict[str, Experience]:
    """Return the experiences of ``keys`` among the answers, without the absent ones."""
    return {key: experience for key in keys if (experience := answers.get(key)) is not None}


def ask(visitor: Visitor, keys: Sequence[str], *, deadline: Deadline) -> Answer:
    """Answer ``keys`` from the cache and, for the rest, from the vendor; stale where the vendor fails.

    The vendor's failures are in ``Answer.errors``. Raises ConfigurationError without credentials.
    """
    found = answer(Question(visitor, tuple(keys), deadline, is_page=False))
    _remember(visitor, found)
    return found


def answer(question: Question, *, publish: Callable[[Experiences], None] | None = None) -> Answer:
    """Answer a question; ``publish`` is given what the cache knows before the vendor is asked."""
    cached = get_cache().read(question.visitor.build_digest(), question.keys)
    if publish is not None:
        publish(pick(cached.answers, question.keys))
    known, missing = look_up(cached)
    if missing and (elsewhere := _wait_for_another_process(question, missing)):
        known = {**known, **elsewhere}
        missing = [key for key in missing if key not in elsewhere]
    return conclude(question, known, _call_in_batches(question, missing))


def look_up(cached: Known) -> tuple[Mapping[str, Experience | None], list[str]]:
    """Return the known answers and the keys to ask MoEngage for: those that are due and that somebody can get."""
    unavailable = metadata.find_unavailable(cached.due)
    known = {**cached.answers, **dict.fromkeys(unavailable)}
    return known, [key for key in cached.due if key not in unavailable]


def conclude(question: Question, known: Mapping[str, Experience | None], outcomes: Iterable[Outcome]) -> Answer:
    """Return the answer that the vendor's outcomes make of what is known."""
    answer = Answer()
    for outcome in outcomes:
        if isinstance(outcome, APIError):
            answer.errors.append(outcome)
            continue
        batch, result = outcome
        answer.learned.update((key, result.experiences.get(key)) for key in batch)
        answer.failures.extend(result.failures)
    known = {**known, **answer.learned}
    answer.unanswered = tuple(key for key in question.keys if key not in known)
    answer.experiences = {key: e for key in question.keys if (e := known.get(key)) is not None}
    return answer


def _wait_for_another_process(question: Question, missing: Sequence[str]) -> Mapping[str, Experience | None]:
    """Return what another process that asks the same at this moment has found; nothing when we are to ask.

    Only where the site's cache is shared: who adds the claim asks, the others look for its answer
    until it is there, the claim is gone, or half the time is over.
    """
    left = question.deadline.remaining() or 0.0
    # Without a TTL nothing is ever fresh that another has found.
    if not get_settings().cache_ttl or claim(question.visitor.build_digest(), missing, left):
        return {}
    until = time.monotonic() + left / 2
    pause = 0.002
    while time.monotonic() < until:
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
        found = get_cache().read(question.visitor.build_digest(), missing)
        if not found.due:
            return {key: found.answers[key] for key in missing}
    return {}


def _call_in_batches(question: Question, keys: Sequence[str]) -> Iterator[Outcome]:
    """Yield an outcome for every MAX_KEYS keys: the first asked here, the others beside it on the pool."""
    batches = [keys[start : start + MAX_KEYS] for start in range(0, len(keys), MAX_KEYS)]
    beside: list[Future[ExperiencesResult] | None] = []
    for batch in batches[1:]:
        try:
            beside.append(upstream.get_pool().submit(upstream.call, question, batch))
        except PoolBusy:
            beside.append(None)
    for batch, future in zip(batches, [None, *beside], strict=False):
        try:
            if future is None:
                yield batch, upstream.call(question, batch)
            else:
                yield batch, future.result(question.deadline.remaining())
        except TimeoutError:
            yield DeadlineExceeded("no whole answer before the deadline")
        except APIError as error:
            yield error


def follow_up(question: Question, answer: Answer) -> None:
    """Remember, report and explain; and probe a vendor whose time in the open breaker is over."""
    _remember(question.visitor, answer)
    explain(answer)
    for problem in answer.errors:
        report(problem, answer.unanswered)
    if any(isinstance(problem, CircuitOpenError) for problem in answer.errors):
        _probe(question)


def explain(answer: Answer) -> None:
    """Have the log say why some keys got nothing."""
    if absent := [key for key, experience in answer.learned.items() if experience is None]:
        metadata.explain(absent)


def _remember(visitor: Visitor, answer: Answer) -> None:
    """Cache what was learned; a failure overwrites nothing."""
    if answer.learned:
        get_cache().write(visitor.build_digest(), answer.learned)


def _probe(question: Question) -> None:
    """Ask once beside the pages, if the breaker wants to know whether the vendor is back."""
    if ticket := upstream.get_breaker().claim_probe():
        keys, deadline = question.keys[:MAX_KEYS], Deadline(get_settings().deadline)
        try:
            result = upstream.call(question._replace(deadline=deadline), keys, ticket)
        except APIError:
            return
        get_cache().write(question.visitor.build_digest(), {key: result.experiences.get(key) for key in keys})


def report(error: APIError, keys: Sequence[str]) -> None:
    """Say that the vendor failed: once a kind in the log, each time in the signal; ``keys`` have no answer."""
    # What opened the breaker was said already, and so was that it opened.
    if not isinstance(error, CircuitOpenError):
        log_error(error)
    signals.fetch_failed.send_robust(sender=Question, error=error, experience_keys=tuple(keys))


def log_error(error: APIError) -> None:
    """Say once a kind why pages show their defaults."""
    status = getattr(error, "status", None)
    log_once(("fetch", type(error), status), "MoEngage gave no experiences (%s: %s).", type(error).__name__, error)

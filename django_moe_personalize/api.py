"""The calls of MoEngage's SDKs without a request: for e-mails, tasks and shells (contract §6).

Each call has an async twin, such as ``afetch_experiences``. A key without an experience is data, in
``failures``. A call to MoEngage that fails raises an APIError.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import sync_to_async
from django.db import close_old_connections
from django.views.decorators.debug import sensitive_variables

from django_moe_personalize import tracking
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.delivery.sending import mark_withdrawal
from django_moe_personalize.exceptions import APIError
from django_moe_personalize.fetching import Answer, Question, resolve
from django_moe_personalize.fetching.cache import get_cache
from django_moe_personalize.fetching.metadata import find_reason, get_metadata_store
from django_moe_personalize.moengage.client import FETCH_FIELDS
from django_moe_personalize.moengage.types import (
    Action,
    DataSource,
    Event,
    Experience,
    ExperienceFailure,
    ExperiencesMetadata,
    ExperiencesResult,
    ExperienceStatus,
    FailureReason,
    Offering,
)
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.visitor import Identity, Visitor

P = ParamSpec("P")
T = TypeVar("T")

API_DEADLINE = 10.0
"""Seconds that a call may take. No page waits for it."""


def fetch_experiences_meta(statuses: Iterable[str | ExperienceStatus] = ()) -> ExperiencesMetadata:
    """Return the experiences that the workspace has, of the given statuses (``"active"``, …) or all.

    Cached for METADATA_TTL seconds. Raises ValueError for an unknown status, and APIError when MoEngage
    doesn't answer.
    """
    wanted = {_read_status(status) for status in statuses}
    if not get_runtime().settings.enabled:
        return ExperiencesMetadata(DataSource.CACHE, ())
    found = get_metadata_store().get(deadline=Deadline(API_DEADLINE))
    return ExperiencesMetadata(found.source, tuple(m for m in found.experiences if not wanted or m.status in wanted))


def _read_status(status: str | ExperienceStatus) -> ExperienceStatus:
    found = ExperienceStatus(status)
    if found is ExperienceStatus.UNKNOWN:
        names = ", ".join(repr(s.value) for s in ExperienceStatus if s is not ExperienceStatus.UNKNOWN)
        raise ValueError(f"{status!r} is not the status of an experience. Use one of {names}.")
    return found


# Django's error reports leave out the arguments.
@sensitive_variables()
def fetch_experience(
    experience_key: str,
    *,
    customer_id: str | None = None,
    user_identifiers: Mapping[str, str] | None = None,
    attributes: Mapping[str, str] | None = None,
) -> Experience | None:
    """Return the customer's experience of this key, or ``None`` if there is none. See fetch_experiences()."""
    answer = _fetch(_read_keys([experience_key]), customer_id, user_identifiers, attributes)
    return None if answer is None else answer.experiences.get(experience_key)


@sensitive_variables()
def fetch_experiences(
    experience_keys: Sequence[str],
    *,
    customer_id: str | None = None,
    user_identifiers: Mapping[str, str] | None = None,
    attributes: Mapping[str, str] | None = None,
) -> ExperiencesResult:
    """Return the customer's experiences of these keys, and for each absent key the reason.

    ``result.experiences`` is a mapping by key, in the order asked for. ``attributes`` are the in-session
    attributes by name. Experiences are cached as a page's are. Raises APIError when MoEngage doesn't answer
    and the cache lacks a key. Raises ValueError for keys that aren't a list of non-empty strings, and for ids
    and attributes that aren't strings.
    """
    keys = _read_keys(experience_keys)
    answer = _fetch(keys, customer_id, user_identifiers, attributes)
    if answer is None:
        failures = (ExperienceFailure(FailureReason.PERSONALIZATION_FAILED, keys),) if keys else ()
        return ExperiencesResult({}, failures)
    return ExperiencesResult(answer.experiences, tuple(_explain(answer, keys)))


def _read_keys(experience_keys: Iterable[str]) -> tuple[str, ...]:
    """Return the keys, each once."""
    keys = [] if isinstance(experience_keys, str) else list(experience_keys)
    if isinstance(experience_keys, str) or not all(isinstance(key, str) and key for key in keys):
        raise ValueError(f'experience_keys must be a list of keys, as in ["hero-banner"], not {experience_keys!r}.')
    return tuple(dict.fromkeys(keys))


@sensitive_variables()
def _fetch(
    keys: tuple[str, ...],
    customer_id: str | None,
    user_identifiers: Mapping[str, str] | None,
    attributes: Mapping[str, str] | None,
) -> Answer | None:
    """Return the answer for these keys; ``None`` without keys, or with ENABLED off."""
    _check_visitor(customer_id, user_identifiers or {}, attributes or {})
    runtime = get_runtime()
    if not keys or not runtime.settings.enabled:
        return None
    visitor = Visitor(Identity(customer_id, dict(user_identifiers or {})), dict(attributes or {}))
    answer = resolve(Question(runtime, visitor, keys, Deadline(API_DEADLINE), is_page=False))
    if answer.learned:
        get_cache(runtime).write(visitor.digest, answer.learned)
    if answer.unanswered:
        raise answer.errors[0]
    return answer


def _check_visitor(customer_id: object, identifiers: Mapping[str, str], attributes: Mapping[str, str]) -> None:
    """Refuse arguments that can't be sent. The message names the argument, never its value."""
    if customer_id is not None and not isinstance(customer_id, str):
        raise ValueError(f"customer_id must be a string, not {type(customer_id).__name__}: write str(…).")
    for what, values in (("user_identifiers", identifiers), ("attributes", attributes)):
        for name, value in values.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise ValueError(f"{what}[{name!r}] must be a string, not {type(value).__name__}: write str(…).")
    if reserved := sorted(FETCH_FIELDS & attributes.keys()):
        raise ValueError(f"An attribute can't be named {' or '.join(reserved)}: that is a field of the call itself.")


def _explain(answer: Answer, keys: Sequence[str]) -> list[ExperienceFailure]:
    """Return the reasons for absent keys: those from MoEngage's response, else those from the metadata."""
    explained = {key for failure in answer.failures for key in failure.experience_keys}
    reasons: dict[FailureReason, list[str]] = {}
    absent = [key for key in keys if key not in answer.experiences and key not in explained]
    if absent:
        try:
            known = get_metadata_store().get(deadline=Deadline(API_DEADLINE))
        except APIError:
            known = None
        for key in absent:
            reason = FailureReason.PERSONALIZATION_FAILED if known is None else find_reason(known, key)
            reasons.setdefault(reason, []).append(key)
    return [*answer.failures, *(ExperienceFailure(reason, tuple(keys)) for reason, keys in reasons.items())]


@sensitive_variables()
def experiences_shown(experiences: Mapping[str, Experience] | Iterable[Experience], *, customer_id: str) -> None:
    """Report that ``customer_id`` was shown these experiences: a result's mapping, or several experiences."""
    # An Experience is a mapping too, of its payload.
    if isinstance(experiences, Experience):
        raise ValueError("experiences must be a mapping or a list of experiences: write [experience].")
    shown = experiences.values() if isinstance(experiences, Mapping) else experiences
    _record(tracking.build_event(Action.SHOWN, experience, _check(customer_id)) for experience in shown)


@sensitive_variables()
def experience_clicked(experience: Experience, *, customer_id: str, element: str = "") -> None:
    """Report a click on ``element`` (``b_id``) of an experience."""
    _record([tracking.build_event(Action.CLICKED, experience, _check(customer_id), element=element)])


@sensitive_variables()
def offerings_shown(offerings: Iterable[Offering], *, customer_id: str) -> None:
    """Report that offerings were shown. A no-op unless OFFERING_EVENTS is on.

    By default an offering's impression is part of its experience's: call experiences_shown() (contract §5).
    """
    _record(tracking.build_offering_impressions(offerings, _check(customer_id)))


@sensitive_variables()
def offering_clicked(experience: Experience, offering: Offering, *, customer_id: str) -> None:
    """Report a click on an offering. It counts as a click on its experience too, so don't report that as well."""
    _record([tracking.build_event(Action.CLICKED, experience, _check(customer_id), offering=offering)])


@sensitive_variables()
def erase(*, customer_id: str) -> int:
    """Make sure that no event of ``customer_id`` recorded until now is sent; return how many events were erased.

    Call it when a customer withdraws consent or asks to be forgotten. Events that this process or the outbox
    holds are erased at once. Events in the memory of other processes or in a queue are dropped when they would
    be sent, if the processes share the site's cache. A call that is under way can't be taken back.
    """
    mark_withdrawal(_check(customer_id))
    return get_delivery().erase(customer_id)


def _check(customer_id: str) -> str:
    if not isinstance(customer_id, str) or not customer_id:
        raise ValueError("customer_id must be a non-empty string: an event without a customer can't be counted.")
    return customer_id


def _record(events: Iterable[Event | None]) -> None:
    # A list first: building an event checks the arguments, also while ENABLED is off.
    found = [event for event in events if event is not None]
    if get_runtime().settings.enabled:
        tracking.record(found)


def _build_twin(call: Callable[P, T], *, records: bool = False) -> Callable[P, Coroutine[Any, Any, T]]:
    """Return the async twin of ``call``: the same in a thread, so that it never blocks the event loop."""

    @sensitive_variables()
    async def twin(*args: P.args, **kwargs: P.kwargs) -> T:
        # An outbox is written on the connection of the site's own synchronous code, so in the same transaction.
        thread_sensitive = records and get_delivery().uses_database

        @sensitive_variables()
        def run() -> T:
            try:
                return call(*args, **kwargs)
            finally:
                if not thread_sensitive:
                    # The site's cache may be its database. No request ends in this thread and closes connections.
                    close_old_connections()

        return await sync_to_async(run, thread_sensitive=thread_sensitive)()

    twin.__name__ = twin.__qualname__ = f"a{call.__name__}"
    twin.__signature__ = inspect.signature(call)  # type: ignore[attr-defined]
    twin.__doc__ = f"See {call.__name__}()."
    return twin


afetch_experiences_meta = _build_twin(fetch_experiences_meta)
afetch_experience = _build_twin(fetch_experience)
afetch_experiences = _build_twin(fetch_experiences)
aexperiences_shown = _build_twin(experiences_shown, records=True)
aexperience_clicked = _build_twin(experience_clicked, records=True)
aofferings_shown = _build_twin(offerings_shown, records=True)
aoffering_clicked = _build_twin(offering_clicked, records=True)
aerase = _build_twin(erase, records=True)

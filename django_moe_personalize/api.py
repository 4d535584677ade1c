"""The calls of MoEngage's SDKs, for code without a request: e-mails, tasks and shells (contract §6).

``workspace`` is the name of one of WORKSPACES. Without it, a call during a request works for the workspace of the
request, and any other call for the default one. An unknown name raises ConfigurationError.

Each function has an async twin, such as ``afetch_experiences``. If a call to MoEngage fails, the function raises an
APIError. A key without an experience isn't an error: its reason is in ``failures``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
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
from django_moe_personalize.fetching.switch import get_switch
from django_moe_personalize.fetching.switch_store import ALL
from django_moe_personalize.moengage.data_api import build_conversion
from django_moe_personalize.moengage.frames import FETCH_FIELDS
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
from django_moe_personalize.runtime import get_runtime, use_workspace
from django_moe_personalize.visitor import Identity, Visitor
from django_moe_personalize.visitor.identity import warn_of_forbidden_id

P = ParamSpec("P")
T = TypeVar("T")

API_DEADLINE = 10.0
"""The deadline of a call in seconds. It's long because no page waits for the call."""


def _in_workspace(call: Callable[P, T]) -> Callable[P, T]:
    """Let ``call()`` work for the workspace in its argument ``workspace``, and hide its arguments in error reports."""
    hidden = sensitive_variables()(call)

    @functools.wraps(call)
    @sensitive_variables()
    def call_in_workspace(*args: P.args, **kwargs: P.kwargs) -> T:
        workspace: Any = kwargs.get("workspace")
        with use_workspace(workspace):
            return hidden(*args, **kwargs)

    return call_in_workspace


@_in_workspace
def fetch_experiences_meta(
    statuses: Iterable[str | ExperienceStatus] = (), *, workspace: str | None = None
) -> ExperiencesMetadata:
    """Return the metadata of the workspace's experiences: of the given statuses (``"active"``, …), or of all.

    The metadata is cached for METADATA_TTL seconds. Raises ValueError for an unknown status, and APIError if
    MoEngage doesn't answer.
    """
    wanted = {ExperienceStatus(status): status for status in statuses}
    if ExperienceStatus.UNKNOWN in wanted:
        names = ", ".join(repr(status.value) for status in ExperienceStatus if status is not ExperienceStatus.UNKNOWN)
        status = wanted[ExperienceStatus.UNKNOWN]
        raise ValueError(f"{status!r} is not the status of an experience. Use one of {names}.")
    if not get_runtime().settings.enabled or get_switch().is_off(ALL):
        return ExperiencesMetadata(DataSource.CACHE, ())
    found = get_metadata_store().get(deadline=Deadline(API_DEADLINE))
    return ExperiencesMetadata(found.source, tuple(m for m in found.experiences if not wanted or m.status in wanted))


@_in_workspace
def fetch_experience(
    experience_key: str,
    *,
    customer_id: str | None = None,
    user_identifiers: Mapping[str, str] | None = None,
    attributes: Mapping[str, str] | None = None,
    workspace: str | None = None,
) -> Experience | None:
    """Return the customer's experience of this key, or ``None`` for no experience. See fetch_experiences()."""
    answer = _fetch(_read_keys([experience_key]), customer_id, user_identifiers, attributes)
    return None if answer is None else answer.experiences.get(experience_key)


@_in_workspace
def fetch_experiences(
    experience_keys: Sequence[str],
    *,
    customer_id: str | None = None,
    user_identifiers: Mapping[str, str] | None = None,
    attributes: Mapping[str, str] | None = None,
    workspace: str | None = None,
) -> ExperiencesResult:
    """Return the customer's experiences of these keys, and a reason for each absent key.

    ``result.experiences`` is a mapping by key, in the order of the keys. ``attributes`` are the in-session
    attributes by name. The cache is the same as for pages. Raises APIError if MoEngage doesn't answer and the cache
    lacks a key. Raises ValueError if a key is empty or not a string, or if another value isn't a string.
    """
    keys = _read_keys(experience_keys)
    answer = _fetch(keys, customer_id, user_identifiers, attributes)
    if answer is None:
        failures = (ExperienceFailure(FailureReason.PERSONALIZATION_FAILED, keys),) if keys else ()
        return ExperiencesResult({}, failures)
    return ExperiencesResult(answer.experiences, tuple(_explain(answer, keys)))


def _read_keys(experience_keys: Iterable[str]) -> tuple[str, ...]:
    """Return each key once. Raises ValueError for wrong keys."""
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
    """Return the answer for these keys, or ``None`` without keys or with ENABLED off."""
    _check_visitor(customer_id, user_identifiers or {}, attributes or {})
    runtime = get_runtime()
    if not keys or not runtime.settings.enabled:
        return None
    visitor = Visitor(Identity(customer_id, dict(user_identifiers or {})), dict(attributes or {}))
    with runtime.use():
        answer = resolve(Question(runtime, visitor, keys, Deadline(API_DEADLINE), is_page=False))
        get_cache(runtime).write(visitor.digest, answer.learned)
    if answer.unanswered:
        raise answer.errors[0]
    return answer


def _check_visitor(customer_id: object, identifiers: Mapping[str, str], attributes: Mapping[str, str]) -> None:
    """Raise ValueError for arguments of a wrong type. The message names the argument, never its value."""
    if customer_id is not None and not isinstance(customer_id, str):
        raise ValueError(f"customer_id must be a string, not {type(customer_id).__name__}: write str(…).")
    if customer_id:
        warn_of_forbidden_id(customer_id, "django_moe_personalize.api")
    for what, values in (("user_identifiers", identifiers), ("attributes", attributes)):
        for name, value in values.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise ValueError(f"{what}[{name!r}] must be a string, not {type(value).__name__}: write str(…).")
    if reserved := sorted(FETCH_FIELDS & attributes.keys()):
        raise ValueError(f"An attribute can't be named {' or '.join(reserved)}: that is a field of the call itself.")


def _explain(answer: Answer, keys: Sequence[str]) -> list[ExperienceFailure]:
    """Return the reasons for absent keys, from MoEngage's response or else from the metadata."""
    explained = {key for failure in answer.failures for key in failure.experience_keys}
    reasons: dict[FailureReason, list[str]] = {}
    absent = [key for key in keys if key not in answer.experiences and key not in explained]
    switched_on = get_switch().leave_out(absent)
    if off := tuple(key for key in absent if key not in switched_on):
        reasons[FailureReason.PERSONALIZATION_FAILED] = [*off]
    if switched_on:
        try:
            known = get_metadata_store().get(deadline=Deadline(API_DEADLINE))
        except APIError:
            known = None
        for key in switched_on:
            reason = FailureReason.PERSONALIZATION_FAILED if known is None else find_reason(known, key)
            reasons.setdefault(reason, []).append(key)
    return [*answer.failures, *(ExperienceFailure(reason, tuple(keys)) for reason, keys in reasons.items())]


@_in_workspace
def experiences_shown(
    experiences: Mapping[str, Experience] | Iterable[Experience], *, customer_id: str, workspace: str | None = None
) -> None:
    """Report that ``customer_id`` saw these experiences: ``result.experiences``, or a list of experiences."""
    # An Experience is a mapping too, so this mistake would go unnoticed.
    if isinstance(experiences, Experience):
        raise ValueError("experiences must be a mapping or a list of experiences: write [experience].")
    shown = experiences.values() if isinstance(experiences, Mapping) else experiences
    _record(tracking.build_event(Action.SHOWN, experience, _check(customer_id)) for experience in shown)


@_in_workspace
def experience_clicked(
    experience: Experience, *, customer_id: str, element: str = "", workspace: str | None = None
) -> None:
    """Report a click on ``element`` (``b_id``) of an experience."""
    _record([tracking.build_event(Action.CLICKED, experience, _check(customer_id), element=element)])


@_in_workspace
def offerings_shown(offerings: Iterable[Offering], *, customer_id: str, workspace: str | None = None) -> None:
    """Report that ``customer_id`` saw these offerings. A no-op unless OFFERING_EVENTS is on.

    By default, the impression of an experience covers its offerings: call experiences_shown() (contract §5).
    """
    _record(tracking.build_offering_impressions(offerings, _check(customer_id)))


@_in_workspace
def offering_clicked(
    experience: Experience, offering: Offering, *, customer_id: str, workspace: str | None = None
) -> None:
    """Report a click on an offering. MoEngage counts a click on the experience too, so don't report another click."""
    _record([tracking.build_event(Action.CLICKED, experience, _check(customer_id), offering=offering)])


@_in_workspace
def track_event(
    customer_id: str,
    name: str,
    attributes: Mapping[str, Any] | None = None,
    *,
    at: datetime | None = None,
    workspace: str | None = None,
) -> None:
    """Report an event of your own to MoEngage's Data API: ``track_event("user-1", "Order placed", {"total": 120})``.

    ``at`` is an aware datetime, by default now. ``attributes`` are JSON values, Decimals, dates and datetimes. Raises
    ValueError for an event that MoEngage would refuse: a name that begins with ``moe_``, a time in the future, a
    customer id that MoEngage forbids, or more than 128 KB. Needs the setting DATA_API_KEY.
    """
    if not isinstance(customer_id, str) or not customer_id:
        raise ValueError("customer_id must be a non-empty string: an event without a customer can't be counted.")
    conversion = build_conversion(customer_id, name, attributes, at=at)
    if get_runtime().settings.enabled:
        tracking.record_conversions([conversion])


@_in_workspace
def erase(*, customer_id: str, workspace: str | None = None) -> int:
    """Erase the recorded events of ``customer_id`` that haven't been sent, and return the number of erased events.

    Call this function when a customer withdraws consent or asks to be forgotten. It erases the events in this
    process and in the outbox immediately. If processes share the site's cache, other processes and queues drop their
    events later, instead of sending them. Until then, a message in a queue still has the customer id. A call to
    MoEngage that has started can't be stopped.
    """
    mark_withdrawal(_check(customer_id))
    return get_delivery().erase(customer_id)


def _check(customer_id: str) -> str:
    if not isinstance(customer_id, str) or not customer_id:
        raise ValueError("customer_id must be a non-empty string: an event without a customer can't be counted.")
    warn_of_forbidden_id(customer_id, "django_moe_personalize.api")
    return customer_id


def _record(events: Iterable[Event | None]) -> None:
    # Build all events, even if ENABLED is off, because that checks the arguments.
    found = [event for event in events if event is not None]
    if found and get_runtime().settings.enabled and not tracking.is_muted.get():
        tracking.record(found)


def _build_twin(call: Callable[P, T], *, records: bool = False) -> Callable[P, Coroutine[Any, Any, T]]:
    """Return the async twin of ``call``. The twin runs ``call`` in a thread and never blocks the event loop."""

    @sensitive_variables()
    async def twin(*args: P.args, **kwargs: P.kwargs) -> T:
        # The outbox needs the database connection of the site's sync code, to write in the same transaction.
        workspace: Any = kwargs.get("workspace")
        with use_workspace(workspace):
            thread_sensitive = records and get_delivery().uses_database

        @sensitive_variables()
        def run() -> T:
            try:
                return call(*args, **kwargs)
            finally:
                if not thread_sensitive:
                    # The site's cache may use the database. Django closes connections only at the end of a request.
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
atrack_event = _build_twin(track_event, records=True)
aerase = _build_twin(erase, records=True)

"""The calls of the vendor's SDKs without a request: for mails, tasks and shells (contract §6).

What a visitor does not get is data, in ``failures``; what is wrong with the call to MoEngage is an
exception of the tree in ``exceptions.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from django.views.decorators.debug import sensitive_variables

from django_moe_personalize import tracking
from django_moe_personalize.conf import get_settings
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.delivery.erasure import mark_withdrawal
from django_moe_personalize.exceptions import APIError
from django_moe_personalize.fetching import metadata
from django_moe_personalize.fetching.answering import Answer, ask
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
from django_moe_personalize.visitor.gather import Visitor
from django_moe_personalize.visitor.identity import Identity

API_DEADLINE = 10.0
"""Seconds a call may take; no page waits for it."""


def fetch_experiences_meta(statuses: Iterable[str | ExperienceStatus] = ()) -> ExperiencesMetadata:
    """Return which experiences the workspace has, of ``statuses`` (``"active"``, …) or all.

    Cached for METADATA_TTL seconds. Raises ValueError for an unknown status and APIError when the
    vendor does not answer.
    """
    wanted = {_read_status(status) for status in statuses}
    if not get_settings().enabled:
        return ExperiencesMetadata(DataSource.CACHE, ())
    found = metadata.get_metadata(deadline=Deadline(API_DEADLINE))
    return ExperiencesMetadata(found.source, tuple(m for m in found.experiences if not wanted or m.status in wanted))


def _read_status(status: str | ExperienceStatus) -> ExperienceStatus:
    found = ExperienceStatus(status)
    if found is ExperienceStatus.UNKNOWN:
        names = ", ".join(repr(s.value) for s in ExperienceStatus if s is not ExperienceStatus.UNKNOWN)
        raise ValueError(f"{status!r} is no experience status; the statuses are {names}.")
    return found


# Django's error reports do not show what it is called with.
@sensitive_variables()
def fetch_experience(
    experience_key: str,
    *,
    customer_id: str | None = None,
    user_identifiers: Mapping[str, str] | None = None,
    attributes: Mapping[str, str] | None = None,
) -> ExperiencesResult:
    """See fetch_experiences()."""
    return fetch_experiences(
        [experience_key], customer_id=customer_id, user_identifiers=user_identifiers, attributes=attributes
    )


@sensitive_variables()
def fetch_experiences(
    experience_keys: Sequence[str],
    *,
    customer_id: str | None = None,
    user_identifiers: Mapping[str, str] | None = None,
    attributes: Mapping[str, str] | None = None,
) -> ExperiencesResult:
    """Return the customer's experiences of these keys, and for the others the reason they are absent.

    ``attributes`` are the in-session attributes, strings by name. Answers are cached as a page's
    are. Raises APIError when the vendor gave no answer for some keys and none is cached, and
    ValueError for keys that are not a list of non-empty strings, and for ids and attributes that
    are no strings.
    """
    if isinstance(experience_keys, str) or not all(isinstance(key, str) and key for key in experience_keys):
        raise ValueError(f'experience_keys is a list of keys, as in ["hero-banner"], not {experience_keys!r}')
    _check_visitor(customer_id, user_identifiers or {}, attributes or {})
    keys = tuple(dict.fromkeys(experience_keys))
    if not keys:
        return ExperiencesResult()
    if not get_settings().enabled:
        return ExperiencesResult({}, (ExperienceFailure(FailureReason.PERSONALIZATION_FAILED, keys),))
    visitor = Visitor(Identity(customer_id, dict(user_identifiers or {})), dict(attributes or {}))
    answer = ask(visitor, keys, deadline=Deadline(API_DEADLINE))
    if answer.unanswered:
        raise answer.errors[0]
    return ExperiencesResult(answer.experiences, tuple(_explain(answer, keys)))


def _check_visitor(customer_id: object, identifiers: Mapping[str, str], attributes: Mapping[str, str]) -> None:
    """Refuse what the wire cannot carry; the message names what is wrong and holds no value."""
    if customer_id is not None and not isinstance(customer_id, str):
        raise ValueError(f"customer_id is a string, not {type(customer_id).__name__}: write str(…)")
    for what, values in (("user_identifiers", identifiers), ("attributes", attributes)):
        for name, value in values.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise ValueError(f"{what}[{name!r}] is a string, not {type(value).__name__}: write str(…)")
    if reserved := sorted(FETCH_FIELDS & attributes.keys()):
        raise ValueError(f"attributes cannot be named {', '.join(reserved)}: the call itself has fields of that name")


def _explain(answer: Answer, keys: Sequence[str]) -> list[ExperienceFailure]:
    """Return why keys are absent: the server's own reasons where it sends them, else from the metadata."""
    explained = {key for failure in answer.failures for key in failure.experience_keys}
    reasons: dict[FailureReason, list[str]] = {}
    absent = [key for key in keys if key not in answer.experiences and key not in explained]
    if absent:
        try:
            known = metadata.get_metadata(deadline=Deadline(API_DEADLINE))
        except APIError:
            known = None
        for key in absent:
            reason = FailureReason.PERSONALIZATION_FAILED if known is None else metadata.find_reason(known, key)
            reasons.setdefault(reason, []).append(key)
    return [*answer.failures, *(ExperienceFailure(reason, tuple(keys)) for reason, keys in reasons.items())]


@sensitive_variables()
def experiences_shown(experiences: Mapping[str, Experience] | Iterable[Experience], *, customer_id: str) -> None:
    """Report that ``customer_id`` was shown these experiences: a result's mapping, or experiences."""
    shown = experiences.values() if isinstance(experiences, Mapping) else experiences
    events = [tracking.build_event(Action.SHOWN, experience, _check(customer_id)) for experience in shown]
    _record(events)


@sensitive_variables()
def experience_clicked(experience: Experience, *, customer_id: str, element: str = "") -> None:
    """Report a click on ``element`` (``b_id``) of an experience."""
    _record([tracking.build_event(Action.CLICKED, experience, _check(customer_id), element=element)])


@sensitive_variables()
def offerings_shown(offerings: Iterable[Offering], *, customer_id: str) -> None:
    """Report that offerings were shown, where OFFERING_EVENTS is on; else there is nothing to report.

    By default an offering's impression rides on its experience's: ``experiences_shown`` (contract §5).
    """
    _record(tracking.build_offering_impressions(offerings, _check(customer_id)))


@sensitive_variables()
def offering_clicked(experience: Experience, offering: Offering, *, customer_id: str) -> None:
    """Report a click on an offering; it is its experience's click too, so report nothing besides."""
    _record([tracking.build_event(Action.CLICKED, experience, _check(customer_id), offering=offering)])


@sensitive_variables()
def erase(*, customer_id: str) -> int:
    """Let nothing be sent that was recorded of ``customer_id`` until now, and return how many events were erased.

    For whoever takes a consent back or asks to be forgotten. What this process or the outbox holds
    is erased at once; the rest, in the memory of other processes or in a queue, is dropped when it
    would be sent, where the site's cache is shared. A call under way cannot be taken back.
    """
    mark_withdrawal(_check(customer_id))
    return get_delivery().erase(customer_id)


def _check(customer_id: str) -> str:
    if not isinstance(customer_id, str) or not customer_id:
        raise ValueError("customer_id is a non-empty string: events without a customer cannot be counted")
    return customer_id


def _record(events: Iterable[Event | None]) -> None:
    if get_settings().enabled:
        tracking.record([event for event in events if event is not None])

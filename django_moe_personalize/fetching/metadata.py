"""Which experiences the workspace has, and from that why a key is absent (contract §3 and §6).

Never asked for on a page's path: a page that got no experience has it explained in the background,
and once the metadata is known, keys that nobody can get are not asked for any more.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import NamedTuple

from django_moe_personalize.client import get_client
from django_moe_personalize.conf import get_settings
from django_moe_personalize.exceptions import APIError
from django_moe_personalize.fetching.shared import build_key, get_many, set_many
from django_moe_personalize.moengage.client import PersonalizeClient
from django_moe_personalize.moengage.types import (
    DataSource,
    ExperienceMeta,
    ExperiencesMetadata,
    ExperienceStatus,
    FailureReason,
)
from django_moe_personalize.resilience import Deadline, WorkerPool
from django_moe_personalize.runtime import Runtime, log_once, part

METADATA_DEADLINE = 10.0
"""Seconds."""

RETRY_SECONDS = 60.0
"""How long nothing is explained after metadata could not be had: a failing vendor has enough to do."""


class _Known(NamedTuple):
    """What this process knows of the workspace of ``client``, until a moment of the monotonic clock."""

    client: PersonalizeClient
    statuses: Mapping[str, ExperienceStatus]
    until: float


class _State:
    known: _Known | None = None
    not_before = float("-inf")


@part
def _get_state(runtime: Runtime) -> _State:
    return _State()


@part
def get_pool(runtime: Runtime) -> WorkerPool:
    """Return the one thread that explains; a page's fetches have their own."""
    return WorkerPool(1, name="moe-personalize-metadata")


def get_metadata(*, deadline: Deadline) -> ExperiencesMetadata:
    """Return all experiences of the workspace, asked for about once in ``METADATA_TTL`` seconds.

    Raises APIError when they are not cached and the vendor does not give them.
    """
    settings, name = get_settings(), build_key("metadata")
    metadata = _read_rows(get_many([name]).get(name))
    if metadata is None:
        metadata = get_client().fetch_metadata(deadline=deadline)
        rows = [(m.experience_key, m.experience_name, m.status.value) for m in metadata.experiences]
        set_many({name: rows}, timeout=settings.metadata_ttl)
    statuses = {meta.experience_key: meta.status for meta in metadata.experiences}
    _get_state().known = _Known(get_client(), statuses, time.monotonic() + settings.metadata_ttl)
    return metadata


def _read_rows(rows: object) -> ExperiencesMetadata | None:
    """Return what get_metadata() stored; what is not ours is a miss."""
    if not isinstance(rows, list):
        return None
    try:
        experiences = tuple(ExperienceMeta(key, title, ExperienceStatus(status)) for key, title, status in rows)
    except (TypeError, ValueError):
        return None
    return ExperiencesMetadata(DataSource.CACHE, experiences)


def find_reason(metadata: ExperiencesMetadata, experience_key: str) -> FailureReason:
    """Return why an experience that the vendor left out is absent, as the metadata tells (contract §6)."""
    statuses = {meta.experience_key: meta.status for meta in metadata.experiences}
    return _find_reason(statuses, experience_key)


def _find_reason(statuses: Mapping[str, ExperienceStatus], experience_key: str) -> FailureReason:
    status = statuses.get(experience_key)
    if status is None:
        return FailureReason.INVALID_EXPERIENCE_KEY
    if status is ExperienceStatus.ACTIVE:
        return FailureReason.USER_NOT_IN_SEGMENT
    return FailureReason.EXPERIENCE_NOT_ACTIVE


def find_unavailable(experience_keys: Iterable[str]) -> frozenset[str]:
    """Return those keys that nobody can get as far as this process knows; without any call, in microseconds.

    A key that becomes active is asked for again METADATA_TTL seconds later at most.
    """
    known = _get_state().known
    if known is None or known.until < time.monotonic() or known.client is not get_client():
        return frozenset()
    return frozenset(
        key for key in experience_keys if _find_reason(known.statuses, key) is not FailureReason.USER_NOT_IN_SEGMENT
    )


def explain(experience_keys: Iterable[str]) -> None:
    """Say in the log, once a key, why nobody can get it; in the background, never raises."""
    if time.monotonic() >= _get_state().not_before:
        # If one question is under way: what it does not explain, the next page's will.
        get_pool().offer(_explain, tuple(experience_keys))


def _explain(experience_keys: Iterable[str]) -> None:
    try:
        statuses = {m.experience_key: m.status for m in get_metadata(deadline=Deadline(METADATA_DEADLINE)).experiences}
    except APIError:
        _get_state().not_before = time.monotonic() + RETRY_SECONDS
        return
    for key in experience_keys:
        reason = _find_reason(statuses, key)
        if reason is FailureReason.INVALID_EXPERIENCE_KEY:
            near = get_close_matches(key, statuses, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            log_once(("absent", key), "Experience key %r is not in the workspace; its default is shown.%s", key, hint)
        elif reason is FailureReason.EXPERIENCE_NOT_ACTIVE:
            log_once(("absent", key), "Experience %r is paused or scheduled; its default is shown.", key)

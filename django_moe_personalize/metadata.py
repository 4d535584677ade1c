"""Which experiences the workspace has, and from that why a key is absent (contract §3 and §6)."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from django_moe_personalize import cache
from django_moe_personalize.callables import log_once
from django_moe_personalize.conf import get_settings
from django_moe_personalize.connection import get_client
from django_moe_personalize.exceptions import APIError
from django_moe_personalize.moengage.types import (
    DataSource,
    ExperienceMeta,
    ExperiencesMetadata,
    ExperienceStatus,
    FailureReason,
)
from django_moe_personalize.resilience import Deadline

METADATA_DEADLINE = 10.0
"""Seconds; metadata is never asked for on a page's path."""


def get_metadata(*, deadline: Deadline) -> ExperiencesMetadata:
    """Return all experiences of the workspace, asked for about once in ``METADATA_TTL`` seconds.

    Raises APIError when they are not cached and the vendor does not give them.
    """
    name = cache.build_key("metadata")
    rows = cache.get_many([name]).get(name)
    if rows is not None:
        experiences = tuple(ExperienceMeta(key, title, ExperienceStatus(status)) for key, title, status in rows)
        return ExperiencesMetadata(DataSource.CACHE, experiences)
    metadata = get_client().fetch_metadata(deadline=deadline)
    rows = [(m.experience_key, m.experience_name, m.status.value) for m in metadata.experiences]
    cache.set_many({name: rows}, timeout=get_settings().metadata_ttl)
    return metadata


def find_reason(metadata: ExperiencesMetadata, experience_key: str) -> FailureReason:
    """Return why an experience that the vendor left out is absent, as the metadata tells (contract §6)."""
    status = next((m.status for m in metadata.experiences if m.experience_key == experience_key), None)
    if status is None:
        return FailureReason.INVALID_EXPERIENCE_KEY
    if status is ExperienceStatus.ACTIVE:
        return FailureReason.USER_NOT_IN_SEGMENT
    return FailureReason.EXPERIENCE_NOT_ACTIVE


def log_absent(experience_keys: Iterable[str]) -> None:
    """Say once a key why nobody can get it: unknown or not active. Not for a page's path; never raises."""
    try:
        metadata = get_metadata(deadline=Deadline(METADATA_DEADLINE))
    except APIError:
        return
    known = [m.experience_key for m in metadata.experiences]
    for key in experience_keys:
        reason = find_reason(metadata, key)
        if reason is FailureReason.INVALID_EXPERIENCE_KEY:
            near = get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            log_once(("absent", key), "Experience key %r is not in the workspace; its default is shown.%s", key, hint)
        elif reason is FailureReason.EXPERIENCE_NOT_ACTIVE:
            log_once(("absent", key), "Experience %r is paused or scheduled; its default is shown.", key)

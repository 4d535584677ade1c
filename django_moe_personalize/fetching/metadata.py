"""The metadata lists the workspace's experiences, and so tells why a key has no experience (contract §3 and §6).

No page waits for the metadata. If a page gets no experience for a key, the background thread reads the metadata
and logs the reason. From then on, pages don't ask for keys that no visitor can get.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches

from django_moe_personalize.client import get_client, get_engine
from django_moe_personalize.exceptions import APIError
from django_moe_personalize.fetching.cache import Known
from django_moe_personalize.fetching.shared import build_key, get_many, set_many
from django_moe_personalize.fetching.switch import get_switch
from django_moe_personalize.fetching.switch_store import ALL
from django_moe_personalize.fetching.upstream import get_background
from django_moe_personalize.moengage.types import (
    DataSource,
    ExperienceMeta,
    ExperiencesMetadata,
    ExperienceStatus,
    FailureReason,
)
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import Runtime, part

METADATA_DEADLINE = 10.0
"""Seconds that the background thread may take to read the metadata."""

RETRY_SECONDS = 60.0
"""How long this process doesn't read the metadata after a failed attempt, because MoEngage may be overloaded."""

MAX_COMPARED = 500
"""The most keys among which the log looks for the key that was meant. To compare 2,600 keys takes 40 ms."""


class MetadataStore:
    """The metadata of a workspace, in this process and in the site's cache."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._statuses: Mapping[str, ExperienceStatus] = {}
        self._experiences: Sequence[ExperienceMeta] = ()
        self._until = self._not_before = float("-inf")

    def get(self, *, deadline: Deadline) -> ExperiencesMetadata:
        """Return the metadata of all experiences, from the site's cache or else from MoEngage. Raises APIError."""
        ttl = self._runtime.settings.metadata_ttl
        with self._runtime.use():
            name = build_key("metadata")
            metadata = _read_rows(get_many([name]).get(name))
            if metadata is None:
                metadata = get_client(self._runtime).fetch_metadata(deadline=deadline)
                # The sandbox in this process answers at once, and its workspace file may change.
                ttl = ttl if get_engine.find(self._runtime) is None else 0
                rows = [(m.experience_key, m.experience_name, m.status.value) for m in metadata.experiences]
                set_many({name: rows}, timeout=ttl)
        self._statuses = {meta.experience_key: meta.status for meta in metadata.experiences}
        self._experiences = metadata.experiences
        self._until = time.monotonic() + ttl
        return metadata

    def find_unknown(self, experience_keys: Iterable[str]) -> str:
        """Say which of the keys find_known_keys() doesn't have, with near matches, or ``""``."""
        known, told = self.find_known_keys(), []
        for key in [key for key in experience_keys if known and key not in known]:
            near = [repr(each) for each in get_close_matches(key, [*known][:MAX_COMPARED])]
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            told.append(f"The workspace has no experience {key!r}.{hint}")
        return " ".join(told)

    def find_known_keys(self) -> Collection[str]:
        """Return the keys that the sandbox, this process or the site's cache knows. Never calls MoEngage."""
        if (engine := get_engine(self._runtime)) is not None:
            return engine.workspace.definitions
        if self.statuses is not None:
            return self._statuses
        with self._runtime.use():
            name = build_key("metadata")
            metadata = _read_rows(get_many([name]).get(name))
        return [] if metadata is None else [each.experience_key for each in metadata.experiences]

    @property
    def statuses(self) -> Mapping[str, ExperienceStatus] | None:
        """The statuses by key, or ``None`` if this process doesn't know them or if they are too old. Does no I/O."""
        return self._statuses if self._until >= time.monotonic() else None

    def list_known(self) -> Sequence[ExperienceMeta]:
        """Return the experiences that this process knows. If they are old, read them again in the background.

        Does no I/O in the caller's thread. Before the first answer of MoEngage, the list is empty.
        """
        if self._until < time.monotonic():
            self.explain(())
        return self._experiences

    def find_unavailable(self, experience_keys: Iterable[str]) -> frozenset[str]:
        """Return the keys that no visitor can get, as far as this process knows. Does no I/O.

        If an experience becomes active, pages ask for its key again after at most METADATA_TTL seconds.
        """
        if self._until < time.monotonic():
            return frozenset()
        active = ExperienceStatus.ACTIVE
        return frozenset([key for key in experience_keys if self._statuses.get(key) is not active])

    def leave_out_unavailable(self, known: Known) -> Known:
        """Return the known answers, and the due keys without those that no visitor can get."""
        if not (unavailable := self.find_unavailable(known.due)):
            return known
        answers = {**known.answers, **dict.fromkeys(unavailable)}
        return Known(answers, tuple(key for key in known.due if key not in unavailable))

    def explain(self, experience_keys: Iterable[str]) -> None:
        """Log in the background, once for each key, why no visitor can get the experience. Never raises."""
        if time.monotonic() >= self._not_before and not get_switch(self._runtime).is_off(ALL):
            # If the background thread is busy, the next page without an experience tries again.
            get_background(self._runtime).offer(self._explain, tuple(experience_keys))

    def _explain(self, experience_keys: tuple[str, ...]) -> None:
        try:
            metadata = self.get(deadline=Deadline(METADATA_DEADLINE))
        except APIError:
            self._not_before = time.monotonic() + RETRY_SECONDS
            return
        for key in experience_keys:
            reason = find_reason(metadata, key)
            if reason is FailureReason.INVALID_EXPERIENCE_KEY:
                near = get_close_matches(key, [*self._statuses][:MAX_COMPARED], n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                message = "The workspace has no experience %r, so pages show the default.%s"
                self._runtime.log_once(("absent", key), message, key, hint)
            elif reason is FailureReason.EXPERIENCE_NOT_ACTIVE:
                message = "Experience %r is paused or scheduled, so pages show the default."
                self._runtime.log_once(("absent", key), message, key)


@part
def get_metadata_store(runtime: Runtime) -> MetadataStore:
    """Return the metadata of the workspace."""
    return MetadataStore(runtime)


def _read_rows(rows: object) -> ExperiencesMetadata | None:
    """Return the metadata that get() stored, or ``None`` for a cache entry of another shape."""
    if not isinstance(rows, list):
        return None
    try:
        experiences = tuple(ExperienceMeta(key, title, ExperienceStatus(status)) for key, title, status in rows)
    except (TypeError, ValueError):
        return None
    return ExperiencesMetadata(DataSource.CACHE, experiences)


def find_reason(metadata: ExperiencesMetadata, experience_key: str) -> FailureReason:
    """Return the reason, according to the metadata, why MoEngage returned no experience (contract §6)."""
    for meta in metadata.experiences:
        if meta.experience_key == experience_key:
            is_active = meta.status is ExperienceStatus.ACTIVE
            return FailureReason.USER_NOT_IN_SEGMENT if is_active else FailureReason.EXPERIENCE_NOT_ACTIVE
    return FailureReason.INVALID_EXPERIENCE_KEY

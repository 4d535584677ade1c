"""Keys, freshness and stale answers of experiences: this process's memory above the site's Django cache.

A body, what an experience says, is stored once under a hash of its content. A visitor is one short
text: for each experience, when it was stored and which body, present or absent. A cache that fails,
or that holds what is not ours, is a miss.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

from django.conf import settings as django_settings
from django.core.cache import caches

from django_moe_personalize.conf import Settings, get_settings
from django_moe_personalize.digest import build_digest
from django_moe_personalize.fetching.local_cache import (
    NAME_BYTES,
    REFERENCE_BYTES,
    Body,
    CachedExperience,
    LocalCache,
    Record,
    Span,
    build_experience,
    unfold,
)
from django_moe_personalize.moengage.frozen import freeze
from django_moe_personalize.moengage.types import Experience
from django_moe_personalize.runtime import Runtime, log_once, part

__all__ = ["CachedExperience", "ExperienceCache", "build_digest", "build_key", "get_many", "set_many"]

CACHE_FORMAT: Final = 2
"""Raised when a stored value changes shape; a release that keeps it empties no site's cache."""

MAX_SKEW: Final = 5_000
"""Milliseconds by which the clocks of a site's machines may differ. What was stored later than that
from now was stored before this clock was set back, nobody knows how long ago: a miss."""

TIME_BYTES: Final = 6
HEAD_BYTES: Final = 1 + TIME_BYTES

# json.dumps() builds an encoder for every call that wants another than the default.
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
_encode_sorted: Final = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode

# A parsed body takes about four times its text.
_PARSED_SIZE: Final = 4


@part
def get_local_cache(runtime: Runtime) -> LocalCache:
    """Return the answers that this process has in memory."""
    return LocalCache()


def build_key(*parts: str) -> str:
    """Return the cache key of ``parts`` in the configured workspace; nothing in it can be read back."""
    settings = get_settings()
    workspace = (settings.workspace_id, settings.base_url, str(settings.sandbox))
    return f"moe_personalize:{CACHE_FORMAT}:{build_digest((*workspace, *parts))}"


def get_many(keys: Iterable[str]) -> dict[str, Any]:
    """Return what the site's cache has of ``keys``; nothing when the cache fails."""
    alias = get_settings().cache
    try:
        return caches[alias].get_many(keys)
    except Exception as error:  # whatever a cache backend raises, it is a miss
        _log_failure(alias, error)
        return {}


def set_many(entries: Mapping[str, Any], *, timeout: float) -> bool:
    """Store ``entries`` in the site's cache for ``timeout`` seconds; return whether it took them all."""
    alias = get_settings().cache
    try:
        return not caches[alias].set_many(dict(entries), timeout=timeout)
    except Exception as error:  # see get_many()
        _log_failure(alias, error)
        return False


def _log_failure(alias: str, error: Exception) -> None:
    message = "The cache %r failed (%s); experiences are fetched without it."
    log_once(("cache", alias, type(error)), message, alias, type(error).__name__)


class _OldCache:
    """The experiences of one visitor; ``clock`` gives Unix seconds, which all processes share.

    What it hands out is shared by all visitors and cannot be changed; ``copy.deepcopy()`` can.
    """

    __slots__ = ("_clock", "_lifetime", "_ttl", "visitor")

    def __init__(self, visitor_digest: str, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self.visitor = visitor_digest
        self._ttl = int(settings.cache_ttl * 1000)
        self._lifetime = int(max(settings.cache_ttl, settings.cache_stale_ttl) * 1000)
        self._clock = clock

    def get_local(self, experience_keys: Collection[str]) -> dict[str, CachedExperience]:
        """Return what this process has in memory, fresh or stale, in microseconds and without any I/O."""
        now = int(self._clock() * 1000)
        return self._pick(get_local_cache().find(self.visitor, now), experience_keys, now)

    def get(self, experience_keys: Iterable[str]) -> dict[str, CachedExperience]:
        """Return what is known, fresh or stale.

        When not all of it is fresh in memory, one round trip to the site's cache; a second one
        when that names a body that this process has not seen.
        """
        keys = tuple(experience_keys)
        found = self.get_local(keys)
        if all(key in found and found[key].fresh for key in keys):
            return found
        now = int(self._clock() * 1000)
        answers = self._read(now)
        _read_bodies(answers, keys)
        return self._pick(get_local_cache().merge(self.visitor, answers, self._span(now)), keys, now)

    def set(self, answers: Mapping[str, Experience | None]) -> None:
        """Store answers, absent ones too, beside what is known of the visitor already.

        One round trip to the site's cache; a second one when a body is new or was written long ago.
        """
        if not self._lifetime:
            return
        now = int(self._clock() * 1000)
        given, record = self._merge(answers, now)
        # First the bodies, so that no other process finds a reference to nothing.
        self._write_bodies([body for _, body in unfold(record) if body.name in given], now)
        set_many({self._name: _pack(record)}, timeout=math.ceil(self._lifetime / 1000))

    def set_local(self, answers: Mapping[str, Experience | None]) -> None:
        """Put answers into the memory of this process alone, without any I/O; see set()."""
        if self._lifetime:
            self._merge(answers, int(self._clock() * 1000))

    def _merge(self, answers: Mapping[str, Experience | None], now: int) -> tuple[Collection[bytes], Record]:
        bodies = [_intern(key, experience) for key, experience in answers.items()]
        given = {body.name: (now, body) for body in bodies}
        return given, get_local_cache().merge(self.visitor, given, self._span(now), overwrite=True)

    @property
    def _name(self) -> str:
        return build_key("visitor", self.visitor)

    def _span(self, now: int) -> Span:
        return Span(now - self._lifetime, now + MAX_SKEW)

    def _pick(self, record: Record, keys: Collection[str], now: int) -> dict[str, CachedExperience]:
        wanted = frozenset(keys)
        found: dict[str, CachedExperience] = {}
        usable = fresh = False
        for item in record:
            if item.__class__ is int:
                usable = now - self._lifetime <= item <= now + MAX_SKEW
                fresh = max(0, now - item) < self._ttl
            elif usable and item.key in wanted:
                found[item.key] = item.fresh if fresh else item.stale
        return found

    def _read(self, now: int) -> dict[bytes, tuple[int, Body]]:
        span, name = self._span(now), self._name
        return {
            reference[:NAME_BYTES]: (at, get_local_cache().get_body(reference) or Body(reference))
            for at, reference in _unpack(get_many([name]).get(name))
            if at in span
        }

    def _write_bodies(self, bodies: Iterable[Body], now: int) -> None:
        """Write those that the site's cache may soon lose: half of a body's time is an answer's whole life."""
        due = {}
        for body in bodies:
            experience = body.fresh.experience
            recent = body.written_at is not None and 0 <= now - body.written_at < self._lifetime
            if experience is not None and not recent:
                due[_build_body_name(body.reference)] = body, _dump(experience)
        if due and set_many({name: text for name, (_, text) in due.items()}, timeout=math.ceil(self._lifetime / 500)):
            for body, _ in due.values():
                body.written_at = now


@functools.lru_cache(maxsize=1024)
def _build_name(key: str, secret: str | bytes) -> bytes:
    return bytes.fromhex(build_digest(["key", key]))[:NAME_BYTES]


def _build_reference(key: str, text: str) -> bytes:
    """Return the reference of the body ``text`` of an experience; ``""`` is the absent one."""
    content = bytes.fromhex(build_digest(["body", key, text]))
    return _build_name(key, django_settings.SECRET_KEY) + content[: REFERENCE_BYTES - NAME_BYTES]


def _build_body_name(reference: bytes) -> str:
    return build_key("body", reference.hex())


def _dump(experience: Experience) -> str:
    return _encode([experience.experience_key, experience.payload, experience.experience_context])


def _intern(key: str, experience: Experience | None) -> Body:
    """Return the body of an answer: the one that is shared, if there is one."""
    if experience is None:
        return Body(_build_reference(key, ""), key)
    payload, context = experience.payload, experience.experience_context
    if freeze(payload) is payload:
        # What nobody can change has the reference it had: the reader hands out the same object again.
        known = get_local_cache().get_body(_find_reference(key, payload, context))
        if known is not None and known.key is not None:
            return known
    return _build_body(key, dict(payload), dict(context))


def _find_reference(key: str, payload: Mapping[str, Any], context: Mapping[str, Any]) -> bytes:
    """Return the reference of a body, remembered by the frozen ``payload`` itself: what is gone holds no memory."""
    # Underscored, since templates show what attributes they find.
    of, reference = vars(payload).get("_reference", (None, b""))
    # The context by which object it is: to compare contents takes as long as to write them.
    if of is not context or reference[:NAME_BYTES] != _build_name(key, django_settings.SECRET_KEY):
        reference = _build_reference(key, _encode_sorted([payload, context]))
        vars(payload)["_reference"] = context, reference
    return bytes(reference)


def _build_body(key: str, payload: dict[str, Any], context: dict[str, Any], *, expected: bytes | None = None) -> Body:
    """Build or find a body; raises ValueError when its reference is not the ``expected`` one."""
    # Sorted, so that the order in which the vendor writes names makes no other body.
    text = _encode_sorted([payload, context])
    reference = _build_reference(key, text)
    if expected is not None and reference != expected:
        raise ValueError("another body")
    shared = get_local_cache().get_body(reference)
    if shared is not None and shared.key is not None:
        return shared
    return Body(reference, key, build_experience(key, payload, context), size=_PARSED_SIZE * len(text))


def _read_bodies(answers: dict[bytes, tuple[int, Body]], keys: Iterable[str]) -> None:
    """Find out what the wanted ones of ``answers`` say, as far as the site's cache knows."""
    lacking: dict[str, bytes] = {}
    for key in keys:
        absent = _build_reference(key, "")
        at, body = answers.get(absent[:NAME_BYTES], (0, None))
        if body is None or body.key is not None:
            continue
        if body.reference == absent:
            answers[body.name] = at, Body(absent, key)
        else:
            lacking[_build_body_name(body.reference)] = body.reference
    for name, text in (get_many(lacking) if lacking else {}).items():
        found = _parse_body(text, lacking[name])
        if found is not None:
            answers[found.name] = answers[found.name][0], found


def _parse_body(text: Any, reference: bytes) -> Body | None:
    try:
        # Nobody without the site's secret can write what has this reference.
        key, payload, context = json.loads(text)
        return _build_body(key, payload, context, expected=reference)
    except (TypeError, ValueError, AttributeError, RecursionError):
        return None


def _pack(record: Record) -> str:
    """Return a visitor as text, which every cache and serializer stores as it is.

    For each moment: how many references, the moment, the references.
    """
    parts = []
    for at, group in groupby(unfold(record), itemgetter(0)):
        references = [body.reference for _, body in group]
        parts += [bytes([len(references)]), at.to_bytes(TIME_BYTES, "big"), *references]
    return base64.b64encode(b"".join(parts)).decode("ascii")


def _unpack(value: object) -> list[tuple[int, bytes]]:
    """Return moments and references as _pack() was given them; nothing when it is something else."""
    try:
        data = base64.b64decode(value) if isinstance(value, str) else b""
    except ValueError:
        return []
    found, start = [], 0
    while start < len(data):
        at, first = int.from_bytes(data[start + 1 : start + HEAD_BYTES], "big"), start + HEAD_BYTES
        start = first + data[start] * REFERENCE_BYTES
        found += [(at, data[place : place + REFERENCE_BYTES]) for place in range(first, start, REFERENCE_BYTES)]
    return found if start == len(data) else []


class Known(NamedTuple):
    answers: Mapping[str, Experience | None]
    due: tuple[str, ...]


class ExperienceCache:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def _known(self, found: Mapping[str, CachedExperience], keys: Iterable[str]) -> Known:
        return Known(
            {k: e.experience for k, e in found.items()}, tuple(k for k in keys if k not in found or not found[k].fresh)
        )

    def peek(self, visitor: str, keys: Collection[str]) -> Known:
        return self._known(_OldCache(visitor, self._settings).get_local(keys), keys)

    def read(self, visitor: str, keys: Collection[str]) -> Known:
        return self._known(_OldCache(visitor, self._settings).get(keys), keys)

    def keep(self, visitor: str, answers: Mapping[str, Experience | None]) -> None:
        _OldCache(visitor, self._settings).set_local(answers)

    def write(self, visitor: str, answers: Mapping[str, Experience | None]) -> None:
        _OldCache(visitor, self._settings).set(answers)


@part
def get_cache(runtime: Runtime) -> ExperienceCache:
    return ExperienceCache(runtime.settings)

"""The cache of answers: this process's memory above the site's Django cache.

In the site's cache, a visitor is one short text: for each moment at which MoEngage answered, the references of
the bodies. A body, the content of one answer, is stored once under its reference, a keyed hash of the content.
An entry that this package didn't write, or wrote with another secret, is a miss.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from django_moe_personalize.conf import Settings
from django_moe_personalize.digest import build_digest
from django_moe_personalize.fetching.local_cache import MAX_ANSWERS, Body, LocalCache, Record, unfold
from django_moe_personalize.fetching.shared import build_key, get_many, set_many
from django_moe_personalize.moengage.frozen import freeze
from django_moe_personalize.moengage.offerings import find_offerings
from django_moe_personalize.moengage.types import DataSource, Experience
from django_moe_personalize.runtime import Runtime, part

MAX_SKEW: Final = 5_000
"""Milliseconds by which the clocks of a site's machines may differ. A later answer comes from before this
machine's clock was set back, nobody knows how long ago, so it is a miss."""

TIME_BYTES: Final = 6
HEAD_BYTES: Final = 1 + TIME_BYTES
REFERENCE_BYTES: Final = 16
_MAX_TEXT_BYTES: Final = MAX_ANSWERS * (HEAD_BYTES + REFERENCE_BYTES)

# json.dumps() builds an encoder for every call with other options than the default ones.
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
_encode_sorted: Final = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode


class Known(NamedTuple):
    """What the cache knows of a visitor.

    ``answers`` has fresh and stale answers, None where MoEngage has no experience, and may have more keys than
    asked for. Visitors share it, so nobody changes it. ``due`` has the keys asked for without a fresh answer.
    """

    answers: Mapping[str, Experience | None]
    due: tuple[str, ...]


class ExperienceCache:
    """MoEngage's answers for each visitor. ``clock`` returns Unix seconds, which all processes share.

    A visitor is 32 hexadecimal characters: Visitor.digest.
    """

    def __init__(
        self, settings: Settings, *, clock: Callable[[], float] = time.time, memory: LocalCache | None = None
    ) -> None:
        self.memory = memory or LocalCache()
        self._clock = clock
        ttl = int(settings.cache_ttl * 1000)
        self._lifetime = max(ttl, int(settings.cache_stale_ttl * 1000))
        # Ages in milliseconds.
        self._fresh = range(-MAX_SKEW, ttl) if ttl else range(0)
        self._usable = range(-MAX_SKEW, self._lifetime + 1)

    def peek(self, visitor: str, keys: Sequence[str]) -> Known:
        """Return what this process has in memory; takes microseconds and does no I/O."""
        now = int(self._clock() * 1000)
        record = self.memory.find(visitor, now)
        if len(record) == 2:
            at, bundle = record
            if now - at in self._fresh:
                answers = bundle.answers
                return Known(answers, tuple([key for key in keys if key not in answers]))
        return self._judge(record, keys, now)

    def read(self, visitor: str, keys: Sequence[str]) -> Known:
        """Return what memory and, for the keys that are due, the site's cache have.

        Takes one round trip to the site's cache, and a second one for bodies that this process hasn't seen.
        """
        known = self.peek(visitor, keys)
        if not known.due or not self._lifetime:
            return known
        now = int(self._clock() * 1000)
        record = self.memory.store(visitor, self._read(visitor, now), self._get_span(now), overwrite=False)
        return self._judge(record, keys, now)

    def keep(self, visitor: str, answers: Mapping[str, Experience | None]) -> None:
        """Store answers in this process's memory, next to the visitor's other answers; does no I/O."""
        if answers and self._lifetime:
            self._store(visitor, self._build_bodies(answers), int(self._clock() * 1000))

    def write(self, visitor: str, answers: Mapping[str, Experience | None]) -> None:
        """Store answers in memory and in the site's cache, next to the visitor's other answers.

        Takes one round trip to the site's cache, and another one before it for bodies that are new there.
        """
        if not answers or not self._lifetime:
            return
        now, bodies = int(self._clock() * 1000), self._build_bodies(answers)
        record = self._store(visitor, bodies, now)
        # The bodies first, so that other processes find what the visitor's text refers to.
        self._write_bodies(bodies, now)
        set_many({build_key("visitor", visitor): _pack(record)}, timeout=math.ceil(self._lifetime / 1000))

    def _get_span(self, now: int) -> range:
        return range(now - self._lifetime, now + MAX_SKEW + 1)

    def _judge(self, record: Record, keys: Sequence[str], now: int) -> Known:
        answers: dict[str, Experience | None] = {}
        due = keys
        for at, bundle in unfold(record):
            if now - at in self._usable:
                answers |= bundle.answers
                if now - at in self._fresh:
                    due = [key for key in due if key not in bundle.answers]
        return Known(answers, tuple(due))

    def _build_bodies(self, answers: Mapping[str, Experience | None]) -> list[Body]:
        return [
            self.memory.find_body_of(key, experience) or _build_body(key, experience)
            for key, experience in answers.items()
        ]

    def _store(self, visitor: str, bodies: Iterable[Body], now: int) -> Record:
        return self.memory.store(visitor, [(now, bodies)], self._get_span(now), overwrite=True)

    def _write_bodies(self, bodies: Iterable[Body], now: int) -> None:
        # A body is stored for twice the lifetime of an answer. Written again after half of its time, it is there
        # for as long as any answer that refers to it.
        due = {
            _build_body_key(body.reference): body
            for body in bodies
            if body.written_at is None or not 0 <= now - body.written_at < self._lifetime
        }
        texts = {key: _dump(body) for key, body in due.items()}
        if texts and set_many(texts, timeout=math.ceil(self._lifetime / 500)):
            for body in due.values():
                body.written_at = now

    def _read(self, visitor: str, now: int) -> list[tuple[int, list[Body]]]:
        """Return the visitor's answers in the site's cache, as far as their bodies can be found."""
        key = build_key("visitor", visitor)
        moments = [moment for moment in _unpack(get_many([key]).get(key)) if now - moment[0] in self._usable]
        bodies = self._find_bodies({reference for _, references in moments for reference in references})
        return [(at, [bodies[one] for one in references if one in bodies]) for at, references in moments]

    def _find_bodies(self, references: Collection[bytes]) -> dict[bytes, Body]:
        found = {one: body for one in references if (body := self.memory.find_body(one)) is not None}
        missing = {_build_body_key(one): one for one in references if one not in found}
        for key, text in get_many(missing).items() if missing else ():
            if (body := _parse_body(text, missing[key])) is not None:
                found[body.reference] = body
        return found


def pick(answers: Mapping[str, Experience | None], keys: Iterable[str]) -> dict[str, Experience]:
    """Return the experiences of ``keys`` among the answers, without the absent ones."""
    return {key: experience for key in keys if (experience := answers.get(key)) is not None}


@part
def get_cache(runtime: Runtime) -> ExperienceCache:
    """Return the cache of the workspace."""
    return ExperienceCache(runtime.settings)


def _build_body_key(reference: bytes) -> str:
    return build_key("body", reference.hex())


def _build_body(key: str, experience: Experience | None) -> Body:
    if experience is None:
        return Body(_hash(key, None, None), key, None, None)
    payload, context = freeze(experience.payload), freeze(experience.experience_context)
    cached = Experience(key, payload, context, DataSource.CACHE, experience.offerings)
    # Only an object that nobody can change has the same content the next time.
    is_frozen = payload is experience.payload and context is experience.experience_context
    return Body(_hash(key, payload, context), key, cached, experience if is_frozen else cached)


def _hash(key: str, payload: Mapping[str, Any] | None, context: Mapping[str, Any] | None) -> bytes:
    # Sorted, because MoEngage may send the names of an object in any order.
    return bytes.fromhex(build_digest(["body", _encode_sorted([key, payload, context])]))


def _dump(body: Body) -> str:
    experience = body.experience
    if experience is None:
        return _encode([body.key, None, None])
    return _encode([body.key, experience.payload, experience.experience_context])


def _parse_body(text: Any, reference: bytes) -> Body | None:
    try:
        key, payload, context = json.loads(text)
        # Only a text that this package wrote with the site's secret has the right hash.
        if _hash(key, payload, context) != reference:
            return None
    except (TypeError, ValueError, RecursionError):
        return None
    if payload is None:
        return Body(reference, key, None, None)
    payload = freeze(payload)
    cached = Experience(key, payload, freeze(context), DataSource.CACHE, tuple(find_offerings(payload)))
    return Body(reference, key, cached, cached)


def _pack(record: Record) -> str:
    """Return a visitor as text, which every cache and serializer can store.

    Each moment is the number of its references, the moment itself, and the references.
    """
    parts: list[bytes] = []
    for at, bundle in unfold(record):
        references = [body.reference for body in bundle.bodies]
        parts += [bytes([len(references)]), at.to_bytes(TIME_BYTES, "big"), *references]
    return base64.b64encode(b"".join(parts)).decode("ascii")


def _unpack(value: object) -> list[tuple[int, list[bytes]]]:
    """Return the moments and references in a text of _pack(), nothing for any other value."""
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError:
        return []
    found, start, end = [], 0, min(len(data), _MAX_TEXT_BYTES)
    while start < end:
        at, first = data[start + 1 : start + HEAD_BYTES], start + HEAD_BYTES
        start = first + data[start] * REFERENCE_BYTES
        references = [data[place : place + REFERENCE_BYTES] for place in range(first, start, REFERENCE_BYTES)]
        found.append((int.from_bytes(at, "big"), references))
    return found if start == len(data) else []

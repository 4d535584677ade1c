"""The cache of answers: the memory of this process, and below it the site's Django cache.

A body is the content of one answer. The site's cache stores each body once, under its reference: a keyed hash of
the content. The entry of a visitor is one short text. The text lists the moments at which MoEngage answered, each
with the references of the bodies. An entry that another program or another secret made is a miss.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from django_moe_personalize.client import get_engine, is_embedded
from django_moe_personalize.conf import Settings
from django_moe_personalize.fetching.local_cache import MAX_ANSWERS, Body, LocalCache, Record, unfold
from django_moe_personalize.fetching.shared import build_key, get_many, has_room, set_many
from django_moe_personalize.moengage.json_values import FrozenDict, freeze
from django_moe_personalize.moengage.types import DataSource, Experience, find_offerings
from django_moe_personalize.runtime import Runtime, part
from django_moe_personalize.visitor import build_digest

MAX_SKEW: Final = 5_000
"""Milliseconds by which the clocks of a site's machines may differ. An answer from a later moment is a miss: a clock
was set back, so the age of the answer is unknown."""

TIME_BYTES: Final = 6
HEAD_BYTES: Final = 1 + TIME_BYTES
REFERENCE_BYTES: Final = 16
_MAX_TEXT_BYTES: Final = MAX_ANSWERS * (HEAD_BYTES + REFERENCE_BYTES)

# json.dumps() with these options would build an encoder for every call.
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
_encode_sorted: Final = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode


Answers = Mapping[str, Experience | None]
"""Experiences by key. ``None`` means that MoEngage has no experience of this key for the visitor."""


class Known(NamedTuple):
    """A visitor's cached answers.

    ``answers`` may be stale, and may have more keys than the caller asked for. Never change this mapping, because
    visitors share it. ``due`` are the keys that the caller asked for and that have no fresh answer.
    """

    answers: Answers
    due: tuple[str, ...]


class ExperienceCache:
    """MoEngage's answers, by ``Visitor.digest``. ``clock`` returns Unix seconds."""

    def __init__(
        self, settings: Settings, *, clock: Callable[[], float] = time.time, memory: LocalCache | None = None
    ) -> None:
        self.memory = memory or LocalCache()
        self._looks: dict[str, Callable[[str, Sequence[str]], Known]] = {}
        self._clock = clock
        ttl = int(settings.cache_ttl * 1000)
        self._lifetime = max(ttl, int(settings.cache_stale_ttl * 1000))
        # The ages, in milliseconds, of fresh answers.
        self._fresh = range(-MAX_SKEW, ttl) if ttl else range(0)

    def peek(self, visitor: str, keys: Sequence[str]) -> Known:
        """Return the answers in this process's memory. This takes about a microsecond and does no I/O."""
        now = int(self._clock() * 1000)
        record = self.memory.find(visitor, now)
        if not record:
            return Known({}, tuple(keys))
        # Mostly the oldest answer is fresh, and so are all others, unless the clock was set back after the newest.
        if now - record[0] in self._fresh and (len(record) == 2 or now - record[2] in self._fresh):
            answers = record[1].answers
            return Known(answers, tuple([key for key in keys if key not in answers]))
        return self._judge(record, keys, now)

    def read(self, visitor: str, keys: Sequence[str]) -> Known:
        """Return the answers in memory. If keys are due, add the answers in the site's cache.

        This takes one round trip to the site's cache, and a second round trip for bodies that aren't in memory.
        """
        # Not self.peek(), which a site's metrics count: for this question, they have counted the memory already.
        known = type(self).peek(self, visitor, keys)
        if not known.due or not self._lifetime or not has_room():
            return known
        now = int(self._clock() * 1000)
        record = self.memory.store(visitor, self._read(visitor), self._get_usable(now), overwrite=False)
        return self._judge(record, keys, now)

    def keep(self, visitor: str, answers: Answers) -> None:
        """Add answers to the visitor's entry in this process's memory. Does no I/O."""
        if not answers or not self._lifetime:
            return
        # Visitors with equal responses have the same FrozenDict. To look up each of its answers takes 1,000 bytecodes.
        bundle = answers._bundle if isinstance(answers, FrozenDict) else None
        if bundle is None or not self.memory.share(visitor, int(self._clock() * 1000), bundle):
            self._keep(visitor, answers)

    def write(self, visitor: str, answers: Answers) -> None:
        """Add answers to the visitor's entry in memory and in the site's cache.

        This takes one round trip to the site's cache, and for new bodies a second round trip.
        """
        if not has_room():
            self.keep(visitor, answers)
            return
        if not answers or not self._lifetime:
            return
        now, bodies, record = self._keep(visitor, answers)
        # Write the bodies first, because other processes may read the visitor's text immediately.
        self._write_bodies(bodies, now)
        set_many({build_key("visitor", visitor): _pack(record)}, timeout=math.ceil(self._lifetime / 1000))

    def switch_off(self, is_off: Callable[[str], bool] | None) -> None:
        """Give no visitor an experience whose key ``is_off()``, neither from here nor from MoEngage.

        ``None`` switches all keys on. These keys are never due, so pages don't ask MoEngage for them.
        """
        # As attributes of this object, because a check would cost pages without a switched-off key 20 bytecodes.
        if not self._looks:
            self._looks = {"peek": self.peek, "read": self.read}
        for name, look in self._looks.items():
            setattr(self, name, look if is_off is None else partial(_leave_out, look, is_off))

    def _get_usable(self, now: int) -> range:
        return range(now - self._lifetime, now + MAX_SKEW + 1)

    def _judge(self, record: Record, keys: Sequence[str], now: int) -> Known:
        answers: dict[str, Experience | None] = {}
        due, usable = keys, self._get_usable(now)
        for at, bundle in unfold(record):
            if at in usable:
                answers |= bundle.answers
                if now - at in self._fresh:
                    due = [key for key in due if key not in bundle.answers]
        return Known(answers, tuple(due))

    def _keep(self, visitor: str, answers: Answers) -> tuple[int, Sequence[Body], Record]:
        now, bundle = int(self._clock() * 1000), answers._bundle if isinstance(answers, FrozenDict) else None
        if bundle is not None and self.memory.has_bundle(bundle):
            bodies: Sequence[Body] = bundle.bodies
        else:
            bodies = [self._get_body(*answer) for answer in answers.items()]
        record = self.memory.store(visitor, [(now, bodies)], self._get_usable(now), overwrite=True)
        # Otherwise the entry also has answers that only this visitor got.
        if isinstance(answers, FrozenDict) and record[:1] == (now,) and len(record[1].bodies) == len(bodies):
            answers._bundle = record[1]
        return now, bodies, record

    def _get_body(self, key: str, experience: Experience | None) -> Body:
        # To write and hash 2 KB of JSON takes 13 µs.
        reference = _hash(_list_content(key, experience))
        return self.memory.find_body(reference) or _build_body(reference, key, experience)

    def _write_bodies(self, bodies: Iterable[Body], now: int) -> None:
        # The site's cache keeps a body for twice the lifetime of an answer, and this method writes the body again
        # after half of this time. So the body outlives all answers that refer to the body.
        due = {
            build_key("body", body.reference.hex()): body
            for body in bodies
            if body.written_at is None or not 0 <= now - body.written_at < self._lifetime
        }
        texts = {key: _encode(_list_content(body.key, body.experience)) for key, body in due.items()}
        if texts and set_many(texts, timeout=math.ceil(self._lifetime / 500)):
            for body in due.values():
                body.written_at = now

    def _read(self, visitor: str) -> list[tuple[int, list[Body]]]:
        """Return the visitor's answers in the site's cache, without answers whose bodies the cache has lost."""
        key = build_key("visitor", visitor)
        moments = _unpack(get_many([key]).get(key))
        bodies = self._find_bodies({reference for _, references in moments for reference in references})
        return [(at, [bodies[r] for r in references if r in bodies]) for at, references in moments]

    def _find_bodies(self, references: Collection[bytes]) -> dict[bytes, Body]:
        found = {reference: body for reference in references if (body := self.memory.find_body(reference)) is not None}
        missing = {build_key("body", r.hex()): r for r in references if r not in found}
        for key, text in get_many(missing).items() if missing else ():
            if (body := _parse_body(text, missing[key])) is not None:
                found[body.reference] = body
        return found


def _leave_out(
    look: Callable[[str, Sequence[str]], Known], is_off: Callable[[str], bool], visitor: str, keys: Sequence[str]
) -> Known:
    known = look(visitor, keys)
    off = [key for key in {*keys, *known.answers} if is_off(key)]
    if not off:
        return known
    return Known({**known.answers, **dict.fromkeys(off)}, tuple([key for key in known.due if key not in off]))


def pick(answers: Answers, keys: Iterable[str]) -> dict[str, Experience]:
    """Return the experiences of ``keys`` that the answers contain. Leave out keys without an experience."""
    return {key: experience for key in keys if (experience := answers.get(key)) is not None}


class SandboxCache(ExperienceCache):
    """Answers of the sandbox in this process. Answers from before a change of the workspace file are misses."""

    def __init__(self, runtime: Runtime, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(runtime.settings, clock=clock)
        self._runtime = runtime
        self._changed_at = 0
        self._fresh_always = self._fresh

    def peek(self, visitor: str, keys: Sequence[str]) -> Known:
        """See ExperienceCache.peek(). To find out whether the file has changed takes some 2 µs more."""
        # Until the first call, this process has no sandbox.
        if (engine := get_engine.find(self._runtime)) is not None:
            self._changed_at = int(engine.refresh() * 1000)
            age = int(self._clock() * 1000) - self._changed_at + 1
            self._fresh = range(self._fresh_always.start, min(self._fresh_always.stop, age))
        return super().peek(visitor, keys)

    def _get_usable(self, now: int) -> range:
        usable = super()._get_usable(now)
        return range(max(usable.start, self._changed_at), usable.stop)


@part
def get_cache(runtime: Runtime) -> ExperienceCache:
    """Return the cache of the workspace."""
    return SandboxCache(runtime) if is_embedded(runtime.settings) else ExperienceCache(runtime.settings)


def _list_content(key: str, experience: Experience | None) -> list[Any]:
    """Return the content of a body as the site's cache stores it."""
    return [key, None, None] if experience is None else [key, experience.payload, experience.experience_context]


def _hash(content: list[Any]) -> bytes:
    # Sorted, because MoEngage may send the members of a JSON object in any order.
    return bytes.fromhex(build_digest(["body", _encode_sorted(content)]))


def _build_body(reference: bytes, key: str, experience: Experience | None) -> Body:
    if experience is None:
        return Body(reference, key, None)
    payload, context = freeze(experience.payload), freeze(experience.experience_context)
    return Body(reference, key, Experience(key, payload, context, DataSource.CACHE, experience.offerings))


def _parse_body(text: Any, reference: bytes) -> Body | None:
    try:
        key, payload, context = json.loads(text)
        # Only a text that was written with the site's secret has the right hash.
        if _hash([key, payload, context]) != reference:
            return None
    except (TypeError, ValueError, RecursionError):
        return None
    if payload is None:
        return _build_body(reference, key, None)
    payload = freeze(payload)
    return _build_body(reference, key, Experience(key, payload, context, offerings=tuple(find_offerings(payload))))


def _pack(record: Record) -> str:
    """Return the visitor's entry as text, because every cache and serializer can store text.

    For each moment, the entry has the number of references, the moment itself, and the references.
    """
    parts: list[bytes] = []
    for at, bundle in unfold(record):
        references = [body.reference for body in bundle.bodies]
        parts += [bytes([len(references)]), at.to_bytes(TIME_BYTES, "big"), *references]
    return base64.b64encode(b"".join(parts)).decode("ascii")


def _unpack(value: object) -> list[tuple[int, list[bytes]]]:
    """Return the moments and references in a text of _pack(). Return an empty list for any other value."""
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

"""The upper level of the cache: visitors and the bodies they share, in the memory of one process.

An experience's body is one object however many visitors have it, and a visitor is one tuple: a
moment, then the bodies stored at that moment, then an earlier moment, and so on.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any, Final, NamedTuple

from django_moe_personalize.moengage.frozen import freeze
from django_moe_personalize.moengage.offerings import find_offerings
from django_moe_personalize.moengage.types import DataSource, Experience

MAX_VISITORS: Final = 100_000
"""Visitors in one process: some 40 MB, or ten minutes of 160 new visitors a second."""

MAX_BYTES: Final = 96 * 1024 * 1024
"""What visitors and bodies may take together, as estimated: bodies made for one visitor are not shared."""

MAX_ANSWERS: Final = 255
"""Experience keys kept for one visitor, the newest: a site may make keys out of what a visitor sends."""

PROTECTED_SHARE: Final = 0.8
"""The part of the visitors that those who came back may hold against those who come once."""

RETURN_MILLISECONDS: Final = 1_000
"""A read this soon after an answer was stored is the same page reading on, not a visitor coming back."""

NAME_BYTES: Final = 4
REFERENCE_BYTES: Final = 16
"""A reference is the hash of an experience key, NAME_BYTES long, and then that of the body, which holds the key.

Two keys with one name, which in a site of a hundred keys is one chance in a million, are a miss by turns."""

# Estimates, of 64-bit CPython: a visitor's key, places in the map and tuple; a body's own objects.
_VISITOR_BYTES: Final = 360
_ANSWER_BYTES: Final = 16
_BODY_BYTES: Final = 400

Record = tuple[Any, ...]
"""A visitor: ``(milliseconds, Body, …, milliseconds, Body, …)``, newest first, Unix time; never only a moment."""


class CachedExperience(NamedTuple):
    """An answer from the cache: ``experience`` is ``None`` when the vendor had none for the visitor."""

    experience: Experience | None
    fresh: bool


class Body:
    """What an answer says, present or absent; ``key`` is ``None`` when so far only its reference is known.

    ``fresh`` and ``stale`` are the two ways to hand it out, made once. ``written_at`` is when this
    process last put it into the site's cache, in milliseconds.
    """

    __slots__ = ("fresh", "holders", "key", "reference", "size", "stale", "written_at")

    def __init__(
        self, reference: bytes, key: str | None = None, experience: Experience | None = None, *, size: int = 0
    ) -> None:
        self.reference = reference
        self.fresh = CachedExperience(experience, fresh=True)
        self.stale = CachedExperience(experience, fresh=False)
        self.key = key
        self.size = _BODY_BYTES + size
        self.holders = 0
        self.written_at: int | None = None

    @property
    def name(self) -> bytes:
        """The hash of the experience key."""
        return self.reference[:NAME_BYTES]

    def learn(self, other: Body) -> None:
        """Take over what ``other``, of the same reference, knows."""
        # The key last: readers hold no lock, and it is what they look at first.
        self.fresh, self.stale, self.size = other.fresh, other.stale, other.size
        self.key = other.key


class LocalCounts(NamedTuple):
    """What a process holds; ``bytes`` is the estimate that MAX_BYTES bounds."""

    visitors: int
    bodies: int
    bytes: int


class Span:
    """The moments, in milliseconds, between which an answer must have been stored to be of use."""

    __slots__ = ("newest", "oldest")

    def __init__(self, oldest: int, newest: int) -> None:
        self.oldest = oldest
        self.newest = newest

    def __contains__(self, moment: int) -> bool:
        return self.oldest <= moment <= self.newest


class LocalCache:
    """A bounded map of visitors that someone who comes once cannot empty; thread-safe, empty after a fork.

    Two segments, each in order of use: a visitor starts in the first and enters the second, of
    PROTECTED_SHARE of the places at most, by coming back. Whoever must go goes from the first.
    Reading never waits for the lock.
    """

    def __init__(self, *, max_visitors: int = MAX_VISITORS, max_bytes: int = MAX_BYTES) -> None:
        self._max_visitors = max_visitors
        self._max_protected = int(max_visitors * PROTECTED_SHARE)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._empty()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._empty()

    def _empty(self) -> None:
        self._first: OrderedDict[str, Record] = OrderedDict()
        self._protected: OrderedDict[str, Record] = OrderedDict()
        self._bodies: dict[bytes, Body] = {}
        self._bytes = 0

    @property
    def counts(self) -> LocalCounts:
        """How much is held."""
        with self._lock:
            return LocalCounts(len(self._first) + len(self._protected), len(self._bodies), self._bytes)

    def find(self, visitor: str, now: int) -> Record:
        """Return what is known of the visitor, ``()`` if nothing; ``now`` in milliseconds."""
        try:
            # One step of the interpreter each: only what moves between the segments needs the lock.
            self._protected.move_to_end(visitor)
            return self._protected[visitor]
        except KeyError:
            return self._find_first(visitor, now)

    def _find_first(self, visitor: str, now: int) -> Record:
        try:
            self._first.move_to_end(visitor)
            record = self._first[visitor]
        except KeyError:
            # Where another thread may have put it since we looked.
            return self._protected.get(visitor, ())
        if now - record[0] >= RETURN_MILLISECONDS and self._lock.acquire(blocking=False):
            try:
                self._promote(visitor)
            finally:
                self._lock.release()
        return record

    def get_body(self, reference: bytes) -> Body | None:
        """Return the body that all visitors here share, if any has it."""
        return self._bodies.get(reference)

    def merge(
        self, visitor: str, answers: Mapping[bytes, tuple[int, Body]], span: Span, *, overwrite: bool = False
    ) -> Record:
        """Add answers, ``(milliseconds, body)`` by name, and return all that is known of the visitor now.

        The newer of two answers stays, or with ``overwrite`` the one given; what is not in ``span`` goes.
        """
        with self._lock:
            segment = self._protected if visitor in self._protected else self._first
            old = segment.get(visitor, ())
            known = {body.name: (at, body) for at, body in unfold(old) if at in span}
            for name, answer in answers.items():
                # A tie goes to the one given: it is the same body, of which more may be known.
                if overwrite or name not in known or answer[0] >= known[name][0]:
                    known[name] = answer
            # Held before the old one is let go, so that what is in both stays the same object.
            record = self._fold(known.values())
            self._release(old)
            if record:
                segment[visitor] = record
                segment.move_to_end(visitor)
            else:
                segment.pop(visitor, None)
            self._shrink()
        return record

    def _promote(self, visitor: str) -> None:
        record = self._first.get(visitor)
        if record is not None:
            # There before it is gone here: readers hold no lock.
            self._protected[visitor] = record
            del self._first[visitor]
            if len(self._protected) > self._max_protected:
                longest_away, record = self._protected.popitem(last=False)
                self._first[longest_away] = record

    def _fold(self, answers: Iterable[tuple[int, Body]]) -> Record:
        record: list[int | Body] = []
        latest = None
        for at, body in sorted(answers, key=itemgetter(0), reverse=True)[:MAX_ANSWERS]:
            if at != latest:
                record.append(at)
                latest = at
            record.append(self._hold(body))
        self._bytes += _weigh(record)
        return tuple(record)

    def _hold(self, body: Body) -> Body:
        shared = self._bodies.get(body.reference)
        if shared is None:
            shared = self._bodies[body.reference] = body
            self._bytes += body.size
        elif shared.key is None and body.key is not None:
            self._bytes += body.size - shared.size
            shared.learn(body)
        shared.holders += 1
        return shared

    def _release(self, record: Record) -> None:
        self._bytes -= _weigh(record)
        for _, body in unfold(record):
            body.holders -= 1
            if not body.holders:
                del self._bodies[body.reference]
                self._bytes -= body.size

    def _shrink(self) -> None:
        while self._bytes > self._max_bytes or len(self._first) + len(self._protected) > self._max_visitors:
            _, record = (self._first or self._protected).popitem(last=False)
            self._release(record)


def unfold(record: Record) -> Iterator[tuple[int, Body]]:
    """Yield when each body of a visitor was stored, and the body."""
    at = 0
    for item in record:
        if isinstance(item, int):
            at = item
        else:
            yield at, item


def _weigh(record: Record | list[int | Body]) -> int:
    return _VISITOR_BYTES + _ANSWER_BYTES * len(record) if record else 0


def build_experience(key: str, payload: Mapping[str, Any], context: Mapping[str, Any]) -> Experience:
    """Build the one object that all visitors with this body are given."""
    payload = freeze(payload)
    return Experience(key, payload, freeze(context), DataSource.CACHE, tuple(find_offerings(payload)))

"""The memory of one process: visitors, and the answers that visitors share.

The record of a visitor is one tuple ``(milliseconds, bundle)``. A bundle maps experience keys to the answers of one
moment. If the answers are of several moments, the record is ``(oldest, all, milliseconds, bundle, …)``: the bundle
``all`` has the answers of all moments, and the bundles of the moments follow, the newest first. Visitors with the same
answers share one bundle, and bundles share experiences. So a visitor takes about 270 bytes, however long the content
is.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter, itemgetter
from types import MappingProxyType
from typing import Any, Final

from django_moe_personalize.moengage.json_values import encode
from django_moe_personalize.moengage.types import Experience

MAX_VISITORS: Final = 100_000
"""Visitors in one process: about 30 MB, or ten minutes of 160 new visitors a second."""

MAX_BYTES: Final = 80 * 1024 * 1024
"""The limit of the estimated bytes of all visitors and answers. With different content for each visitor, a site reaches
this limit before MAX_VISITORS. Python's allocator takes more: the process grows by about 96 MiB, at most by 120 MiB."""

MAX_ANSWERS: Final = 255
"""How many of a visitor's newest answers are kept. The limit matters if a site builds keys from a visitor's input."""

RETURNING_SHARE: Final = 0.8
"""The largest share of MAX_VISITORS for returning visitors. New visitors never displace these visitors."""

RETURN_MILLISECONDS: Final = 1_000
"""A visitor returns if a read comes this long after an answer. An earlier read belongs to the same page."""

# Measured on 64-bit CPython, without the content itself.
_VISITOR_BYTES: Final = 210
_MOMENT_BYTES: Final = 48
_BUNDLE_BYTES: Final = 200
_BODY_BYTES: Final = 270
_EXPERIENCE_BYTES: Final = 540

_SHARED_NUMBERS: Final = frozenset(range(-5, 257))
"""CPython has one object for each of these numbers."""

Record = tuple[Any, ...]
"""A visitor's record: ``(milliseconds, Bundle)`` or ``(oldest, all, milliseconds, Bundle, …)``. No experience key has
answers of two moments."""

Moments = Iterable[tuple[int, Iterable["Body"]]]
"""Answers by the moment at which MoEngage gave them, in Unix milliseconds."""


class Body:
    """One answer, which all visitors with this answer share. If MoEngage has no experience, ``experience`` is ``None``.

    ``reference`` is a hash of the content. ``written_at`` is when this process last wrote the body to the site's cache,
    in milliseconds.
    """

    __slots__ = ("experience", "holders", "key", "reference", "size", "written_at")

    def __init__(self, reference: bytes, key: str, experience: Experience | None) -> None:
        self.reference = reference
        self.key = key
        self.experience = experience
        self.size = _BODY_BYTES + _weigh(experience)
        self.holders = 0
        self.written_at: int | None = None


class Bundle:
    """The answers of one moment. All visitors with these answers share the bundle."""

    __slots__ = ("answers", "bodies", "holders", "size")

    def __init__(self, bodies: tuple[Body, ...]) -> None:
        answers = {body.key: body.experience for body in bodies}
        self.bodies = bodies
        self.answers: Mapping[str, Experience | None] = MappingProxyType(answers)
        self.size = _BUNDLE_BYTES + sys.getsizeof(bodies) + sys.getsizeof(answers)
        self.holders = 0


class LocalCache:
    """A bounded, thread-safe map of visitors. Visitors who come once can't displace returning visitors.

    The map has two segments, each in order of use: new visitors and returning visitors. If the map is full, the
    least recently used new visitor leaves the map. Reads never wait for the lock.
    """

    def __init__(self, *, max_visitors: int = MAX_VISITORS, max_bytes: int = MAX_BYTES) -> None:
        self._max_visitors = max_visitors
        self._max_returning = int(max_visitors * RETURNING_SHARE)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._new: OrderedDict[str, Record] = OrderedDict()
        self._returning: OrderedDict[str, Record] = OrderedDict()
        self._bundles: dict[tuple[Body, ...], Bundle] = {}
        self._bodies: dict[bytes, Body] = {}
        self._bytes = 0

    def find(self, visitor: str, now: int) -> Record:
        """Return the visitor's record, or ``()`` for an unknown visitor. ``now`` is in milliseconds."""
        segment = self._returning if visitor in self._returning else self._new
        try:
            # Each line is atomic, so reading needs no lock.
            segment.move_to_end(visitor)
            record = segment[visitor]
        except KeyError:
            # Another thread may have moved the visitor from one segment to the other.
            return self._returning.get(visitor) or self._new.get(visitor, ())
        if segment is self._new and now - record[0] >= RETURN_MILLISECONDS:
            self._promote(visitor)
        return record

    def find_body(self, reference: bytes) -> Body | None:
        """Return the body with this reference, or ``None`` if no visitor has such an answer."""
        return self._bodies.get(reference)

    def has_bundle(self, bundle: Bundle) -> bool:
        """Return whether a visitor in this memory has this bundle."""
        return self._bundles.get(bundle.bodies) is bundle

    def store(self, visitor: str, moments: Moments, usable: range, *, overwrite: bool) -> Record:
        """Add answers to a visitor's record, drop the moments outside ``usable``, and return the new record.

        If the record has an answer for the same key, the newer answer stays; with ``overwrite``, the added answer.
        """
        with self._lock:
            segment = self._returning if visitor in self._returning else self._new
            old = segment.get(visitor, ())
            merged = [*[(at, bundle.bodies) for at, bundle in unfold(old)], *moments]
            if not overwrite:
                merged.sort(key=itemgetter(0))
            answers = {body.key: (at, body) for at, bodies in merged if at in usable for body in bodies}
            # Hold the new record before the old record is released. So bodies in both records stay the same objects.
            record = self._hold(answers.values())
            self._release(old)
            if record:
                segment[visitor] = record
                segment.move_to_end(visitor)
            else:
                segment.pop(visitor, None)
            self._shrink()
        return record

    def share(self, visitor: str, at: int, bundle: Bundle) -> bool:
        """Store a bundle for a visitor with no other answers. Return False, without storing, in any other case."""
        with self._lock:
            segment = self._returning if visitor in self._returning else self._new
            old = segment.get(visitor)
            if not self.has_bundle(bundle) or not (old is None or old[1:] == (bundle,)):
                return False
            segment[visitor] = at, bundle
            if old is not None:
                segment.move_to_end(visitor)
                return True
            bundle.holders += 1
            self._bytes += _VISITOR_BYTES + _MOMENT_BYTES
            self._shrink()
        return True

    def _promote(self, visitor: str) -> None:
        # If the lock is taken, a later read promotes the visitor.
        if not self._lock.acquire(blocking=False):
            return
        try:
            record = self._new.get(visitor)
            if record is not None:
                # Add the visitor to one segment before leaving the other segment, because readers hold no lock.
                self._returning[visitor] = record
                del self._new[visitor]
                if len(self._returning) > self._max_returning:
                    longest_away, record = self._returning.popitem(last=False)
                    self._new[longest_away] = record
        finally:
            self._lock.release()

    def _hold(self, answers: Iterable[tuple[int, Body]]) -> Record:
        moments: dict[int, list[Body]] = {}
        for at, body in sorted(answers, key=itemgetter(0), reverse=True)[:MAX_ANSWERS]:
            moments.setdefault(at, []).append(self._bodies.get(body.reference, body))
        record: list[Any] = []
        for at, bodies in moments.items():
            record += at, self._hold_bundle(tuple(sorted(bodies, key=attrgetter("key"))))
        if len(record) > 2:
            every = (body for bundle in record[1::2] for body in bundle.bodies)
            record[:0] = record[-2], self._hold_bundle(tuple(sorted(every, key=attrgetter("key"))))
        self._bytes += _weigh_record(record)
        return tuple(record)

    def _hold_bundle(self, bodies: tuple[Body, ...]) -> Bundle:
        bundle = self._bundles.get(bodies)
        if bundle is None:
            bundle = self._bundles[bodies] = Bundle(bodies)
            self._bytes += bundle.size
            for body in bodies:
                if not body.holders:
                    self._bodies[body.reference] = body
                    self._bytes += body.size
                body.holders += 1
        bundle.holders += 1
        return bundle

    def _release(self, record: Record) -> None:
        self._bytes -= _weigh_record(record)
        for bundle in record[1::2]:
            bundle.holders -= 1
            if not bundle.holders:
                del self._bundles[bundle.bodies]
                self._bytes -= bundle.size
                for body in bundle.bodies:
                    body.holders -= 1
                    if not body.holders:
                        del self._bodies[body.reference]
                        self._bytes -= body.size

    def _shrink(self) -> None:
        while self._bytes > self._max_bytes or len(self._new) + len(self._returning) > self._max_visitors:
            _, record = (self._new or self._returning).popitem(last=False)
            self._release(record)


def unfold(record: Record) -> Iterator[tuple[int, Bundle]]:
    """Return the moments of a record and their bundles, the newest first."""
    moments = record[2:] or record
    return zip(moments[::2], moments[1::2], strict=True)


def _weigh_record(record: Record | list[Any]) -> int:
    return _VISITOR_BYTES + _MOMENT_BYTES * (len(record) // 2) if record else 0


def _weigh(experience: Experience | None) -> int:
    """Return the size of an experience's content in bytes. Count each part once."""
    if experience is None:
        return 0
    parts: list[Any] = [experience.payload, experience.experience_context, encode(experience.experience_context)]
    for offering in experience.offerings:
        parts += offering, offering.offering_id, offering.content, offering.context, offering.raw
    counted: set[int] = set()
    size = _EXPERIENCE_BYTES
    while parts:
        part = parts.pop()
        if id(part) not in counted and not (part.__class__ is int and part in _SHARED_NUMBERS):
            counted.add(id(part))
            size += sys.getsizeof(part)
            if isinstance(part, dict):
                parts += part
                parts += part.values()
            elif isinstance(part, list):
                parts += part
    return size

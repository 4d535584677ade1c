"""The ledger: the events that the sandbox has accepted. Two events with the same UUID count as one event.

MoEngage says so of impressions and clicks. Of conversions it doesn't: ``repeats`` counts those that came again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from django_moe_personalize.moengage.types import Action

MAX_ENTRIES = 100_000
"""The number of entries that the ledger keeps. The ledger drops the oldest entries, but their counts stay."""

MAX_UUIDS = 4 * MAX_ENTRIES
"""The number of UUIDs that the ledger remembers, to recognize retries even of dropped entries."""


UNKNOWN_EXPERIENCE = "(unknown)"
"""The experience key of an event whose context names no experience of the workspace."""


CONVERSIONS = "(conversions)"
"""The experience key of a conversion: an event of the site's own, which names no experience."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One action of an accepted event. Times are Unix seconds; ``element`` is the ``b_id`` of a click.

    The ``action`` of a conversion is its name.
    """

    event_uuid: str
    action: str
    customer_id: str = field(repr=False)
    event_time: int
    received: float
    platform: str
    element: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict, repr=False)
    experience_key: str = UNKNOWN_EXPERIENCE

    @property
    def is_conversion(self) -> bool:
        """Whether the Data API accepted this event."""
        return self.experience_key == CONVERSIONS


@dataclass(slots=True)
class Counts:
    """The counts of one experience, as a MoEngage dashboard shows them."""

    impressions: int = 0
    clicks: int = 0
    conversions: int = 0


class Ledger:
    """A bounded list of events with counts. Threads may share a ledger."""

    def __init__(self, *, max_entries: int = MAX_ENTRIES, max_uuids: int = MAX_UUIDS) -> None:
        self._lock = threading.Lock()
        self._entries: deque[LedgerEntry] = deque(maxlen=max_entries)
        self._counts: dict[str, Counts] = {}
        self._uuids: OrderedDict[str, None] = OrderedDict()
        self._max_uuids = max_uuids
        self.repeats = 0
        """How many conversions came again. MoEngage may count each of them again."""
        self.revision = 0
        """A number that grows with each change."""

    def record(self, entries: Iterable[LedgerEntry]) -> int:
        """Add the entries with new UUIDs and return their number."""
        with self._lock:
            added = sum(self._add(entry) for entry in entries)
            self.revision += added
            return added

    def _add(self, entry: LedgerEntry) -> bool:
        uuid = entry.event_uuid.lower()
        if uuid in self._uuids:
            self.repeats += entry.is_conversion
            return False
        self._uuids[uuid] = None
        if len(self._uuids) > self._max_uuids:
            self._uuids.popitem(last=False)
        self._entries.append(entry)
        counts = self._counts.setdefault(entry.experience_key, Counts())
        counts.conversions += entry.is_conversion
        counts.impressions += entry.action == Action.SHOWN.value
        counts.clicks += entry.action == Action.CLICKED.value
        return True

    def entries(self) -> list[LedgerEntry]:
        """Return the entries, oldest first."""
        with self._lock:
            return list(self._entries)

    def counts(self) -> dict[str, Counts]:
        """Return the impressions and clicks by experience key. Dropped entries still count."""
        with self._lock:
            return {key: replace(counts) for key, counts in self._counts.items()}

    def clear(self) -> None:
        """Remove all entries, counts and UUIDs."""
        with self._lock:
            self.revision += 1
            self.repeats = 0
            self._entries.clear()
            self._counts.clear()
            self._uuids.clear()

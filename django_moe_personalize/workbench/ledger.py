"""The ledger as a page shows it: impressions, clicks and click-through rates by experience and variation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from django_moe_personalize.moengage.types import Action
from django_moe_personalize.sandbox.ledger import LedgerEntry

LATEST = 14
"""The number of events in the list of the latest events."""


@dataclass(slots=True)
class Tally:
    """Impressions and clicks."""

    impressions: int = 0
    clicks: int = 0

    def count(self, action: str, number: int) -> None:
        """Count events of one action."""
        self.impressions += number * (action == Action.SHOWN.value)
        self.clicks += number * (action == Action.CLICKED.value)

    @property
    def rate(self) -> float:
        """Return the click-through rate in percent."""
        return 100 * self.clicks / self.impressions if self.impressions else 0.0


@dataclass(slots=True)
class Bar(Tally):
    """One variation, with the lengths of its two bars from 0 to 100."""

    variation: str = ""
    audience: str = ""
    impressions_length: float = 0.0
    clicks_length: float = 0.0


@dataclass(slots=True)
class Chart(Tally):
    """One experience and its variations."""

    experience_key: str = ""
    bars: dict[str, Bar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EventLine:
    """One event, as the table shows it."""

    time: datetime
    is_click: bool
    experience_key: str
    variation: str
    element: str
    visitor: str


@dataclass(frozen=True, slots=True)
class LedgerView:
    """The content of the page."""

    total: Tally
    visitors: int
    charts: Sequence[Chart]
    events: Sequence[EventLine]


def build_ledger(entries: Sequence[LedgerEntry], names: Mapping[str, str] | None = None) -> LedgerView:
    """Return the page for the entries of the ledger, oldest first. ``names`` has names of visitors by customer id."""
    total = Tally()
    charts: dict[str, Chart] = {}
    # The ledger may be long, so count equal events first.
    for (key, variation, audience, action), number in Counter(map(_describe, entries)).items():
        chart = charts.setdefault(key, Chart(experience_key=key))
        bar = chart.bars.setdefault(variation, Bar(variation=variation, audience=audience))
        for tally in (total, chart, bar):
            tally.count(action, number)
    ordered = sorted(charts.values(), key=lambda chart: chart.experience_key)
    for chart in ordered:
        chart.bars = dict(sorted(chart.bars.items(), key=lambda item: (len(item[0]), item[0])))
    _measure([bar for chart in ordered for bar in chart.bars.values()])
    lines = tuple(_build_line(entry, names or {}) for entry in reversed(entries[-LATEST:]))
    return LedgerView(total, len({entry.customer_id for entry in entries}), ordered, lines)


def _describe(entry: LedgerEntry) -> tuple[str, str, str, str]:
    context = entry.attributes
    return entry.experience_key, context.get("moe_variation_id", ""), context.get("audience_name", ""), entry.action


def _measure(bars: Sequence[Bar]) -> None:
    """Set the lengths of the bars. The longest bar of all experiences is 100, so that they can be compared."""
    longest = max([1, *(max(bar.impressions, bar.clicks) for bar in bars)])
    for bar in bars:
        bar.impressions_length = round(100 * bar.impressions / longest, 2)
        bar.clicks_length = round(100 * bar.clicks / longest, 2)


def _build_line(entry: LedgerEntry, names: Mapping[str, str]) -> EventLine:
    """Return the line of one event, with the first characters of a long id."""
    customer_id = entry.customer_id
    return EventLine(
        time=datetime.fromtimestamp(entry.event_time, UTC),
        is_click=entry.action == Action.CLICKED.value,
        experience_key=entry.experience_key,
        variation=entry.attributes.get("moe_variation_id", ""),
        element=entry.element,
        visitor=names.get(customer_id) or (customer_id if len(customer_id) <= 12 else f"{customer_id[:11]}…"),
    )

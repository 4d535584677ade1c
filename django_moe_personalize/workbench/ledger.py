"""The ledger as a page shows it: impressions, clicks, click-through and conversion rates by variation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from django_moe_personalize.moengage.types import Action
from django_moe_personalize.sandbox.ledger import LedgerEntry

LATEST = 14
"""The number of events in the list of the latest events."""

KINDS = {Action.CLICKED.value: "Click"}
"""The words of the page for actions. The word for any other action is "Impression"."""


@dataclass(slots=True)
class Tally:
    """Impressions, clicks, the customers who saw something, and those who converted later."""

    impressions: int = 0
    clicks: int = 0
    seen: set[str] = field(default_factory=set)
    converted: set[str] = field(default_factory=set)

    def count(self, action: str, number: int) -> None:
        """Count events of one action."""
        self.impressions += number * (action == Action.SHOWN.value)
        self.clicks += number * (action == Action.CLICKED.value)

    @property
    def rate(self) -> float:
        """Return the click-through rate in percent."""
        return 100 * self.clicks / self.impressions if self.impressions else 0.0

    @property
    def conversion_rate(self) -> float:
        """Return the percentage of the customers who saw something and converted later."""
        return 100 * len(self.converted) / len(self.seen) if self.seen else 0.0


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
    kind: str
    experience_key: str
    variation: str
    element: str
    visitor: str


@dataclass(frozen=True, slots=True)
class LedgerView:
    """The content of the page."""

    total: Tally
    visitors: int
    conversions: Mapping[str, int]
    charts: Sequence[Chart]
    events: Sequence[EventLine]


def build_ledger(entries: Sequence[LedgerEntry], names: Mapping[str, str] | None = None) -> LedgerView:
    """Return the page for the entries of the ledger, oldest first. ``names`` has names of visitors by customer id."""
    total = Tally()
    charts: dict[str, Chart] = {}
    # The ledger may be long, so count equal events first.
    shown = [entry for entry in entries if not entry.is_conversion]
    for (key, variation, audience, action), number in Counter(map(_describe, shown)).items():
        chart = charts.setdefault(key, Chart(experience_key=key))
        bar = chart.bars.setdefault(variation, Bar(variation=variation, audience=audience))
        for tally in (total, chart, bar):
            tally.count(action, number)
    conversions = [entry for entry in entries if entry.is_conversion]
    _count_customers(shown, conversions, total, charts)
    ordered = sorted(charts.values(), key=lambda chart: chart.experience_key)
    for chart in ordered:
        chart.bars = dict(sorted(chart.bars.items(), key=lambda item: (len(item[0]), item[0])))
    _measure([bar for chart in ordered for bar in chart.bars.values()])
    lines = tuple(_build_line(entry, names or {}) for entry in reversed(entries[-LATEST:]))
    counts = dict(sorted(Counter(entry.action for entry in conversions).items()))
    return LedgerView(total, len({entry.customer_id for entry in entries}), counts, ordered, lines)


def _count_customers(
    shown: Sequence[LedgerEntry], conversions: Sequence[LedgerEntry], total: Tally, charts: Mapping[str, Chart]
) -> None:
    """Count who saw a variation, and who converted at the same time or later."""
    last: dict[str, int] = {}
    for entry in conversions:
        last[entry.customer_id] = max(entry.event_time, last.get(entry.customer_id, 0))
    for entry in shown:
        if entry.action == Action.SHOWN.value:
            chart, customer_id = charts[entry.experience_key], entry.customer_id
            for tally in (total, chart, chart.bars[entry.attributes.get("moe_variation_id", "")]):
                tally.seen.add(customer_id)
                if last.get(customer_id, -1) >= entry.event_time:
                    tally.converted.add(customer_id)


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
        kind="Conversion" if entry.is_conversion else KINDS.get(entry.action, "Impression"),
        experience_key=entry.action if entry.is_conversion else entry.experience_key,
        variation=entry.attributes.get("moe_variation_id", ""),
        element=entry.element,
        visitor=names.get(customer_id) or (customer_id if len(customer_id) <= 12 else f"{customer_id[:11]}…"),
    )

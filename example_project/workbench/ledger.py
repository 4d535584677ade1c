"""The ledger's page: impressions, clicks and click-through rate by experience and variation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from shop.people import PEOPLE

CLICKED = "MOE_PERSONALIZATION_MESSAGE_CLICKED"
SHOWN = "MOE_PERSONALIZATION_MESSAGE_SHOWN"
LAST = 14


@dataclass(slots=True)
class Tally:
    """Impressions and clicks."""

    impressions: int = 0
    clicks: int = 0

    def count(self, action: str) -> None:
        """Count one event."""
        self.impressions += action == SHOWN
        self.clicks += action == CLICKED

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
    """All that the page shows."""

    total: Tally
    visitors: int
    charts: Sequence[Chart]
    events: Sequence[EventLine]


def build_ledger(events: Sequence[Mapping[str, Any]]) -> LedgerView:
    """Return the page for ``events``, the ledger's entries, oldest first."""
    total = Tally()
    charts: dict[str, Chart] = {}
    for event in events:
        key, context = event["experience_key"], event["attributes"]
        chart = charts.setdefault(key, Chart(experience_key=key))
        variation = str(context.get("moe_variation_id", ""))
        bar = chart.bars.setdefault(variation, Bar(variation=variation, audience=str(context.get("audience_name", ""))))
        for tally in (total, chart, bar):
            tally.count(event["action"])
    ordered = sorted(charts.values(), key=lambda chart: chart.experience_key)
    for chart in ordered:
        chart.bars = dict(sorted(chart.bars.items(), key=lambda item: (len(item[0]), item[0])))
    measure([bar for chart in ordered for bar in chart.bars.values()])
    lines = tuple(build_line(event) for event in reversed(events[-LAST:]))
    return LedgerView(total, len({event["customer_id"] for event in events}), ordered, lines)


def measure(bars: Iterable[Bar]) -> None:
    """Set the lengths of the bars. The longest bar of all experiences is 100, so that they can be compared."""
    bars = list(bars)
    longest = max((max(bar.impressions, bar.clicks) for bar in bars), default=1)
    for bar in bars:
        bar.impressions_length = round(100 * bar.impressions / longest, 2)
        bar.clicks_length = round(100 * bar.clicks / longest, 2)


def build_line(event: Mapping[str, Any]) -> EventLine:
    """Return the line of one event; the id of an anonymous visitor is shortened."""
    customer_id = event["customer_id"]
    known = {str(person.pk): person.name for person in PEOPLE}
    visitor = known.get(customer_id) or (customer_id if len(customer_id) <= 12 else f"{customer_id[:11]}…")
    return EventLine(
        time=datetime.fromtimestamp(event["event_time"], UTC),
        is_click=event["action"] == CLICKED,
        experience_key=event["experience_key"],
        variation=str(event["attributes"].get("moe_variation_id", "")),
        element=event["element"],
        visitor=visitor,
    )

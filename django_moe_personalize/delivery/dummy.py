"""Keep events in memory and send nothing. For a site's tests."""

from __future__ import annotations

from collections.abc import Sequence

from django_moe_personalize.delivery.base import BaseDelivery
from django_moe_personalize.moengage.types import Event


class DummyDelivery(BaseDelivery):
    """Keep the recorded events in the list ``events``, oldest first, and count them as delivered."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def take(self, events: Sequence[Event]) -> None:
        """Keep the events."""
        self.events.extend(events)
        self.count_delivered(len(events))

    async def arecord(self, events: Sequence[Event]) -> None:
        """See record()."""
        self.record(events)

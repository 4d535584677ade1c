"""Deliver nothing and remember everything: for the tests of a site."""

from __future__ import annotations

from collections.abc import Sequence

from django_moe_personalize.delivery.base import BaseDelivery
from django_moe_personalize.moengage.types import Event


class DummyDelivery(BaseDelivery):
    """Keep events in ``events``, in the order they were recorded, and count them as delivered."""

    def after_fork(self) -> None:
        """Start with no events."""
        super().after_fork()
        self.events: list[Event] = []

    def take(self, events: Sequence[Event]) -> None:
        """Remember the events."""
        self.events.extend(events)
        self.deliver(len(events))

    async def arecord(self, events: Sequence[Event]) -> None:
        """See record()."""
        self.record(events)

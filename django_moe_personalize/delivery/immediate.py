"""Send events in the calling thread. For shells, scripts and tests, not for pages."""

from __future__ import annotations

from collections.abc import Sequence

from django_moe_personalize.delivery.base import BaseDelivery
from django_moe_personalize.moengage.types import Event


class ImmediateDelivery(BaseDelivery):
    """Send events while the caller waits. A call takes at most ``timeout`` seconds. A failed event is lost."""

    def __init__(self, *, timeout: float = 5.0) -> None:
        super().__init__()
        self._timeout = timeout

    def take(self, events: Sequence[Event]) -> None:
        """Send the events. Drop an event that can't be delivered as ``failed``."""
        outcome = self.send(events, timeout=self._timeout)
        self.count_outcome(outcome)
        self.count_dropped(len(outcome.kept), "failed")

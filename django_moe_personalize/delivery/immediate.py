"""Deliver in the calling thread: for shells, scripts and tests, not for pages."""

from __future__ import annotations

from collections.abc import Sequence

from django_moe_personalize.delivery.base import BaseDelivery
from django_moe_personalize.moengage.types import Event


class ImmediateDelivery(BaseDelivery):
    """Send events while the caller waits, at most ``timeout`` seconds a call; nothing is kept or retried."""

    def __init__(self, *, timeout: float = 5.0) -> None:
        super().__init__()
        self._timeout = timeout

    def take(self, events: Sequence[Event]) -> None:
        """Send the events; what could not be delivered is dropped as ``failed``."""
        outcome = self.send(events, timeout=self._timeout)
        self.settle(outcome)
        if outcome.kept:
            self.drop(len(outcome.kept), "failed")

"""Keep conversions apart from the other events: the Data API may fail alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from django_moe_personalize.delivery.base import BaseDelivery, DeliveryCounts
from django_moe_personalize.moengage.types import Event


class TwofoldDelivery(BaseDelivery):
    """A delivery with another delivery of its kind, ``second``, for conversions. Both together are one delivery."""

    second: Any = None
    build_second: Callable[[], BaseDelivery]
    _changed: threading.Condition

    def record_conversions(self, conversions: Sequence[Event]) -> None:
        """See BaseDelivery.record_conversions()."""
        with self._changed:
            if self.second is None:
                self.second = self.build_second()
                self.second.runtime = self.runtime
        self.second.record(conversions)

    def counts(self) -> DeliveryCounts:
        """See BaseDelivery.counts()."""
        own = super().counts()
        return own if self.second is None else own + self.second.counts()

    def find_oldest(self) -> float | None:
        """See BaseDelivery.find_oldest()."""
        return None if self.second is None else self.second.find_oldest()

    def erase(self, customer_id: str) -> int:
        """See BaseDelivery.erase()."""
        return 0 if self.second is None else self.second.erase(customer_id)

    def close(self) -> None:
        """See BaseDelivery.close()."""
        if self.second is not None:
            self.second.close()

"""Signals that a site can receive. No signal contains a credential, an attribute or an identifier.

Two signals have the page's request: ``experience_shown`` and ``experience_clicked``.
"""

from __future__ import annotations

from typing import Any, Final

from django.dispatch import Signal

EXPOSURE_SIGNALS: Final[set[Signal]] = set()
"""The exposure signals that ever had a receiver. Most sites have none. To ask both signals takes 4 bytecodes more."""


class ExposureSignal(Signal):
    """A signal that many pages send. The sender logs a receiver's exception once, and Django doesn't log it."""

    def connect(self, *args: Any, **kwargs: Any) -> None:
        """See Signal.connect()."""
        super().connect(*args, **kwargs)
        EXPOSURE_SIGNALS.add(self)

    def _log_robust_failure(self, receiver: object, err: Exception) -> None:
        """Log nothing. See tracking.exposures."""


fetch_failed = Signal()
"""A page got no response from MoEngage. Arguments: ``error`` (an APIError), ``experience_keys`` (the keys for which the
page shows the fallback; empty if the page shows stale content for all keys)."""

events_delivered = Signal()
"""MoEngage accepted events. Arguments: ``count``."""

events_dropped = Signal()
"""The package dropped events. Arguments: ``count``, ``reason`` (a short name in snake_case)."""

breaker_changed = Signal()
"""The circuit breaker of this process changed its state. Arguments: ``old`` and ``new`` (each ``closed``, ``open`` or
``half-open``), ``reason``."""

impressions_missing = Signal()
"""Many pages rendered an experience, but its impressions aren't counted, or no event is delivered. Arguments:
``experience_key``, ``rendered`` (how many pages in this process rendered the experience)."""

experience_shown = ExposureSignal()
"""The package counted an impression. Arguments: ``request`` (``None`` for a call of ``api``), ``experience_key``,
``variation_id``, ``audience`` (its name), ``offering`` (the ids of the shown offerings, with commas between them, or
``None``), ``event_uuid``. The sender is ``Experience``."""

experience_clicked = ExposureSignal()
"""The package counted a click. Arguments: as for experience_shown. ``offering`` is the id of the clicked offering."""

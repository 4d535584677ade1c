"""Signals a site may listen to. None carries a credential, an attribute or an identifier."""

from __future__ import annotations

from django.dispatch import Signal

fetch_failed = Signal()
"""MoEngage did not answer a page. Arguments: ``error`` (an APIError), ``experience_keys``: those that show
their defaults, none where stale content stood in."""

events_delivered = Signal()
"""MoEngage took events. Arguments: ``count``."""

events_dropped = Signal()
"""Events were given up. Arguments: ``count``, ``reason`` (a short snake_case word)."""

breaker_changed = Signal()
"""The circuit breaker of this process changed its state. Arguments: ``old`` and ``new`` (``closed``, ``open`` or
``half-open``), ``reason``."""

impressions_missing = Signal()
"""An experience was rendered on many pages and none of them was counted, or none of its events is delivered.
Arguments: ``experience_key``, ``rendered``: on how many pages of this process."""

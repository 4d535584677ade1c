"""Signals that a site can receive. No signal contains a credential, an attribute or an identifier."""

from __future__ import annotations

from django.dispatch import Signal

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

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

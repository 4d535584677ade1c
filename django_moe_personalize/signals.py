"""Signals for the site's receivers. No signal contains a credential, an attribute or an identifier."""

from __future__ import annotations

from django.dispatch import Signal

fetch_failed = Signal()
"""A page got no response from MoEngage. Arguments: ``error`` (an APIError), ``experience_keys`` (the experiences that
show their fallback; empty if stale content replaced them all)."""

events_delivered = Signal()
"""MoEngage accepted events. Arguments: ``count``."""

events_dropped = Signal()
"""Events were dropped. Arguments: ``count``, ``reason`` (a short word in snake_case)."""

breaker_changed = Signal()
"""The circuit breaker of this process changed its state. Arguments: ``old`` and ``new`` (``closed``, ``open`` or
``half-open``), ``reason``."""

impressions_missing = Signal()
"""Many pages rendered an experience, but no impression of it was counted, or no event is delivered. Arguments:
``experience_key``, ``rendered`` (the number of pages in this process)."""

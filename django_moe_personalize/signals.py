"""Signals a site may listen to. None carries a credential, an attribute or an identifier."""

from __future__ import annotations

from django.dispatch import Signal

fetch_failed = Signal()
"""A page's fetch gave nothing. Arguments: ``error`` (an APIError), ``experience_keys``."""

events_delivered = Signal()
"""MoEngage took events. Arguments: ``count``."""

events_dropped = Signal()
"""Events were given up. Arguments: ``count``, ``reason`` (a short snake_case word)."""

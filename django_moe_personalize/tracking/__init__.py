"""Tracking: turn impressions and clicks into events for the delivery, and into tokens for the browser.

``page`` collects what one page shows, decides whether it counts, and builds the events. ``tokens`` signs and reads
the tokens with which the browser reports. ``watchdog`` logs an error if pages show experiences and no impressions are
recorded.
"""

from django_moe_personalize.tracking.page import (
    PageTracker,
    arecord,
    build_event,
    build_offering_impressions,
    is_counted,
    record,
    record_when_streamed,
)
from django_moe_personalize.tracking.tokens import Token, read_token

__all__ = [
    "PageTracker",
    "Token",
    "arecord",
    "build_event",
    "build_offering_impressions",
    "is_counted",
    "read_token",
    "record",
    "record_when_streamed",
]

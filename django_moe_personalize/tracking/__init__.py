"""Tracking: turn impressions and clicks into events for the delivery, and into tokens for the browser.

``page`` collects the impressions and clicks of one page, and builds their events. It has the list of robots, which
don't count.
``tokens`` signs and reads the tokens with which the browser reports. ``watchdog`` logs an error if pages show
experiences but no impression is recorded.
"""

from django_moe_personalize.tracking.page import (
    PREVIEW_MARKS,
    PageTracker,
    arecord,
    build_event,
    build_offering_impressions,
    is_counted,
    is_preview,
    note_new_id,
    record,
    record_when_streamed,
)
from django_moe_personalize.tracking.tokens import Token, read_token

__all__ = [
    "PREVIEW_MARKS",
    "PageTracker",
    "Token",
    "arecord",
    "build_event",
    "build_offering_impressions",
    "is_counted",
    "is_preview",
    "note_new_id",
    "read_token",
    "record",
    "record_when_streamed",
]

"""Tracking: impressions and clicks become events, or signed tokens from which the browser's report becomes one.

``page`` collects what one page shows, ``tokens`` has the signed tokens, ``watchdog`` notices when nothing is counted.
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

"""Tracking: turn impressions and clicks into events for the delivery, and into tokens for the browser.

``page`` collects the impressions and clicks of one page and builds their events. ``persons`` decides which requests
count: those of persons. ``tokens`` signs and reads the tokens with which the browser reports. ``marks`` puts them into
the page's HTML. ``watchdog`` logs an error if pages show experiences but no impression is recorded. ``leaks`` finds
another page view's tokens in a response. ``exposures`` sends the signals of counted events. ``conversions``
reports events of the site's own.
"""

from django_moe_personalize.tracking.conversions import arecord_conversions, may_convert, record_conversions
from django_moe_personalize.tracking.leaks import find_leak
from django_moe_personalize.tracking.page import (
    PageTracker,
    arecord,
    build_event,
    build_offering_impressions,
    note_new_id,
    record,
    record_when_streamed,
)
from django_moe_personalize.tracking.persons import (
    PREVIEW_MARKS,
    SPECULATIVE_HEADERS,
    is_counted,
    is_muted,
    is_preview,
    is_robot,
    is_speculative,
)
from django_moe_personalize.tracking.tokens import Token, draw_stamp, read_token

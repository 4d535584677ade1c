"""MoEngage's clock, as far as the Date headers of its responses show it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

from django_moe_personalize.resilience import monotonic

MAX_SKEW: Final = 24 * 60 * 60
"""A larger difference in seconds counts as a mistake of the server or of a proxy."""


class VendorClock:
    """Compare this machine's clock with MoEngage's clock.

    Between two responses, a monotonic clock counts the time. So a correction of this machine's clock changes nothing.
    """

    __slots__ = ("_bounds",)

    def __init__(self) -> None:
        # MoEngage's time minus that of the monotonic clock: at least, and at most. The Date header has whole seconds.
        self._bounds: tuple[float, float] | None = None

    @property
    def skew(self) -> float:
        """How many seconds this machine's clock is ahead, or a negative number if it's behind. 0.0 if it's right."""
        if self._bounds is None:
            return 0.0
        ours, theirs = time.time(), monotonic()
        least, most = self._bounds
        return 0.0 if theirs + least <= ours <= theirs + most else ours - theirs - least

    def now(self) -> int:
        """Return MoEngage's time in Unix seconds. It may be up to a second early, but is never in MoEngage's future."""
        return int(time.time() - self.skew)

    def learn(self, headers: Mapping[str, str], sent_at: float) -> None:
        """Learn from the headers of a response. ``sent_at`` is the time of the request, by the monotonic clock."""
        if headers.get("age", "0") != "0":
            # A cache sent this response, maybe long after MoEngage made it.
            return
        try:
            date = parsedate_to_datetime(headers.get("date", "")).timestamp()
        except (ValueError, OverflowError, OSError):
            return
        if abs(time.time() - date) > MAX_SKEW:
            return
        least, most = date - monotonic(), date + 1.0 - sent_at
        # Bounds that may still be right stay, so that the times of events stay in order.
        if self._bounds is None or least > self._bounds[1] or most < self._bounds[0]:
            self._bounds = least, most

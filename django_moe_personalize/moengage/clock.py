"""MoEngage's clock, as far as the Date headers of its responses show it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

MAX_SKEW: Final = 24 * 60 * 60
"""A larger difference in seconds counts as a mistake of the server or of a proxy."""


class VendorClock:
    """Compare this machine's clock with MoEngage's clock. Thread-safe.

    ``skew`` is how many seconds this machine is ahead, or a negative number if it's behind. Without evidence of a
    difference, ``skew`` is 0.0.
    """

    __slots__ = ("skew",)

    def __init__(self) -> None:
        self.skew = 0.0

    def now(self) -> int:
        """Return MoEngage's time in Unix seconds. It may be up to a second early, but never in MoEngage's future."""
        return int(time.time() - self.skew)

    def learn(self, headers: Mapping[str, str], sent_at: float) -> None:
        """Learn from the headers of a response. ``sent_at`` is the time before the request, by this machine's clock."""
        if headers.get("age", "0") != "0":
            # A cache sent this response, maybe long after MoEngage made it.
            return
        try:
            date = parsedate_to_datetime(headers.get("date", "")).timestamp()
        except (ValueError, OverflowError, OSError):
            return
        # MoEngage's clock showed ``date``, or a fraction of a second more, at some time during the call.
        least, most = sent_at - date - 1.0, time.time() - date
        if least <= self.skew <= most:
            # The skew doesn't change with each response, so that the times of events stay in order.
            return
        skew = 0.0 if least <= 0.0 <= most else most
        if abs(skew) <= MAX_SKEW:
            self.skew = skew

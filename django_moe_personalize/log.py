"""The logger of the package, and the lines about the start and the end of an outage.

In ``LOGGING``, the name of the logger is ``django_moe_personalize``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger("django_moe_personalize")

CREDENTIALS_FIX = "Check WORKSPACE_ID, API_KEY and DATA_CENTER."
DOCTOR_FIX = "Run `manage.py moe_doctor` to find the cause."

MIN_PAUSE = 30.0
MAX_PAUSE = 960.0
"""The seconds between two outages that are logged. The pause doubles while outages follow each other."""


class Outage:
    """Log when something begins to fail, with the cause, and when it works again. Count the failures in between.

    ``failing`` and ``working`` are the first words of the two lines. The lines have the same level, at least WARNING,
    because Python's default logging shows no lower level.

    If outages follow each other quickly, only some of them are logged. But an outage that lasts for MIN_PAUSE is always
    logged, and a logged outage always has both lines. Thread-safe.
    """

    def __init__(self, failing: str, working: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._failing = failing
        self._working = working
        self._clock = clock
        # Reentrant: a signal handler may interrupt a thread that holds the lock, and fail too.
        self._lock = threading.RLock()
        self._advice: set[str] = set()
        self._began = self._not_before = float("-inf")
        self._pause = MIN_PAUSE
        self._level = logging.WARNING
        self._failed = self._skipped = self._hidden = 0
        self.is_on = False
        """Whether the last call failed."""

    def fail(self, cause: str, advice: str, level: int = logging.WARNING) -> None:
        """Count a failed call. Log the first failure of an outage, and each failure with another ``advice``."""
        with self._lock:
            if not self.is_on:
                self.is_on = True
                self._began = self._clock()
                self._advice = set()
                self._failed = self._skipped = 0
            self._failed += 1
            if advice in self._advice or not self._may_log():
                return
            another = " for another reason" if self._advice else ""
            hidden = f" {self._hidden:,} short failures before this one weren't logged." if self._hidden else ""
            self._level = level
            self._advice.add(advice)
            self._hidden = 0
        logger.log(level, "%s%s (%s). %s%s", self._failing, another, cause, advice, hidden)

    def skip(self) -> None:
        """Count a call that wasn't made because of the failures before it."""
        with self._lock:
            self._skipped += 1

    def end(self) -> None:
        """Log the end of the outage, if there is an outage. Call this method after each success."""
        # Without the lock, because most calls succeed.
        if not self.is_on:
            return
        with self._lock:
            is_logged = self.is_on and bool(self._advice)
            self._hidden += self.is_on and not is_logged
            self.is_on = False
            took = self._clock() - self._began
            counts = f"{self._failed:,} failed" + (f", {self._skipped:,} not made" if self._skipped else "")
        if is_logged:
            lasted = f"{took:.0f} s" if took < 120 else f"{took / 60:.0f} minutes"
            logger.log(self._level, "%s after %s (%s).", self._working, lasted, counts)

    def _may_log(self) -> bool:
        """Return whether to log a failure now. If so, decide when the next outage may be logged."""
        now = self._clock()
        if self._advice:
            return True
        if now < self._not_before and now - self._began < MIN_PAUSE:
            return False
        follows = now < self._not_before + self._pause
        self._pause = min(MAX_PAUSE, self._pause * 2) if follows else MIN_PAUSE
        self._not_before = now + self._pause
        return True

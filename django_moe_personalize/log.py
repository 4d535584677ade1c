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
DATA_CREDENTIALS_FIX = "Check DATA_API_KEY, WORKSPACE_ID and DATA_CENTER."
DOCTOR_FIX = "Run `manage.py moe_doctor` to find the cause."
PROXY_FIX = "Check the proxy in TRANSPORT, or in the environment if `trust_env` is on."

LASTING = 30.0
"""The seconds after which an outage is always logged."""

BURST = 3
REFILL = 120.0
"""Of outages in quick succession, the first BURST are logged, and then one in REFILL seconds."""


class Outage:
    """Log when something begins to fail, with the cause, and when it works again. Count the failures in between.

    ``part`` is the field ``moe_part`` of the two lines. ``failing`` and ``working`` are their first words. Both lines
    have the same level, at least WARNING, because Python's default logging shows no lower level.

    If outages follow each other quickly, only some of them are logged: see BURST and REFILL. But an outage that lasts
    is always logged, and a logged outage always has both lines. Thread-safe.
    """

    def __init__(
        self, failing: str, working: str, *, part: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._part = part
        self._failing = failing
        self._working = working
        self._clock = clock
        # Reentrant: a signal handler may interrupt a thread that holds the lock, and fail too.
        self._lock = threading.RLock()
        self._advice: set[str] = set()
        self._began = self._refilled = clock()
        self._credit = float(BURST)
        self._level = logging.WARNING
        self._failed = self._skipped = self._hidden = 0
        self.is_on = False
        """Whether the last call failed."""

    def fail(self, cause: str, advice: str, level: int = logging.WARNING, *, count: int = 1) -> None:
        """Count failed calls. Log the first failure of an outage, and each failure with another ``advice``."""
        with self._lock:
            if not self.is_on:
                self.is_on = True
                self._began = self._clock()
                self._advice = set()
                self._failed = self._skipped = 0
            self._failed += count
            if advice in self._advice or not self._may_log():
                return
            another = " for another reason" if self._advice else ""
            fields = {
                "moe_event": "outage_cause" if self._advice else "outage_start",
                "moe_part": self._part,
                "moe_cause": cause,
                "moe_fix": advice,
                "moe_hidden": self._hidden,
            }
            hidden = f" {self._hidden:,} short failures before this one weren't logged." if self._hidden else ""
            self._level = level
            self._advice.add(advice)
            self._hidden = 0
        logger.log(level, "%s%s (%s). %s%s", self._failing, another, cause, advice, hidden, extra=fields)

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
            fields = {
                "moe_event": "outage_end",
                "moe_part": self._part,
                "moe_seconds": took,
                "moe_failed": self._failed,
                "moe_not_made": self._skipped,
            }
            counts = f"{self._failed:,} failed" + (f", {self._skipped:,} not made" if self._skipped else "")
        if is_logged:
            lasted = f"{took:.0f} s" if took < 120 else f"{took / 60:.0f} minutes"
            logger.log(self._level, "%s after %s (%s).", self._working, lasted, counts, extra=fields)

    def _may_log(self) -> bool:
        """Return whether to log the failure that has just happened."""
        if self._advice:
            return True
        now = self._clock()
        self._credit = min(BURST, self._credit + (now - self._refilled) / REFILL)
        self._refilled = now
        if self._credit < 1 and now - self._began < LASTING:
            return False
        self._credit = max(0.0, self._credit - 1)
        return True

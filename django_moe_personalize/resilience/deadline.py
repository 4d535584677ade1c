"""How long a call may take, and how long to wait before the next try."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

MAX_GATE_SECONDS = 300.0
"""The longest time for which a rate limit stops this process, however long its Retry-After is."""


class Deadline:
    """The moment on a monotonic clock by which a call must be over; ``None`` seconds for no deadline.

    All steps of a call share one deadline, and each step waits at most ``remaining()`` seconds.
    """

    __slots__ = ("_at", "_clock")

    def __init__(self, seconds: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = None if seconds is None else clock() + seconds

    def remaining(self) -> float | None:
        """Return the seconds left, at least 0.0; ``None`` without a deadline."""
        return None if self._at is None else max(0.0, self._at - self._clock())

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self._at is not None and self._clock() >= self._at


class Backoff:
    """Waits that double from ``base`` to ``maximum`` seconds, with full jitter.

    Full jitter, a uniform draw between 0 and the ceiling, spreads the retries of many processes best:
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    def __init__(self, base: float = 0.5, maximum: float = 60.0, *, draw: Callable[[], float] = random.random) -> None:
        self._base = base
        self._maximum = maximum
        self._draw = draw

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait before retry number ``attempt``, counted from 0."""
        return self._draw() * min(self._maximum, self._base * 2.0 ** min(attempt, 32))

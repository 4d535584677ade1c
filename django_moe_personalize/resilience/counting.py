"""Count recent events in constant memory."""

from __future__ import annotations

from collections import deque


class SlidingCount:
    """Count the events of the last ``seconds`` in constant memory. Not thread-safe: its owner holds a lock.

    Time is divided into slots of ``seconds / slots``. The total covers the current slot and the ``slots`` slots
    before it: all events of the last ``seconds``, and those of up to one slot more.
    """

    __slots__ = ("_counts", "_slots", "_total", "_width")

    def __init__(self, seconds: float, *, slots: int = 10) -> None:
        self._width = seconds / slots
        self._slots = slots
        self.clear()

    def clear(self) -> None:
        """Count from 0 again."""
        self._counts: deque[list[int]] = deque()
        self._total = 0

    def add(self, now: float, amount: int = 1) -> None:
        """Count ``amount`` events at ``now``, in seconds on a monotonic clock."""
        slot = int(now // self._width)
        counts = self._counts
        if not counts or counts[-1][0] != slot:
            self._expire(slot)
            counts.append([slot, 0])
        counts[-1][1] += amount
        self._total += amount

    def total(self, now: float) -> int:
        """Return the number of events in the last ``seconds`` before ``now``."""
        self._expire(int(now // self._width))
        return self._total

    def _expire(self, slot: int) -> None:
        counts = self._counts
        while counts and counts[0][0] < slot - self._slots:
            self._total -= counts.popleft()[1]

"""The governor: keep all processes of a workspace together within its requests a minute. No Django."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from django_moe_personalize.resilience import SlidingCount, renew_after_fork

MINUTE = 60.0

SLOT_SECONDS = 5.0
"""How long a slot of the shared count is. Any minute touches at most 13 of them, so each has a thirteenth of
the limit: 92 % of it can be used evenly, and 8 % at once. Longer slots take larger bursts and less in all."""

SLOTS = int(MINUTE / SLOT_SECONDS) + 1

SharedCount = Callable[[str, int, float], int | None]


def name_slot(slot: int) -> str:
    """Return the name under which all processes count a slot; ``slot`` is Unix time in SLOT_SECONDS."""
    return f"governor:{slot}"


class _Lease:
    """What the shared count has granted this process in one slot."""

    __slots__ = ("alone", "left", "slot", "spent", "spent_before", "total")

    def __init__(self, slot: int, spent_before: int) -> None:
        self.slot = slot
        self.left = 0
        self.spent = 0
        self.spent_before = spent_before
        self.total = 0
        self.alone = False

    def find_amount(self, need: int, slot_limit: int) -> int:
        """Return how much to borrow at once, 0 when nothing is left for anyone.

        Half of what the process needed lately, so that one in need of little holds little back from
        the others, and a sixteenth of what is left, so that all get some of the last of it.
        """
        remaining = slot_limit - self.total
        return remaining and max(need, min(max(self.spent, self.spent_before) // 2, remaining // 16))

    def receive(self, amount: int, total: int | None, slot_limit: int) -> None:
        """Take in the answer of the shared count to ``amount`` more."""
        if total is None:
            self.alone = True
            return
        self.left += max(0, min(amount, slot_limit - (total - amount)))
        # Answers may overtake each other.
        self.total = max(self.total, min(total, slot_limit))


class Governor:
    """Say of each request whether it is within a limit of so many a minute.

    By itself it counts in this process: no more than ``limit_per_minute`` go through in any 60
    seconds, though all of them at once if need be.

    ``add(key, amount, timeout)`` counts for all processes: it adds ``amount`` to the number under
    ``key``, atomically and starting from 0, keeps it for ``timeout`` seconds at least, and returns
    the sum; ``None`` when it could not. Then all governors that share it let no more than
    ``limit_per_minute`` through in any 60 seconds, together, by when ``take`` was called and as far
    as their wall clocks agree (clocks less than SLOT_SECONDS apart: a thirteenth more at most).
    It is asked without a lock, for many requests at a time; what a process borrowed and did not
    use in its slot is lost. While it returns ``None`` a process counts by itself, asking again in
    each slot, so n processes may then reach n times the limit.

    Raises ValueError for a limit too small to be shared out.
    """

    def __init__(
        self,
        limit_per_minute: int,
        *,
        add: SharedCount | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if limit_per_minute < SLOTS:
            raise ValueError(f"limit_per_minute must be at least {SLOTS}, not {limit_per_minute}")
        self._limit = limit_per_minute
        self._slot_limit = limit_per_minute // SLOTS
        self._add = add
        self._clock = clock
        self._wall_clock = wall_clock
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Start with nothing counted and nothing borrowed: that is the parent's."""
        self._lock = threading.Lock()
        self._count = SlidingCount(MINUTE, slots=60)
        self._lease = _Lease(-1, 0)

    @property
    def used(self) -> int:
        """How many requests this process has let through in the last minute."""
        with self._lock:
            return self._count.total(self._clock())

    def take(self, count: int = 1) -> bool:
        """Return whether ``count`` requests may go out now, all or none; if so they are counted."""
        add = self._add
        if add is None:
            with self._lock:
                return self._spend(None, count)
        with self._lock:
            lease = self._renew_lease()
            amount = self._find_amount(lease, count)
            if not amount:
                return self._spend(lease, count)
        # Without the lock: a cache that is slow holds up this caller alone.
        total = add(name_slot(lease.slot), amount, MINUTE)
        with self._lock:
            lease.receive(amount, total, self._slot_limit)
            return self._spend(lease, count)

    def _renew_lease(self) -> _Lease:
        slot = int(self._wall_clock() // SLOT_SECONDS)
        if slot != self._lease.slot:
            self._lease = _Lease(slot, self._lease.spent)
        return self._lease

    def _find_amount(self, lease: _Lease, count: int) -> int:
        need = count - lease.left
        if lease.alone or need <= 0 or self._count.total(self._clock()) + count > self._limit:
            return 0
        return lease.find_amount(need, self._slot_limit)

    def _spend(self, lease: _Lease | None, count: int) -> bool:
        now = self._clock()
        if self._count.total(now) + count > self._limit:
            return False
        if lease is not None and not lease.alone:
            if lease.left < count:
                return False
            lease.left -= count
            lease.spent += count
        self._count.add(now, count)
        return True

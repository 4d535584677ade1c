"""The circuit breaker: stop asking an upstream that is not well, and probe it beside the pages. No Django."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Literal

from django_moe_personalize.resilience.counting import SlidingCount
from django_moe_personalize.resilience.deadline import MAX_GATE_SECONDS

BreakerState = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    """Stop asking an upstream that keeps failing, and find out cheaply when it is back.

    ``closed``: everyone may ask. It opens at a failure that is the ``failure_threshold``-th in a
    row, or that makes ``failure_rate`` of at least ``rate_calls`` calls in the last
    ``rate_seconds`` (and up to a tenth more): an upstream that answers every other call costs
    pages their deadline, and never fails often enough in a row.
    ``open``: nobody may ask, for between a half and the whole of ``open_seconds``, doubled for
    every probe that failed, up to ``max_open_seconds``. Then ``claim_probe`` gives one caller, who
    no page waits for, a ticket: ``half-open``. The probe's success closes the breaker, its failure
    opens it again; one not reported on for ``probe_seconds``, longer than any call lasts, is given
    up for another.
    A rate limit opens it too, behind a gate that is over when its time is: no probe needed.

    ``on_change(old, new, reason)`` is called outside the lock, in the thread that caused the change.
    """

    def __init__(
        self,
        *,
        failure_threshold: int = 5,
        failure_rate: float = 0.5,
        rate_calls: int = 20,
        rate_seconds: float = 30.0,
        open_seconds: float = 5.0,
        max_open_seconds: float = 60.0,
        probe_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
        on_change: Callable[[str, str, str], None] | None = None,
    ) -> None:
        self._threshold = failure_threshold
        self._rate = failure_rate
        self._rate_calls = rate_calls
        self._rate_seconds = rate_seconds
        self._open_seconds = open_seconds
        self._max_open_seconds = max_open_seconds
        self._probe_seconds = probe_seconds
        self._clock = clock
        self._draw = draw
        self._on_change = on_change
        self._tickets = 0
        self._gate_until = float("-inf")
        self._gate_reason = ""
        self._lock = threading.Lock()
        self._calls = SlidingCount(self._rate_seconds)
        self._failed_calls = SlidingCount(self._rate_seconds)
        self._in_a_row = self._failed_probes = self._probe = 0
        self._until = float("-inf")
        self._cause = self._reason = ""
        # Opened by failures, so that a probe must be answered before anyone else may ask.
        self._tripped = False
        self._state: BreakerState = "closed"
        self._settle(self._clock())

    @property
    def state(self) -> BreakerState:
        """The state as of the last call: ``closed``, ``open`` or ``half-open``."""
        return self._state

    @property
    def reason(self) -> str:
        """Why it is not closed, as "5 failures in a row, then 1 failed probe" or "rate limited for 30 s"; else ""."""
        return self._reason

    @property
    def retry_in(self) -> float:
        """Seconds until the next may ask: a probe, or anyone after a rate limit. 0.0 when closed or due.

        In ``half-open`` it is the time after which the probe that is out is given up.
        """
        with self._lock:
            return 0.0 if self._state == "closed" else max(0.0, self._find_due() - self._clock())

    def allow(self) -> bool:
        """Return whether the caller may ask now. It never makes the caller the probe, so a page may rely on it.

        Whoever was let through reports with ``success``, ``failure`` or ``close_gate``. Whoever was
        not shows what is stale, and may offer a worker that no page waits for to ``claim_probe``.
        """
        # Without the lock: a caller that reads this a moment early asks once too often, no more.
        if self._state == "closed":
            return True
        return self._clock() >= self._find_due() and self._pass_gate()

    def _pass_gate(self) -> bool:
        """Close again, unless a probe is due, and return whether it is closed."""
        with self._lock:
            old = self._state
            if not self._tripped:
                self._settle(self._clock())
            new = self._state
        self._announce(old, new, "the rate limit is over")
        return new == "closed"

    def claim_probe(self) -> int:
        """Return a ticket, above 0, to the one caller who may ask an upstream that failed; 0 to all others.

        The ticket goes into the report, ``success(ticket)`` and so on, or back with
        ``return_probe(ticket)`` when nothing was asked after all.
        """
        if not self._tripped or self._clock() < self._until:
            return 0
        with self._lock:
            now = self._clock()
            if not self._tripped or now < self._find_due():
                return 0
            old = self._state
            self._tickets += 1
            self._probe = ticket = self._tickets
            self._until = now + self._probe_seconds
            self._state = "half-open"
            reason = self._reason
        self._announce(old, "half-open", reason)
        return ticket

    def return_probe(self, ticket: int) -> None:
        """Give a ticket back unused: nothing was learned, and the next caller may have one at once. 0 is none."""
        with self._lock:
            if not ticket or ticket != self._probe:
                return
            self._probe = 0
            self._until = self._clock()
            self._state = "open"
            reason = self._reason
        self._announce("half-open", "open", reason)

    def success(self, ticket: int = 0) -> None:
        """Report an answer. Once the breaker has opened only the probe's, with its ticket, changes anything."""
        with self._lock:
            old = self._state
            self._accept(self._clock(), ticket)
            new, reason = self._state, self._reason
        self._announce(old, new, reason or "the probe was answered")

    def failure(self, ticket: int = 0) -> None:
        """Report that no usable answer came. Once the breaker has opened: see success()."""
        with self._lock:
            now = self._clock()
            old = self._state
            if ticket and ticket == self._probe:
                self._failed_probes += 1
                self._trip(now)
            elif old == "closed":
                self._in_a_row += 1
                self._calls.add(now)
                self._failed_calls.add(now)
                self._cause = self._find_cause(now)
                if self._cause:
                    self._trip(now)
            new, reason = self._state, self._reason
        self._announce(old, new, reason)

    def close_gate(self, seconds: float, ticket: int = 0) -> None:
        """Let nobody through for ``seconds``, at most MAX_GATE_SECONDS: the vendor's rate limit (contract §1).

        A rate limit is an answer of a living upstream, so it counts as a success besides.
        """
        seconds = min(seconds, MAX_GATE_SECONDS)
        with self._lock:
            now = self._clock()
            old = self._state
            if now + seconds > self._gate_until:
                self._gate_until = now + seconds
                self._gate_reason = f"rate limited for {seconds:.0f} s"
            self._accept(now, ticket)
            if not self._tripped:
                self._settle(now)
            new, reason = self._state, self._reason
        self._announce(old, new, reason or "the probe was answered")

    def _accept(self, now: float, ticket: int) -> None:
        """Count an answer that still says something."""
        if ticket and ticket == self._probe:
            self._recover(now)
        elif self._state == "closed":
            self._in_a_row = 0
            self._calls.add(now)

    def _trip(self, now: float) -> None:
        """Open for a failure, each time for twice as long until a probe is answered."""
        seconds = min(self._max_open_seconds, self._open_seconds * 2.0 ** min(self._failed_probes, 32))
        self._until = now + seconds * (1.0 - self._draw() / 2)
        self._probe = 0
        self._tripped = True
        self._state = "open"
        failed = self._failed_probes
        self._reason = self._cause + (f", then {failed} failed probe{'s' * (failed > 1)}" if failed else "")

    def _recover(self, now: float) -> None:
        """Forget all failures: what was counted is of an upstream that was not well."""
        self._calls.clear()
        self._failed_calls.clear()
        self._in_a_row = self._failed_probes = self._probe = 0
        self._until = float("-inf")
        self._cause = ""
        self._tripped = False
        self._settle(now)

    def _settle(self, now: float) -> None:
        """Where nothing has failed, only a rate limit stands in the way."""
        limited = now < self._gate_until
        self._state = "open" if limited else "closed"
        self._reason = self._gate_reason if limited else ""

    def _find_due(self) -> float:
        return max(self._until, self._gate_until)

    def _find_cause(self, now: float) -> str:
        """Return why the failures so far are too many, or nothing."""
        if self._in_a_row >= self._threshold:
            return f"{self._in_a_row} failure{'s' * (self._in_a_row > 1)} in a row"
        calls = self._calls.total(now)
        share = self._failed_calls.total(now) / calls
        if calls >= self._rate_calls and share >= self._rate:
            return f"{share * 100:.0f} % of {calls} calls failed"
        return ""

    def _announce(self, old: BreakerState, new: BreakerState, reason: str) -> None:
        if old != new and self._on_change is not None:
            self._on_change(old, new, reason)

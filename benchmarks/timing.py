"""Time several contenders in alternating blocks and compare medians, so that noise hits all of them alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from statistics import median, quantiles

_SHUFFLE = random.Random(20)


@dataclass
class Rounds:
    """The seconds of each contender, one value for each round."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Return the contender's median over the rounds."""
        return median(self.values[name])

    def compute(self, formula: Callable[[Mapping[str, float]], float]) -> list[float]:
        """Return ``formula`` of the values of each round, so that only neighboring blocks are compared."""
        rounds = zip(*self.values.values(), strict=True)
        return [formula(dict(zip(self.values, values, strict=True))) for values in rounds]

    def ratio(self, ours: str, baseline: str) -> list[float]:
        """Return ``ours`` divided by ``baseline`` for each round."""
        return self.compute(lambda of: of[ours] / of[baseline])


def describe(values: Sequence[float], digits: int = 3) -> str:
    """Return the middle half of the values as text; it shows how noisy the run was."""
    if len(values) < 4:
        return f"{len(values)} blocks: " + ", ".join(f"{value:.{digits}f}" for value in values)
    low, _, high = quantiles(values, n=4)
    return f"middle half of {len(values)} blocks {low:.{digits}f} to {high:.{digits}f}"


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    calls: int | None = None,
    seconds: float = 0.01,
    after: Callable[[str, int], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Return the seconds per call of each contender: one block of each in a round, in another order each round.

    A block has ``calls`` calls, or as many as take about ``seconds``. After each block ``after`` is called,
    outside the timing, with the contender's name and the number of calls. The garbage collector stays on,
    so code that makes reference cycles pays for them. ``clock=time.process_time`` leaves out the waiting.
    """
    numbers = {name: calls or _calibrate(call, seconds) for name, call in contenders.items()}
    found = Rounds({name: [] for name in contenders})
    order = list(contenders)
    # The first round is a warm-up and is not recorded.
    for turn in range(rounds + 1):
        _SHUFFLE.shuffle(order)
        for name in order:
            taken = time_block(contenders[name], numbers[name], clock)
            if after is not None:
                after(name, numbers[name])
            if turn:
                found.values[name].append(taken)
    return found


def time_block(call: Callable[[], object], calls: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the average seconds of ``calls`` calls."""
    started = clock()
    for _ in repeat(None, calls):
        call()
    return (clock() - started) / calls


def _calibrate(call: Callable[[], object], seconds: float) -> int:
    call()
    number, taken = 1, 0.0
    while (taken := time_block(call, number) * number) < seconds / 4 and number < 1_000_000:
        number *= 2
    return max(1, round(number * seconds / max(taken, 1e-9)))

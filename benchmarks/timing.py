"""Timing: alternating blocks and medians, so that a noisy machine is noisy for everybody alike."""

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
    """What each contender took, a value a round."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Return the contender's median over the rounds."""
        return median(self.values[name])

    def compute(self, formula: Callable[[Mapping[str, float]], float]) -> list[float]:
        """Return ``formula`` of the values of each round: what ran side by side is compared."""
        rounds = zip(*self.values.values(), strict=True)
        return [formula(dict(zip(self.values, values, strict=True))) for values in rounds]

    def ratio(self, ours: str, baseline: str) -> list[float]:
        """Return ``ours`` over ``baseline``, round by round."""
        return self.compute(lambda of: of[ours] / of[baseline])


def describe(values: Sequence[float], digits: int = 3) -> str:
    """Return the middle half of the values, which says how noisy the run was."""
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
) -> Rounds:
    """Return the seconds a call of each contender, a block each a round, in another order every round.

    A block is ``calls`` calls, or as many as take about ``seconds``. ``after`` is told, untimed,
    which contender's block is over and how many calls it had. The collector stays on: what makes
    cycles pays for them.
    """
    numbers = {name: calls or _calibrate(call, seconds) for name, call in contenders.items()}
    found = Rounds({name: [] for name in contenders})
    order = list(contenders)
    # The first round is a warm-up, of everything that alternation itself brings about.
    for turn in range(rounds + 1):
        _SHUFFLE.shuffle(order)
        for name in order:
            taken = time_block(contenders[name], numbers[name])
            if after is not None:
                after(name, numbers[name])
            if turn:
                found.values[name].append(taken)
    return found


def time_block(call: Callable[[], object], calls: int) -> float:
    """Return the seconds a call takes, over ``calls`` of them."""
    started = time.perf_counter()
    for _ in repeat(None, calls):
        call()
    return (time.perf_counter() - started) / calls


def _calibrate(call: Callable[[], object], seconds: float) -> int:
    call()
    number, taken = 1, 0.0
    while (taken := time_block(call, number) * number) < seconds / 4 and number < 1_000_000:
        number *= 2
    return max(1, round(number * seconds / max(taken, 1e-9)))

"""A goal, its figures, and how a script runs: one JSON object on stdout, a table on stderr, exit code 0.

A goal that is not reached is a result. A script that measured the wrong thing raises.
"""

from __future__ import annotations

import argparse
import compileall
import cProfile
import json
import math
import operator
import pstats
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_COMPARISONS = {"<=": operator.le, ">=": operator.ge}


class WrongMeasurement(AssertionError):
    """What was measured is not what the goal speaks of: wrong content, errors, no personalization."""


def expect(condition: object, message: str) -> None:
    """Raise WrongMeasurement unless ``condition`` holds; an ``assert`` would vanish under ``-O``."""
    if not condition:
        raise WrongMeasurement(message)


@dataclass(frozen=True, slots=True)
class Options:
    """How a script was asked to run."""

    quick: bool = False
    profile: bool = False
    functions: bool = False

    def pick(self, full: T, quick: T) -> T:
        """Return what is meant for this run."""
        return quick if self.quick else full


@dataclass(kw_only=True)
class Figure:
    """One measured figure of a goal, and what it is held against.

    ``baseline`` and ``ours`` are in ``unit``. ``ratio`` is what ``limit`` (``"<= 1.05"``) speaks of,
    unless ``difference`` is given: then that is, in ``unit``. ``ratio`` is the median of the ratios
    of adjacent blocks where there were blocks, so it may differ a little from ``ours / baseline``.
    ``profile`` repeats the measured block for a profiler. An unmeasured figure is not reached.
    """

    what: str
    baseline: float
    ours: float
    limit: str
    unit: str
    ratio: float | None = None
    difference: float | None = None
    notes: list[str] = field(default_factory=list)
    context: dict[str, float] = field(default_factory=dict)
    profile: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        if self.ratio is None and self.baseline:
            self.ratio = self.ours / self.baseline

    @property
    def held(self) -> float | None:
        """The number that the limit speaks of; ``None`` when it was not measured."""
        return self.ratio if self.difference is None else self.difference

    @property
    def margin(self) -> float:
        """How far inside its limit the figure is: above 1 it is reached."""
        sign, limit = _read_limit(self.limit)
        if self.held is None or math.isnan(self.held):
            return 0.0
        if self.held <= 0:
            return math.inf if sign == "<=" else 0.0
        return limit / self.held if sign == "<=" else self.held / limit

    @property
    def reached(self) -> bool:
        """Whether the limit is kept."""
        sign, limit = _read_limit(self.limit)
        return self.held is not None and bool(_COMPARISONS[sign](self.held, limit))

    def to_dict(self) -> dict[str, Any]:
        """Return what is written as JSON; what is no number is ``null``."""
        numbers = {name: _round(getattr(self, name)) for name in ("baseline", "ours", "ratio")}
        more: dict[str, Any] = {} if self.difference is None else {"difference": _round(self.difference)}
        if self.context:
            more["context"] = {name: _round(value) for name, value in self.context.items()}
        return {
            "what": self.what,
            **numbers,
            "limit": self.limit,
            "reached": self.reached,
            "unit": self.unit,
            "notes": self.notes,
            **more,
        }


def _read_limit(limit: str) -> tuple[str, float]:
    sign, number = limit.split()[:2]
    return sign, float(number)


def _round(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def run(goal: str, measure: Callable[[Options], Iterator[Figure]], *, can_list: bool = False) -> None:
    """Run a script: measure, write, and profile what was not reached when asked to.

    ``measure`` yields its figures while its servers still run, so that they can be profiled.
    ``can_list`` adds the flag ``--list``.
    """
    parser = argparse.ArgumentParser(description=f"Measure goal {goal} of docs/performance.md.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter blocks: noisier, same figures")
    parser.add_argument("--profile", action="store_true", help="profile the measured block of what is not reached")
    if can_list:
        parser.add_argument("--list", action="store_true", help="list the functions that each page adds")
    arguments = parser.parse_args()
    options = Options(arguments.quick, arguments.profile, can_list and arguments.list)
    # As pip does when it installs: a site's start, and its first pages, load bytecode and compile nothing.
    for folder in ("django_moe_personalize", "benchmarks"):
        compileall.compile_dir(Path(__file__).parent.parent / folder, quiet=1)
    figures: list[Figure] = []
    for figure in measure(options):
        figures.append(figure)
        print(format_row([goal, *format_figure(figure.to_dict())]), file=sys.stderr, flush=True)
        if arguments.profile and not figure.reached and figure.profile is not None:
            _profile(figure)
    expect(figures, f"{goal} measured nothing")
    print(json.dumps(build_object(goal, figures), indent=1), flush=True)


def build_object(goal: str, figures: Sequence[Figure]) -> dict[str, Any]:
    """Return the goal's one object: the figure nearest to breaking its limit, and all of them."""
    worst = min(figures, key=lambda figure: figure.margin)
    parts = [figure.to_dict() for figure in figures]
    return {
        "goal": goal,
        **worst.to_dict(),
        "reached": all(figure.reached for figure in figures),
        **({"figures": parts} if len(parts) > 1 else {}),
    }


def _profile(figure: Figure) -> None:
    assert figure.profile is not None
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        figure.profile()
    finally:
        profiler.disable()
    # Before Python 3.12 it sees the calling thread only, and what others did as waiting.
    print(f"--- profile: {figure.what}", file=sys.stderr)
    pstats.Stats(profiler, stream=sys.stderr).strip_dirs().sort_stats("tottime").print_stats(25)


COLUMNS = ("goal", "baseline", "ours", "ratio", "limit", "reached", "what")
_WIDTHS = (5, 14, 14, 9, 13, 8, 0)


def format_figure(figure: dict[str, Any]) -> list[str]:
    """Return the cells of a figure's row, after its goal."""
    unit = figure["unit"]
    cells = [f"{_shorten(figure[name])} {unit}" for name in ("baseline", "ours")]
    if "difference" in figure:
        shown = f"{_shorten(figure['difference'])} {unit}"
    else:
        shown = "-" if figure["ratio"] is None else f"{figure['ratio']:.2f}"
    return [*cells, shown, figure["limit"], "reached" if figure["reached"] else "NOT", figure["what"]]


def format_row(cells: Iterable[str]) -> str:
    """Return one line of the table."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def _shorten(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

"""The frame of every script: it prints one JSON object on stdout and a table on stderr, and exits with 0.

A goal that is not reached is a result, not an error. A script that measured the wrong thing raises.
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
    """The script measured something else than the goal describes: other content, errors, no personalization."""


def expect(condition: object, message: str) -> None:
    """Raise WrongMeasurement unless ``condition`` holds; an ``assert`` would vanish under ``-O``."""
    if not condition:
        raise WrongMeasurement(message)


@dataclass(frozen=True, slots=True)
class Options:
    """The flags of a script."""

    quick: bool = False
    profile: bool = False
    functions: bool = False

    def pick(self, full: T, quick: T) -> T:
        """Return ``quick`` for a quick run, else ``full``."""
        return quick if self.quick else full


@dataclass(kw_only=True)
class Figure:
    """One measured figure of a goal, its baseline and its limit.

    ``baseline`` and ``ours`` are in ``unit``. ``limit`` (``"<= 1.05"``) is the limit of ``ratio``, or of
    ``difference`` (in ``unit``) if that is given. A figure from alternating blocks has the median of the
    ratios of adjacent blocks, which may differ a little from ``ours / baseline``. ``profile`` repeats the
    measured block for a profiler. A figure that could not be measured counts as not reached. A figure without
    a limit is there for comparison.
    """

    what: str
    baseline: float
    ours: float
    unit: str
    limit: str = ""
    ratio: float | None = None
    difference: float | None = None
    notes: list[str] = field(default_factory=list)
    context: dict[str, float] = field(default_factory=dict)
    profile: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        if self.ratio is None and self.baseline:
            self.ratio = self.ours / self.baseline

    @property
    def compared(self) -> float | None:
        """The number that the limit applies to; ``None`` if it was not measured."""
        return self.ratio if self.difference is None else self.difference

    @property
    def margin(self) -> float:
        """How far the figure is inside its limit: 1 is the limit itself, more is better."""
        if not self.limit:
            return math.inf
        sign, limit = _read_limit(self.limit)
        if self.compared is None or math.isnan(self.compared):
            return 0.0
        if self.compared <= 0:
            return math.inf if sign == "<=" else 0.0
        return limit / self.compared if sign == "<=" else self.compared / limit

    @property
    def reached(self) -> bool:
        """Whether the figure is within its limit."""
        if not self.limit:
            return True
        sign, limit = _read_limit(self.limit)
        return self.compared is not None and bool(_COMPARISONS[sign](self.compared, limit))

    def to_dict(self) -> dict[str, Any]:
        """Return the figure for JSON; NaN and infinity become ``null``."""
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
    """Run a script: measure, print, and with ``--profile`` profile each figure that misses its limit.

    ``measure`` yields each figure while its servers still run, so that the figure can be profiled.
    ``can_list`` adds the flag ``--list``.
    """
    parser = argparse.ArgumentParser(description=f"Measure goal {goal} of docs/performance.md.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter blocks: same figures, more noise")
    parser.add_argument("--profile", action="store_true", help="profile the figures that miss their limit")
    if can_list:
        parser.add_argument("--list", action="store_true", help="list the functions that each page adds")
    arguments = parser.parse_args()
    options = Options(arguments.quick, arguments.profile, can_list and arguments.list)
    # pip compiles the package when it installs it. Do the same, so that no measured start or page compiles anything.
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
    """Return the goal's JSON object: the figure with the smallest margin, and the list of all figures."""
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
    # Before Python 3.12 the profiler sees the calling thread alone: the work of other threads looks like waiting.
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
    verdict = ("reached" if figure["reached"] else "NOT") if figure["limit"] else "-"
    return [*cells, shown, figure["limit"] or "-", verdict, figure["what"]]


def format_row(cells: Iterable[str]) -> str:
    """Return one line of the table."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def _shorten(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

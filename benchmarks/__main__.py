"""Run the benchmarks one after the other, print one table and write results.json.

The exit code is 0 for any figures, and 1 if a script failed and so measured nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import django

from benchmarks.goal import COLUMNS, format_figure, format_row

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
SECONDS = 240
"""Time limit of one script. After it, the script and all processes it started are killed."""

MAX_ERROR_LENGTH = 3000
"""Characters of a failed script's stderr that are printed, the last ones."""


def find_scripts(goals: list[str]) -> list[str]:
    """Return the modules of the goals, all by default; raises SystemExit for an unknown goal."""
    found = {path.stem.partition("_")[0]: path.stem for path in sorted(FOLDER.glob("p[0-9][0-9]_*.py"))}
    if sys.version_info >= (3, 12):
        found["steps"] = "steps"
    wanted = [_normalize(goal) for goal in goals] or list(found)
    if missing := [goal for goal in wanted if goal not in found]:
        raise SystemExit(f"Unknown goal: {', '.join(missing)}. Choose from {', '.join(found)}.")
    return [found[goal] for goal in wanted]


def _normalize(goal: str) -> str:
    digits = goal.lower().removeprefix("p")
    return f"p{int(digits):02d}" if digits.isdigit() else goal.lower()


def run_script(name: str, flags: list[str]) -> dict[str, Any]:
    """Return the JSON object of a script, or ``{"goal", "error"}``; print its stderr if it failed or profiled."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *flags]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        # In a session of its own, so that the kill below also ends the servers that the script started.
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=FOLDER.parent, start_new_session=True)
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        errors = _read(err)
        if code == 0:
            with contextlib.suppress(ValueError):
                result: dict[str, Any] = json.loads(_read(out))
                if "--profile" in flags:
                    print(errors)
                return result
    errors = errors[-MAX_ERROR_LENGTH:]
    reason = f"took more than {SECONDS} s" if code == -1 else f"ended with exit code {code}"
    print(f"{name} {reason}:\n{errors}", file=sys.stderr)
    return {"goal": name.partition("_")[0].upper(), "error": errors}


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def print_result(result: dict[str, Any]) -> None:
    """Print the rows of a goal."""
    for figure in result.get("figures") or ([] if "error" in result else [result]):
        print(format_row([result["goal"], *format_figure(figure)]), flush=True)
    if "error" in result:
        print(format_row([result["goal"], "-", "-", "-", "-", "FAILED", "see above"]), flush=True)


def main() -> int:
    """Run the scripts named on the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("goals", nargs="*", help="such as p2 p16 steps; all by default")
    parser.add_argument("--quick", action="store_true", help="take a few minutes in all; same figures, more noise")
    parser.add_argument("--profile", action="store_true", help="profile the figures that miss their limit")
    arguments = parser.parse_args()
    flags = [f"--{name}" for name in ("quick", "profile") if getattr(arguments, name)]
    started = time.time()
    results = []
    print(format_row(COLUMNS), flush=True)
    for name in find_scripts(arguments.goals):
        results.append(run_script(name, flags))
        print_result(results[-1])
    failed = [result["goal"] for result in results if "error" in result]
    missed = [result["goal"] for result in results if not result.get("reached", True)]
    machine = {"python": platform.python_version(), "django": django.__version__, "cpus": os.cpu_count()}
    seconds = round(time.time() - started)
    written = {**machine, "quick": arguments.quick, "seconds": seconds, "results": results}
    RESULTS.write_text(json.dumps(written, indent=1) + "\n")
    print(f"\n{seconds} s; not reached: {', '.join(missed) or 'none'}; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Run every benchmark, one after the other, print one table and write results.json.

Exit code 0, whatever the figures say; 1 when a script failed, which is to have measured nothing.
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
"""What one script may take; it is stopped with everything it started then."""

SAID = 3000


def find_scripts(goals: list[str]) -> list[str]:
    """Return the modules of the goals, all by default; raises SystemExit for one that is not there."""
    found = {path.stem.partition("_")[0]: path.stem for path in sorted(FOLDER.glob("p[0-9][0-9]_*.py"))}
    if sys.version_info >= (3, 12):
        found["steps"] = "steps"
    wanted = [_normalize(goal) for goal in goals] or list(found)
    if missing := [goal for goal in wanted if goal not in found]:
        raise SystemExit(f"there is no {', '.join(missing)}; there are {', '.join(found)}")
    return [found[goal] for goal in wanted]


def _normalize(goal: str) -> str:
    digits = goal.lower().removeprefix("p")
    return f"p{int(digits):02d}" if digits.isdigit() else goal.lower()


def run_script(name: str, flags: list[str]) -> dict[str, Any]:
    """Return the object that a script wrote, or ``{"goal", "error"}``; print what it said where that matters."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *flags]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        # A session of its own, so that a script that hangs goes with the servers it started.
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=FOLDER.parent, start_new_session=True)
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said = _read(err)
        if code == 0:
            with contextlib.suppress(ValueError):
                result: dict[str, Any] = json.loads(_read(out))
                if "--profile" in flags:
                    print(said)
                return result
    print(f"{name} failed ({'time' if code == -1 else code}):\n{said[-SAID:]}", file=sys.stderr)
    return {"goal": name.partition("_")[0].upper(), "error": said[-SAID:]}


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
    """Run what was asked for and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("goals", nargs="*", help="such as p2 p16; all by default")
    parser.add_argument("--quick", action="store_true", help="a few minutes in all; noisier, same figures")
    parser.add_argument("--profile", action="store_true", help="print where the time of unreached goals goes")
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
    told = {**machine, "quick": arguments.quick, "seconds": round(time.time() - started), "results": results}
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    print(f"\n{told['seconds']} s; not reached: {', '.join(missed) or 'none'}; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""P12: what installing the package adds to a process's start; no thread, no network, no query."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from statistics import median
from typing import Any

from benchmarks.goal import Figure, Options, expect, run
from benchmarks.timing import describe

# Standard library and Django alone: what this script itself imports must not be in the way.
CHILD = """
import gc, json, os, sys, time
# A collection of everything takes a tenth of this whole start, and comes once in some 80,000 objects: on
# which side of it a start ends is decided by all that a process imports. Our objects are a twentieth.
gc.disable()
ours, watch = "ours" in sys.argv, "watch" in sys.argv
touched = []
if watch:
    names = ("socket.connect", "socket.getaddrinfo", "socket.bind", "sqlite3.connect", "_thread.start_new_thread")
    sys.addaudithook(lambda event, arguments: touched.append(event) if event in names else None)
started, computed = time.perf_counter(), time.process_time()
import django, requests
from django.conf import settings
from django.core.wsgi import get_wsgi_application
settings.configure(
    SECRET_KEY="benchmarks", ROOT_URLCONF="benchmark_urls", USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
    + ["django_moe_personalize"] * ours,
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware"]
    + ["django_moe_personalize.middleware.PersonalizeMiddleware"] * ours,
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
    MOE_PERSONALIZE={"WORKSPACE_ID": "BENCH_DEBUG", "API_KEY": "bench-key", "DATA_CENTER": "01"},
)
get_wsgi_application()
if "profile" in sys.argv:
    sys.exit()
taken, used = time.perf_counter() - started, time.process_time() - computed
threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
loaded = "django_moe_personalize.middleware" in sys.modules
print(json.dumps({"seconds": taken, "cpu": used, "touched": touched, "threads": threads, "loaded": loaded}))
"""


def start(*arguments: str) -> dict[str, Any]:
    """Return what a new process says of its start."""
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, timeout=60, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def measure(options: Options) -> Iterator[Figure]:
    """Start processes with and without us by turns."""
    with_us, without = start("ours", "watch"), start("watch")
    expect(with_us["loaded"] and not without["loaded"], "the package was not what was added")
    expect(with_us["touched"] == without["touched"], f"starting touched {with_us}, without us {without}")
    expect(with_us["threads"] == 1, "starting left a thread")
    pairs = [(start(), start("ours")) for _ in range(options.pick(40, 9))]
    added, computed = ([(ours[clock] - base[clock]) * 1000 for base, ours in pairs] for clock in ("seconds", "cpu"))
    yield Figure(
        what="import, ready() and middleware, added to django + requests",
        baseline=median(base["seconds"] * 1000 for base, _ in pairs),
        ours=median(ours["seconds"] * 1000 for _, ours in pairs),
        difference=median(added),
        limit="<= 15 ms more",
        unit="ms",
        notes=[f"added ms: {describe(added, 1)}", "no thread, no network, no database connection of ours"],
        context={"of it computed, ms more": median(computed)},
        profile=show_imports,
    )


def show_imports() -> None:
    """Print the modules that take longest to import, themselves and in all, in µs."""
    command = [sys.executable, "-X", "importtime", "-c", CHILD, "ours", "profile"]
    lines = subprocess.run(command, capture_output=True, timeout=60, check=True, text=True).stderr.splitlines()
    rows = [line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:")]
    ours = [row for row in rows if "moe_personalize" in row[2] or "environ" in row[2]]
    ours.sort(key=lambda row: -int(row[0]))
    print("\n".join(["self µs | cumulative | module", *map("|".join, ours)]), file=sys.stderr)


if __name__ == "__main__":
    run("P12", measure)

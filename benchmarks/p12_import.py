"""P12: the time that the package adds to the start of a process, without a thread, the network or a query."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

from benchmarks.goal import Figure, Options, expect, run
from benchmarks.timing import describe

# It uses the standard library and Django alone, so that no import of this script is measured.
CHILD = """
import gc, json, os, sys, time
# A full garbage collection takes a tenth of this start and happens once in about 80,000 new objects. Everything
# that the process imports decides whether it falls into the start; our objects are a twentieth of that.
gc.disable()
ours, watch, serves = (name in sys.argv for name in ("ours", "watch", "serves"))
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
get_wsgi_application() if serves else django.setup()
if "profile" in sys.argv:
    sys.exit()
modules = len(sys.modules)
taken, used = time.perf_counter() - started, time.process_time() - computed
threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
loaded = "django_moe_personalize" in sys.modules
found = {"seconds": taken, "cpu": used, "touched": touched, "threads": threads, "loaded": loaded, "modules": modules}
print(json.dumps(found))
"""


def start(*arguments: str) -> dict[str, Any]:
    """Start a process and return the figures it prints."""
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, timeout=60, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures of any process, such as a command, and of a server, whose application has the middleware."""
    yield from compare(options, "import and ready() add to a start", "<= 15 ms more", "<= 25 more")
    yield from compare(options, "import, ready() and middleware add to the start of a server", "", "", "serves")


def compare(options: Options, what: str, most_time: str, most_modules: str, *arguments: str) -> Iterator[Figure]:
    """Start processes with and without the package in turn."""
    with_us, without = start("ours", "watch", *arguments), start("watch", *arguments)
    expect(with_us["loaded"] and not without["loaded"], "the package is not the difference between the processes")
    expect(with_us["touched"] == without["touched"], f"with the package the start did {with_us}, without it {without}")
    expect(with_us["threads"] == 1, "the start left a thread")
    pairs = [(start(*arguments), start("ours", *arguments)) for _ in range(options.pick(40, 9))]
    added, computed = ([(ours[clock] - base[clock]) * 1000 for base, ours in pairs] for clock in ("seconds", "cpu"))
    yield Figure(
        what=f"time that {what} with django and requests",
        baseline=median(base["seconds"] * 1000 for base, _ in pairs),
        ours=median(ours["seconds"] * 1000 for _, ours in pairs),
        difference=median(added),
        limit=most_time,
        unit="ms",
        notes=[f"added ms: {describe(added, 1)}", "no thread, no network, no database connection"],
        context={"CPU time added, ms": median(computed)},
        profile=partial(show_imports, *arguments),
    )
    yield Figure(
        what=f"modules that {what} with django and requests",
        baseline=without["modules"],
        ours=with_us["modules"],
        difference=with_us["modules"] - without["modules"],
        limit=most_modules,
        unit="modules",
        profile=partial(show_imports, *arguments),
    )


def show_imports(*arguments: str) -> None:
    """Print the µs that each of our modules takes to import, alone and with its own imports."""
    command = [sys.executable, "-X", "importtime", "-c", CHILD, "ours", "profile", *arguments]
    lines = subprocess.run(command, capture_output=True, timeout=60, check=True, text=True).stderr.splitlines()
    rows = [line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:")]
    ours = [row for row in rows if "moe_personalize" in row[2] or "environ" in row[2]]
    ours.sort(key=lambda row: -int(row[0]))
    print("\n".join(["self µs | cumulative | module", *map("|".join, ours)]), file=sys.stderr)


if __name__ == "__main__":
    run("P12", measure)

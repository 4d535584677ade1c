"""Web processes that fill an outbox, deliverers that drain it, visitors, and a killer of both kinds of processes."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from django_moe_personalize.sandbox.ledger import CONVERSIONS
from tests.services.brokers import CelerySite, CeleryWorker
from tests.services.databases import Database
from tests.services.load import Line, Page, in_background, poll
from tests.services.serving import CREDENTIALS, ROOT, ask_sandbox, build_gunicorn, listen, running, wait_until

MODULE = "tests.services.outbox_site"
QUICK = {"lease": 2.0, "timeout": 1.0, "backoff": 0.05, "max_backoff": 0.5, "pause": 0.5}

COUNT = """
import dataclasses, json
from django_moe_personalize.delivery.base import get_delivery
print(json.dumps(dataclasses.asdict(get_delivery().counts())))
"""
RECORD = """
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.moengage.types import Action, Event
context = {{"cid": "65ea_F_T_WP_AB_2_P_0_AU_42D", "experience": "Hero", "moe_locale_id": "0", "moe_variation_id": "2"}}
for start in range(0, {count}, 100):
    numbers = range(start, min(start + 100, {count}))
    get_delivery().record([Event(Action.SHOWN, str(number), context, 1_760_000_000) for number in numbers])
"""


@dataclass
class Site:
    """A site with its own database and an outbox in it. Its processes write into ``folder``."""

    database: Database
    folder: Path
    base_url: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def moe(self) -> dict[str, Any]:
        backend = "django_moe_personalize.delivery.database.DatabaseDelivery"
        delivery = {"BACKEND": backend, "OPTIONS": QUICK | self.options}
        data = {"DATA_API_KEY": CREDENTIALS["API_KEY"]}
        return {**CREDENTIALS, **data, "BASE_URL": self.base_url, "DEADLINE": 10, "DELIVERY": delivery}

    def environ(self, **moe: Any) -> dict[str, str]:
        told = {"database": self.database, "moe": {**self.moe, **moe}}
        return {**os.environ, "OUTBOX_SITE": json.dumps(told), "PYTHONDEVMODE": ""}

    def manage(self, *arguments: str) -> str:
        command = [sys.executable, "-m", MODULE, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.environ(), capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def count(self) -> dict[str, Any]:
        return json.loads(self.manage("-c", COUNT))

    def start_deliverer(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", MODULE, "moe_deliver", *arguments]
        out = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, env=self.environ(), stdout=out, stderr=subprocess.DEVNULL, text=True)

    @contextmanager
    def watch(self) -> Iterator[list[Deliverer | CeleryWorker]]:
        deliverers = [Deliverer(self), Deliverer(self)]
        try:
            yield list(deliverers)
        finally:
            for deliverer in deliverers:
                deliverer.kill()

    @contextmanager
    def watch_with_celery(self, broker: str) -> Iterator[list[Deliverer | CeleryWorker]]:
        """Run two workers of Celery, and its beat, which schedules ``deliver_outbox``."""
        site = CelerySite(self.moe, broker, self.folder / "celery.log", database=self.database)
        with site.schedule(), site.work() as first, site.work() as second:
            yield [first, second]

    @contextmanager
    def serve(self, pages_from: str, *, workers: int, threads: int = 4) -> Iterator[WebServer]:
        """Serve its pages with gunicorn. Their experiences come from another sandbox."""
        log = self.folder / "gunicorn.log"
        with listen() as listener, log.open("wb") as errors:
            options = ["--worker-class=gthread", f"--threads={threads}", "--keep-alive=60", "--graceful-timeout=2"]
            command = build_gunicorn(f"{MODULE}:wsgi()", listener, workers, *options)
            environ = self.environ(BASE_URL=pages_from)
            with running(command, env=environ, pass_fds=[listener.fileno()], stderr=errors) as process:
                server = WebServer(listener.getsockname()[1], process)
                wait_until(process, server.answers, log.read_text)
                yield server


@dataclass
class WebServer:
    """The web server of the site."""

    port: int
    process: subprocess.Popen[bytes]

    def answers(self) -> bool:
        """Return whether it answers, with a page without experiences."""
        with contextlib.closing(self.connect()) as visitor:
            return visitor.get("/missing/", "first").status == 404

    def connect(self) -> Visitor:
        return Visitor(self.port)

    def find_workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]


class Visitor(Line):
    """One visitor's browser. It opens a new connection when the old one breaks."""

    def get(self, path: str, visitor: str = "", *, due: float | None = None) -> Page:
        """Return a page. Raises OSError or HTTPException if none comes."""
        # The process that answered before may have been killed.
        self.worker = ""
        try:
            return super().get(path, visitor, due=due)
        except BaseException:
            self.close()
            raise


class Crowd:
    """Visitors who read pages until these have recorded ``wanted`` events, and ``is_enough()`` is true."""

    def __init__(
        self, server: WebServer, wanted: int, *, visitors: int = 6, is_enough: Callable[[], bool] = lambda: True
    ) -> None:
        self.events: list[str] = []
        self._is_enough = is_enough
        self.pages = self.unanswered = 0
        self._server = server
        self._wanted = wanted
        self._lock = threading.Lock()
        self._visitors = visitors

    def run(self) -> None:
        with ThreadPoolExecutor(self._visitors) as pool:
            list(pool.map(self._read, range(self._visitors)))

    def _read(self, number: int) -> None:
        with contextlib.closing(self._server.connect()) as visitor:
            while len(self.events) < self._wanted or not self._is_enough():
                try:
                    answer = visitor.get("/page/", f"visitor-{number}")
                except (OSError, http.client.HTTPException):
                    with self._lock:
                        self.unanswered += 1
                    continue
                assert answer.status == 200, answer.body
                with self._lock:
                    self.pages += 1
                    self.events += answer.events


class Deliverer:
    """A ``moe_deliver --watch`` that a test kills and starts again."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.start()

    def start(self) -> None:
        self._process = self._site.start_deliverer("--watch", "0.05")

    def restart(self) -> None:
        """Kill it and start it again, like a supervisor."""
        self.kill()
        self.start()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class Killer:
    """Kill a random deliverer and start it again, then kill a random web worker, and so on.

    A busy machine may take seconds to start a deliverer. So each deliverer dies after some events have arrived.
    """

    def __init__(
        self,
        server: WebServer,
        deliverers: list[Deliverer | CeleryWorker],
        sandbox: int,
        *,
        every: tuple[float, float],
    ) -> None:
        self.killed_workers = self.killed_deliverers = 0
        self._sandbox = sandbox
        self._server = server
        self._every = every
        self._deliverers = deliverers

    def has_killed(self) -> bool:
        return min(self.killed_workers, self.killed_deliverers) > 0

    def kill(self, over: threading.Event) -> None:
        arrived = 0
        for is_deliverers_turn in itertools.cycle((True, False)):
            if over.wait(random.uniform(*self._every)):
                return
            if is_deliverers_turn:
                before, arrived = arrived, count_arrived(self._sandbox)
                while arrived <= before:
                    if over.wait(0.1):
                        return
                    arrived = count_arrived(self._sandbox)
                random.choice(self._deliverers).restart()
                self.killed_deliverers += 1
            elif workers := self._server.find_workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.choice(workers), signal.SIGKILL)
                    self.killed_workers += 1


def change_faults(sandbox: int, over: threading.Event) -> None:
    """Change the faults of a sandbox all the time: errors, resets after it counted the events, timeouts."""
    common = {"error_rate": 0.3, "reset": 0.1, "malformed": 0.05}
    while not over.is_set():
        for faults, seconds in ((common, 2.5), ({**common, "latency": QUICK["timeout"] + 0.5}, 0.5)):
            ask_sandbox(sandbox, "faults", faults)
            over.wait(seconds)
    ask_sandbox(sandbox, "faults", {})


def read_ledger(sandbox: int) -> tuple[int, set[str]]:
    """Return the number of counted events, and the UUIDs of the last 100,000."""
    ledger = ask_sandbox(sandbox, "ledger")
    counted = sum(each["impressions"] + each["conversions"] for each in ledger["counts"].values())
    return counted, {entry["event_uuid"] for entry in ledger["entries"]}


def count_arrived(sandbox: int) -> int:
    return read_ledger(sandbox)[0]


def drain(site: Site, seconds: float) -> dict[str, Any]:
    """Deliver until no event is pending, while the leases of killed deliverers run out. Return the counters."""
    return poll(lambda: (site.manage("moe_deliver"), site.count())[1], lambda counts: not counts["pending"], seconds)


@dataclass
class Result:
    """The result of an experiment. ``counted`` and ``arrived`` come from the sandbox."""

    recorded: list[str] = field(default_factory=list)
    arrived: set[str] = field(default_factory=set)
    counted: int = 0
    during: int = 0
    unanswered: int = 0
    killed_workers: int = 0
    killed_deliverers: int = 0
    seconds: float = 0.0
    counts: dict[str, Any] = field(default_factory=dict)
    conversions: int = 0
    repeats: int = 0

    def describe(self) -> str:
        return (
            f"{len(self.recorded)} events, {self.conversions} of them conversions, in {self.seconds:.0f} s, "
            f"{self.during} counted while {self.killed_workers} "
            f"workers and {self.killed_deliverers} deliverers were killed; {self.counted - len(self.recorded)} more, "
            f"of {self.unanswered} pages cut off; {self.repeats} conversions came again"
        )


def run_experiment(
    site: Site,
    sandbox: int,
    pages_from: str,
    wanted: int,
    *,
    deliverers: AbstractContextManager[list[Deliverer | CeleryWorker]],
    every: tuple[float, float],
) -> Result:
    """Record, deliver, fail and kill at the same time until pages have recorded enough. Then deliver the rest."""
    result = Result()
    start = time.monotonic()
    with (
        site.serve(pages_from, workers=3) as server,
        in_background(partial(change_faults, sandbox)),
        deliverers as running_deliverers,
        in_background((killer := Killer(server, running_deliverers, sandbox, every=every)).kill),
    ):
        # In halves, because the ledger keeps the UUIDs of the last 100,000 events only.
        for crowd in (Crowd(server, wanted // 2), Crowd(server, wanted // 2, is_enough=killer.has_killed)):
            crowd.run()
            result.recorded += crowd.events
            result.unanswered += crowd.unanswered
            result.during, uuids = read_ledger(sandbox)
            result.arrived |= uuids
    result.counts = drain(site, 120)
    result.seconds = time.monotonic() - start
    result.counted, uuids = read_ledger(sandbox)
    result.arrived |= uuids
    ledger = ask_sandbox(sandbox, "ledger")
    result.conversions, result.repeats = ledger["counts"][CONVERSIONS]["conversions"], ledger["repeats"]
    result.killed_workers, result.killed_deliverers = killer.killed_workers, killer.killed_deliverers
    return result

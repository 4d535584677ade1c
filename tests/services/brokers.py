"""Brokers for as long as a context lasts, and a site with Celery whose workers can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.services.serving import ROOT, find_free_port, running, signal_group, start_redis, wait_until

SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
"""Debian's own. Its wrapper in the path insists on the user rabbitmq and on /var/lib."""


@contextmanager
def redis() -> Iterator[tuple[str, Any]]:
    """Run Redis; give its URL and process."""
    port = find_free_port()
    with start_redis(port) as process:
        yield f"redis://127.0.0.1:{port}/0", process


@contextmanager
def rabbitmq() -> Iterator[tuple[str, Any]]:
    """Run RabbitMQ with its own name server; give its URL and process. It leaves nothing behind."""
    port, names = find_free_port(), str(find_free_port())
    with tempfile.TemporaryDirectory() as folder, running(["epmd", "-port", names, "-address", "127.0.0.1"]):
        told = {
            "HOME": folder,
            "ERL_EPMD_PORT": names,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"tests-{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(find_free_port()),
            "RABBITMQ_MNESIA_BASE": folder,
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": f"{folder}/none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
        }
        out = Path(folder) / "out"
        with (
            out.open("wb") as log,
            running([SERVER], env={**os.environ, **told}, stdout=log, stderr=log) as process,
        ):
            wait_until(process, lambda: "Server startup complete" in out.read_text(), out.read_text)
            yield f"amqp://guest:guest@127.0.0.1:{port}//", process


class CelerySite:
    """A site whose pages, workers and beat are separate processes. They write into ``log``."""

    def __init__(
        self,
        moe: Mapping[str, Any],
        broker: str,
        log: Path,
        *,
        database: Mapping[str, Any] | None = None,
        **transport: Any,
    ) -> None:
        told = {"moe": moe, "broker": broker, "database": database, "transport": transport}
        self._environment = {**os.environ, "CELERY_SITE": json.dumps(told), "PYTHONDEVMODE": ""}
        self.log = log

    @contextmanager
    def record(self, pages: int, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
        """Record two events a page, spread over the time. The process then prints a report as JSON."""
        command = [sys.executable, "-m", "tests.services.celery_site", str(pages), str(seconds)]
        with running(command, env=self._environment, stdout=subprocess.PIPE) as process:
            yield process

    @contextmanager
    def schedule(self) -> Iterator[None]:
        with self.log.open("ab") as log:
            command = [*CELERY, "beat", "--schedule", str(self.log.with_suffix(".beat")), "--pidfile="]
            with running(command, env=self._environment, stdout=log, stderr=log):
                yield

    @contextmanager
    def work(self) -> Iterator[CeleryWorker]:
        with self.log.open("ab") as log:
            worker = CeleryWorker(self._environment, log)
            try:
                yield worker
            finally:
                worker.kill()


CELERY = [sys.executable, "-m", "celery", "--app", "tests.services.celery_site"]


class CeleryWorker:
    """A Celery worker that a test kills and starts again."""

    def __init__(self, environment: dict[str, str], log: Any) -> None:
        self._options = {"env": environment, "stdout": log, "stderr": log}
        self.kills = 0
        self.start()

    def start(self) -> None:
        command = [*CELERY, "worker", "--concurrency", "2", "--loglevel", "WARNING"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True, **self._options
        )

    def restart(self) -> None:
        """Kill it and start it again, like a supervisor."""
        self.kill()
        self.start()

    def wait_until_ready(self) -> None:
        """Wait until it takes messages. On a busy machine it needs a long time to start."""
        log = Path(self._options["stdout"].name)
        wait_until(self.process, lambda: f"worker {self.process.pid} takes messages" in log.read_text(), log.read_text)

    def revive(self) -> bool:
        """Start it again if it has ended by itself, like a supervisor. Return whether it had ended.

        A Celery worker gives up if one of its processes is killed while the worker starts it.
        """
        has_ended = self.process.poll() is not None
        if has_ended:
            self.restart()
        return has_ended

    def kill(self) -> None:
        """Kill it and its processes with SIGKILL."""
        self.kills += 1
        signal_group(self.process, signal.SIGKILL)
        self.process.wait(5)

    def kill_one(self) -> None:
        """Kill one of the processes that run tasks, if there is one."""
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        if children := found.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(random.choice(children)), signal.SIGKILL)

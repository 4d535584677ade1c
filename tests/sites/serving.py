"""Sites of third-party packages, each in processes of its own on a free port, because a process has one configuration.

A site is a module of this folder. It configures Django from the environment variable SITE (read_options), and has
``application`` (WSGI) or ``asgi``. Before the server starts, the module runs as a script once: then it creates its
database and content.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.services.serving import ROOT, find_free_port, listen, running, start_redis, wait_until

__all__ = ["Site", "find_free_port", "open_port", "read_options", "run_site", "start_redis"]

_created: dict[str, Path] = {}
"""A folder with the database and files of each site that this process has created."""

THREADS = ("--worker-class=gthread", "--threads=8", "--keep-alive=300", "--graceful-timeout=3")


@dataclass
class Site:
    """A running site."""

    module: str
    url: str
    port: int
    folder: Path
    process: subprocess.Popen[bytes]
    log: Path

    def read_log(self) -> str:
        """Return the log of all its processes so far."""
        return self.log.read_text()


def read_options() -> dict[str, Any]:
    """Return the options of run_site(), in the process of a site. ``folder`` is where its files go."""
    options: dict[str, Any] = json.loads(os.environ["SITE"])
    return options


@contextmanager
def run_site(
    module: str, folder: Path, *, server: str = "gunicorn", workers: int = 1, bind: str = "", **options: Any
) -> Iterator[Site]:
    """Serve the site ``module`` with gunicorn or uvicorn. ``options`` go to the site as they are.

    ``bind`` is the address for gunicorn, such as ``unix:/folder/socket``, instead of a free port.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "site.log"
    environment = {**os.environ, "SITE": json.dumps({**options, "folder": str(folder)}), "PYTHONPATH": str(ROOT)}
    # The site has its own settings, and isn't slowed down by the development mode of the tests.
    for name in ("DJANGO_SETTINGS_MODULE", "PYTHONDEVMODE", "PYTHONWARNINGS"):
        environment.pop(name, None)
    _create_content(module, folder, environment)
    with listen() as listener, log.open("wb") as errors:
        command = _build_command(module, server, workers, bind or f"fd://{listener.fileno()}")
        inherited: dict[str, Any] = {"pass_fds": [listener.fileno()], "stdout": errors, "stderr": errors}
        with running(command, env=environment, **inherited) as process:
            port = listener.getsockname()[1]
            place = Path(bind.removeprefix("unix:")) if bind.startswith("unix:") else None
            wait_until(process, place.exists if place else lambda: open_port(port), log.read_text)
            yield Site(module, f"http://127.0.0.1:{port}", port, folder, process, log)


def _create_content(module: str, folder: Path, environment: dict[str, str]) -> None:
    """Run the module as a script. If this process has already done so, copy the files, because migrations take long."""
    if module in _created:
        shutil.copytree(_created[module], folder, dirs_exist_ok=True)
        return
    created = subprocess.run([sys.executable, "-m", module], cwd=ROOT, env=environment, capture_output=True, text=True)
    if created.returncode:
        raise RuntimeError(f"{module} can't create its content: {created.stderr[-3000:]}")
    _created[module] = shutil.copytree(folder, folder.with_name(f"{folder.name}-created"))


def _build_command(module: str, server: str, workers: int, bind: str) -> Sequence[str]:
    if server == "gunicorn":
        options = ["--workers", str(workers), "--log-level", "warning", "--no-control-socket", *THREADS]
        return [sys.executable, "-m", "gunicorn", f"{module}:application", "--bind", bind, *options]
    options = ["--fd", bind.removeprefix("fd://"), "--lifespan", "off", "--no-access-log", "--log-level", "warning"]
    return [sys.executable, "-m", "uvicorn", f"{module}:asgi", *options]


def open_port(port: int) -> bool:
    """Return True if the server on this port answers a request, with whatever status."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("HEAD", "/")
    connection.getresponse()
    connection.close()
    return True

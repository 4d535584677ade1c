"""Sites of third-party packages, each in processes of its own on a free port, because a process has one configuration.

A site is a module of this folder. It configures Django from the environment variable SITE (read_options), and has
``application`` (WSGI) or ``asgi``. Before the server starts, the module runs as a script once: then it creates its
database and content.
"""

import http.client
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.services.serving import ROOT, build_gunicorn, listen, running, wait_until

_created: dict[str, Path] = {}
"""A folder with the database and files of each site that this process has created."""

THREADS = ("--worker-class=gthread", "--threads=8", "--keep-alive=300", "--graceful-timeout=1")
QUIET = ("--lifespan", "off", "--no-access-log", "--log-level", "warning")


@dataclass
class Site:
    """A running site."""

    url: str
    folder: Path
    log: Path

    def read_log(self) -> str:
        return self.log.read_text()


def read_options() -> dict[str, Any]:
    """Return the options of run_site(), in the process of a site. ``folder`` is where its files go."""
    options: dict[str, Any] = json.loads(os.environ["SITE"])
    return options


@contextmanager
def run_site(
    module: str, folder: Path, *, server: str = "gunicorn", workers: int = 1, **options: Any
) -> Iterator[Site]:
    """Serve the site ``module`` with gunicorn or uvicorn. ``options`` go to the site as they are."""
    log = folder / "site.log"
    environment = {**os.environ, "SITE": json.dumps({**options, "folder": str(folder)}), "PYTHONPATH": str(ROOT)}
    # The site has its own settings, and isn't slowed down by the development mode of the tests.
    for name in ("DJANGO_SETTINGS_MODULE", "PYTHONDEVMODE", "PYTHONWARNINGS"):
        environment.pop(name, None)
    _create_content(module, folder, environment)
    with listen() as listener, log.open("wb") as errors:
        if server == "gunicorn":
            command = build_gunicorn(f"{module}:application", listener, workers, *THREADS)
        else:
            command = [sys.executable, "-m", "uvicorn", f"{module}:asgi", "--fd", str(listener.fileno()), *QUIET]
        inherited: dict[str, Any] = {"pass_fds": [listener.fileno()], "stdout": errors, "stderr": errors}
        with running(command, env=environment, **inherited) as process:
            port = listener.getsockname()[1]
            wait_until(process, lambda: open_port(port), log.read_text)
            yield Site(f"http://127.0.0.1:{port}", folder, log)


def _create_content(module: str, folder: Path, environment: dict[str, str]) -> None:
    """Run the module as a script. If this process has already done so, copy the files, because migrations take long."""
    if module in _created:
        shutil.copytree(_created[module], folder, dirs_exist_ok=True)
        return
    created = subprocess.run([sys.executable, "-m", module], cwd=ROOT, env=environment, capture_output=True, text=True)
    if created.returncode:
        raise RuntimeError(f"{module} can't create its content: {created.stderr[-3000:]}")
    _created[module] = shutil.copytree(folder, folder.with_name(f"{folder.name}-created"))


def open_port(port: int) -> bool:
    """Return True if the server on this port answers a request, with whatever status."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("HEAD", "/")
        connection.getresponse()
    return True

"""Real processes on free ports of the loopback interface. Each runs while its context lasts."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0
STOP_SECONDS = 15.0

THREADS = ["--preload", "--worker-class=gthread", "--threads=16", "--keep-alive=300", "--graceful-timeout=3"]
LOCAL_MEMORY = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}

SHORT_INTERVALS = {"breaker": {"open_seconds": 0.5, "max_open_seconds": 1.0}, "gate": 0.7}
"""The times of the breaker and the gate in tests. A site's own ones take too long."""

WORKSPACE = {
    "workspace_id": "SERVICES",
    "api_key": "services-key",
    "experiences": [
        {"key": "hero", "name": "Hero", "content": [{"payload": {"Title": "From the sandbox"}}]},
        {"key": "strip", "name": "Strip", "content": [{"payload": {"Text": "Sandbox delivers"}}]},
    ],
}
CREDENTIALS = {"WORKSPACE_ID": "SERVICES", "API_KEY": "services-key"}


@dataclass
class Server:
    """A running site."""

    kind: str
    port: int
    workers: int
    process: subprocess.Popen[bytes]
    names_hang: Path
    log: Path
    environment: Mapping[str, str]

    def read_log(self) -> str:
        return self.log.read_text()

    def manage(self, *arguments: str) -> str:
        """Run a command of the site, and return what it prints."""
        command = [sys.executable, "-m", "tests.services.site", *arguments]
        return subprocess.check_output(command, cwd=ROOT, env=self.environment, text=True)


@contextmanager
def start_gunicorn(
    base_url: str, folder: Path, *, workers: int = 2, options: Sequence[str] = THREADS, **site: Any
) -> Iterator[Server]:
    """Serve the site with gunicorn, by default with threads and loaded before it forks."""
    with listen() as listener:
        command = build_gunicorn("tests.services.site:wsgi()", listener, workers, *options)
        with _serve("gunicorn", command, listener, base_url, folder, workers=workers, **site) as server:
            yield server


def build_gunicorn(application: str, listener: socket.socket, workers: int, *options: str) -> list[str]:
    command = [sys.executable, "-m", "gunicorn", application, "--bind", f"fd://{listener.fileno()}"]
    return [*command, "--workers", str(workers), "--log-level", "warning", "--no-control-socket", *options]


@contextmanager
def start_uvicorn(base_url: str, folder: Path, **site: Any) -> Iterator[Server]:
    """Serve the site with uvicorn, in one process."""
    with listen() as listener:
        command = [sys.executable, "-m", "tests.services.site", str(listener.fileno())]
        with _serve("uvicorn", command, listener, base_url, folder, workers=1, **site) as server:
            yield server


def listen() -> socket.socket:
    """Return a listening socket for a server that inherits it."""
    # The server inherits the socket, so that no other process can take the port.
    return socket.create_server(("127.0.0.1", 0), backlog=256)


@contextmanager
def _serve(
    kind: str,
    command: Sequence[str],
    listener: socket.socket,
    base_url: str,
    folder: Path,
    *,
    workers: int,
    caches: Mapping[str, Any] = LOCAL_MEMORY,
    databases: Mapping[str, Any] = MappingProxyType({}),
    intervals: Mapping[str, Any] = SHORT_INTERVALS,
    warm: int = 0,
    **moe: Any,
) -> Iterator[Server]:
    port = listener.getsockname()[1]
    names_hang, log = folder / f"{kind}-{port}-names-hang", folder / f"{kind}-{port}.log"
    told = {
        "moe": {**CREDENTIALS, "BASE_URL": base_url, **moe},
        "caches": caches,
        "databases": dict(databases),
        "intervals": intervals,
        "warm": warm,
        "names_hang": str(names_hang),
    }
    # Not in development mode, where asyncio is slower.
    environment = {**os.environ, "SERVICES_SITE": json.dumps(told), "PYTHONDEVMODE": "", "PYTHONUNBUFFERED": "1"}
    with (
        log.open("wb") as errors,
        running(command, env=environment, pass_fds=[listener.fileno()], stderr=errors) as process,
    ):
        wait_until(process, lambda: _answers(port), log.read_text)
        yield Server(kind, port, workers, process, names_hang, log, environment)


def _answers(port: int) -> bool:
    urllib.request.urlopen(f"http://127.0.0.1:{port}/unrelated/", timeout=START_SECONDS).close()
    return True


@contextmanager
def running(command: Sequence[Any], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program. End it and all its children, and kill those that don't end."""
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True, **options)
    try:
        yield process
    finally:
        signal_group(process, signal.SIGCONT)
        signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        signal_group(process, signal.SIGKILL)
        process.wait(5)


def signal_group(process: subprocess.Popen[Any], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def wait_until(process: subprocess.Popen[bytes], is_ready: Any, read_errors: Any = lambda: "") -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            if is_ready():
                return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args[:4]} does not serve; it says {read_errors()[-2000:]}")
        time.sleep(0.05)


@contextmanager
def start_sandbox(folder: Path, content: Mapping[str, Any] = WORKSPACE) -> Iterator[int]:
    """Run the sandbox in its own process with the workspace ``content``, and give its port."""
    workspace = folder / "workspace.json"
    workspace.write_text(json.dumps(content))
    out = folder / "sandbox.log"
    command = [sys.executable, "-m", "django", "moe_sandbox", "127.0.0.1:0", "--workspace", str(workspace)]
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": str(ROOT)}
    with out.open("wb") as file, running(command, env=environment, stdout=file, stderr=file) as process:
        wait_until(process, lambda: "Ctrl-C" in out.read_text(), out.read_text)
        yield int(re.search(r"answers at http://\S+:(\d+)/v1", out.read_text())[1])


def ask_sandbox(port: int, path: str, faults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the response of the sandbox's control path. Set its ``faults`` if given."""
    url, request = f"http://127.0.0.1:{port}/_sandbox/{path}", {}
    if faults is not None:
        headers = {"Content-Type": "application/json"}
        request = {"method": "PUT", "data": json.dumps(faults).encode(), "headers": headers}
    with urllib.request.urlopen(urllib.request.Request(url, **request), timeout=60) as answer:
        return json.load(answer)


def find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def start_redis(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Redis that writes nothing to disk."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with running([*command, "--dir", folder], stdout=subprocess.DEVNULL) as process:
            wait_until(process, lambda: _is_open(port))
            yield process


@contextmanager
def start_memcached(port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = ["memcached", "-p", str(port), "-l", "127.0.0.1", "-m", "16", "-t", "1"]
    # Without this option it refuses to run as root, as programs in a container do.
    command += ["-u", "root"] if os.geteuid() == 0 else []
    with running(command) as process:
        wait_until(process, lambda: _is_open(port))
        yield process


def _is_open(port: int) -> bool:
    socket.create_connection(("127.0.0.1", port), timeout=1).close()
    return True


def build_redis_cache(port: int) -> dict[str, Any]:
    backend = "django.core.cache.backends.redis.RedisCache"
    return {"default": {"BACKEND": backend, "LOCATION": f"redis://127.0.0.1:{port}"}}


@contextmanager
def start_cache(kind: str) -> Iterator[dict[str, Any]]:
    """Run Redis or Memcached, and give the CACHES for it."""
    port = find_free_port()
    with {"redis": start_redis, "memcached": start_memcached}[kind](port):
        backend = "django.core.cache.backends.memcached.PyMemcacheCache"
        memcached = {"default": {"BACKEND": backend, "LOCATION": f"127.0.0.1:{port}"}}
        yield build_redis_cache(port) if kind == "redis" else memcached

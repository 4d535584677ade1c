"""Serve the measured site with gunicorn or uvicorn on a free port, inside a ``with`` block.

gunicorn runs ``benchmarks.serving:wsgi``. The process of uvicorn is ``python -m benchmarks.serving FD``.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benchmarks import site
from benchmarks.upstream import stop

START_SECONDS = 20.0
WSGI_PROBE = "/worker/"
ASGI_PROBE = "/async_worker/"


def build_site(
    *, base_url: str = "", view: float = 0.03, upstream: float = 0.04, bundle: str = "", **moe: Any
) -> dict[str, Any]:
    """Return the description of a site: with the package if there is a ``base_url``, else without it.

    ``view`` and ``upstream`` are seconds, ``bundle`` is a CA file, ``moe`` has more of MOE_PERSONALIZE.
    """
    options = {"TRANSPORT": {"OPTIONS": {"verify": bundle}}} if bundle and base_url else {}
    return {
        "bench": {"view": view, "upstream": upstream, "bundle": bundle},
        "moe": site.build_moe(base_url, **options, **moe) if base_url else None,
    }


def build_peer(url: str, *, view: float = 0.03, bundle: str = "") -> dict[str, Any]:
    """Return the description of a site without the package whose views may call ``url``."""
    return {"bench": {"view": view, "upstream": 0.0, "bundle": bundle, "url": url}, "moe": None}


class Server:
    """A running server; ``workers`` is the number of its processes that answer."""

    def __init__(self, port: int, workers: int, probe: str) -> None:
        self.port = port
        self.workers = workers
        self.probe = probe
        """The path of a page that names its worker and touches nothing else."""


@contextmanager
def start_gunicorn(described: Mapping[str, Any], *, workers: int = 2, threads: int = 8) -> Iterator[Server]:
    """Serve a site with gunicorn, in threads."""
    program = ["gunicorn", "benchmarks.serving:wsgi()", "--workers", str(workers), "--threads", str(threads)]
    quiet = ["--worker-class", "gthread", "--keep-alive", "300", "--log-level", "warning", "--graceful-timeout", "2"]
    with _listen() as listener:
        bind = ["--bind", f"fd://{listener.fileno()}", "--no-control-socket"]
        with _run([sys.executable, "-m", *program, *quiet, *bind], described, listener, WSGI_PROBE) as port:
            yield Server(port, workers, WSGI_PROBE)


@contextmanager
def start_uvicorn(described: Mapping[str, Any]) -> Iterator[Server]:
    """Serve a site with uvicorn, in one process."""
    with _listen() as listener:
        command = [sys.executable, "-m", "benchmarks.serving", str(listener.fileno())]
        with _run(command, described, listener, ASGI_PROBE) as port:
            yield Server(port, 1, ASGI_PROBE)


def _listen() -> socket.socket:
    # Bound here and inherited by the server, so that no other process can take the port in between.
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


@contextmanager
def _run(command: list[str], described: Mapping[str, Any], listener: socket.socket, probe: str) -> Iterator[int]:
    environment = {**os.environ, "BENCH_SITE": json.dumps(described)}
    port: int = listener.getsockname()[1]
    process = subprocess.Popen(command, env=environment, pass_fds=[listener.fileno()])
    try:
        _wait_until_ready(process, port, probe)
        yield port
    finally:
        stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, probe: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {process.returncode} before it answered")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{probe}", timeout=START_SECONDS).close()
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"the server didn't answer within {START_SECONDS:g} s")


def _configure() -> None:
    described = site.read_environment()
    middleware = [site.OURS] if described["moe"] is not None else []
    site.configure(middleware=middleware, moe=described["moe"], BENCH=described["bench"])


def wsgi() -> Any:
    """Return the WSGI application of this worker."""
    from django.core.handlers.wsgi import WSGIHandler

    _configure()
    return WSGIHandler()


def asgi() -> Any:
    """Return the ASGI application of this process."""
    from django.core.handlers.asgi import ASGIHandler

    _configure()
    return ASGIHandler()


def profile(
    described: Mapping[str, Any], address: str, *, pages: int, visitor: Callable[[], str] = site.name_visitor
) -> Callable[[], None]:
    """Return a function to profile: it asks for the same page of the same site, but in this process."""
    from django.conf import settings
    from django.test import override_settings

    def run() -> None:
        if not settings.configured:
            site.configure(moe=described["moe"] or {})
        with override_settings(MOE_PERSONALIZE=described["moe"] or {}, BENCH=described["bench"]):
            stack = site.Site([site.OURS])
            for _ in range(pages):
                stack.get(address, HTTP_X_VISITOR=visitor())

    return run


def profile_async(described: Mapping[str, Any], address: str, *, pages: int) -> Callable[[], None]:
    """See profile(). It asks for 32 pages at a time in one event loop."""
    from django.conf import settings
    from django.test import AsyncRequestFactory, override_settings

    async def visit(handler: Any) -> None:
        for _ in range(pages // 32):
            request = AsyncRequestFactory().get(address, headers={"X-Visitor": site.name_visitor()})
            await handler.get_response_async(request)

    async def visit_together() -> None:
        from django.core.handlers.asgi import ASGIHandler

        handler = ASGIHandler()
        await asyncio.gather(*(visit(handler) for _ in range(32)))

    def run() -> None:
        if not settings.configured:
            site.configure(moe=described["moe"])
        with override_settings(MOE_PERSONALIZE=described["moe"], BENCH=described["bench"], MIDDLEWARE=[site.OURS]):
            asyncio.run(visit_together())

    return run


def _run_uvicorn(descriptor: int) -> None:
    import uvicorn

    # A long keep-alive: a connection waits while the other site has its turn.
    quiet = {"log_level": "warning", "access_log": False}
    config = uvicorn.Config(asgi(), lifespan="off", timeout_keep_alive=300, **quiet)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    _run_uvicorn(int(sys.argv[1]))

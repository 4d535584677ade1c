"""A soak, by hand: call a tracked page under ASGI in this process, and print how its memory grows.

``python -m benchmarks.soak --pages 200000`` serves a new visitor on each page. ``--visitors 1000`` lets the same
visitors return. ``--sync`` calls a sync view. ``--sandbox`` uses the embedded sandbox, whose ledger takes memory too.
``--trace`` also prints which lines allocated the memory that was added after a quarter of the pages.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import threading
import tracemalloc
from pathlib import Path
from typing import Any

from django.http import HttpRequest, HttpResponse

from benchmarks import site
from benchmarks.upstream import KEYS, Counters

NAME = "benchmarks.soak"
PAGE_BYTES = 4096
REPORTS = 20


class Upstream:
    """A transport that answers immediately, so that the soak has no second process."""

    def __init__(self, base_url: str) -> None:
        self._counters = Counters()

    def send(self, request: Any, *, deadline: Any) -> Any:
        """Return the response of the benchmarks' upstream."""
        from django_moe_personalize.moengage.http1 import Response

        return Response(200, {}, self._counters.answer("soak", request.path, request.body))

    def close(self) -> None:
        """Do nothing."""


def sync_page(request: HttpRequest) -> HttpResponse:
    """Read three experiences and track their impressions."""
    shown = [key for key in KEYS if request.personalization.get(key) is not None]
    for key in shown:
        request.personalization.track_impression(key)
    return HttpResponse(f"{len(shown)} experiences")


async def page(request: HttpRequest) -> HttpResponse:
    """See sync_page()."""
    await request.personalization.aload(*KEYS)
    return sync_page(request)


urlpatterns: list[Any] = []


def build_scope(number: int) -> dict[str, Any]:
    """Return the ASGI scope of a visitor's page."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/page/",
        "raw_path": b"/page/",
        "query_string": b"",
        "root_path": "",
        "client": ("203.0.113.7", 1),
        "server": ("testserver", 80),
        "headers": [
            (b"host", b"testserver"),
            (b"user-agent", site.USER_AGENT.encode()),
            (b"x-visitor", f"v{number}".encode()),
        ],
    }


async def call(handler: Any, number: int) -> None:
    """Call the page as a server does, and check that its content is there."""
    sent: list[Any] = []
    asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        for message in asked:
            return message
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await handler(build_scope(number), receive, send)
    site.expect(sent[0]["status"] == 200, f"the page answered {sent[0]['status']}")
    site.expect(sent[1]["body"] != b"0 experiences", "the page has no experiences")


def read_memory() -> int:
    """Return the bytes of this process's memory that are resident."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def describe(done: int) -> str:
    """Return one line about the process."""
    from django_moe_personalize.delivery.base import get_delivery
    from django_moe_personalize.fetching.cache import get_cache

    memory, counts = get_cache().memory, get_delivery().counts()
    visitors = len(memory._new) + len(memory._returning)
    figures = {"rss_mb": round(read_memory() / 1e6, 1), "cache_mb": round(memory._bytes / 1e6, 1)}
    figures |= {"visitors": visitors, "pending": counts.pending, "threads": threading.active_count()}
    return json.dumps({"pages": done, **figures, "objects": len(gc.get_objects())})


async def soak(handler: Any, options: argparse.Namespace) -> None:
    """Serve the pages, and print a line REPORTS times."""
    step = max(1, options.pages // REPORTS)
    first = None
    for done in range(options.pages + 1):
        if done % step == 0:
            gc.collect()
            print(describe(done), flush=True)
        if options.trace and done == options.pages // 4:
            tracemalloc.start(8)
            first = tracemalloc.take_snapshot()
        await call(handler, done % options.visitors if options.visitors else done)
    if first is not None:
        for line in tracemalloc.take_snapshot().compare_to(first, "lineno")[:25]:
            print(line)


def main() -> None:
    """Read the options, set up the site and run the soak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=200_000)
    parser.add_argument("--visitors", type=int, default=0, help="0: each page has a new visitor")
    for name in ("--sync", "--sandbox", "--trace"):
        parser.add_argument(name, action="store_true")
    options = parser.parse_args()
    # The deadline is long, so that a busy machine shows no defaults.
    moe = site.build_moe("http://127.0.0.1:9/v1", IDENTIFY="benchmarks.site.aidentify", DEADLINE=30)
    moe |= {"SANDBOX": True, "BASE_URL": ""} if options.sandbox else {"TRANSPORT": {"BACKEND": f"{NAME}.Upstream"}}
    dummy = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    site.configure(middleware=[site.OURS], moe=moe, CACHES=dummy, ROOT_URLCONF=NAME)
    from django.core.handlers.asgi import ASGIHandler
    from django.urls import path

    from benchmarks import soak as module

    module.urlpatterns.append(path("page/", sync_page if options.sync else page, name="page"))
    asyncio.run(soak(ASGIHandler(), options))


if __name__ == "__main__":
    main()

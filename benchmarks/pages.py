"""The pages of the measured site: plain ones, the same with the package, and some with a peer."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.urls import path

from benchmarks.upstream import KEYS

DEFAULT = "Welcome"
"""The content of a page in place of a missing experience."""

PERSONAL = "Title of hero-banner"


def _respond(titles: Any) -> HttpResponse:
    text = "".join([f"<h2>{title}</h2>" for title in titles])
    page = f"<!doctype html><title>Shop</title><main>{text}</main>".encode()
    return HttpResponse(page, headers={"Content-Length": len(page), "X-Worker": os.getpid()})


def _read(request: HttpRequest, keys: Sequence[str] = KEYS) -> list[str]:
    read = request.personalization.get
    return [DEFAULT if (experience := read(key)) is None else experience["Title"] for key in keys]


def worker(request: HttpRequest) -> HttpResponse:
    """Return an empty page; its header names the process."""
    return _respond([])


def plain(request: HttpRequest) -> HttpResponse:
    """Return the page without personalization, at once."""
    return _respond([DEFAULT] * len(KEYS))


def read(request: HttpRequest) -> HttpResponse:
    """Read three experiences."""
    return _respond(_read(request))


def read_first(request: HttpRequest) -> HttpResponse:
    """Read one experience."""
    return _respond(_read(request, KEYS[:1]))


MANY = tuple(f"key-{number:02d}" for number in range(25))


def read_one(request: HttpRequest) -> HttpResponse:
    """Read one experience out of MANY."""
    return _respond(_read(request, MANY[:1]))


def read_many(request: HttpRequest) -> HttpResponse:
    """Read 25 experiences."""
    return _respond(_read(request, MANY))


def read_and_track(request: HttpRequest) -> HttpResponse:
    """Read three experiences and track their impressions."""
    titles = _read(request)
    for key in KEYS:
        request.personalization.track_impression(key)
    return _respond(titles)


# Views that wait, as for a database.


def io_plain(request: HttpRequest) -> HttpResponse:
    """Wait for the time of the view."""
    time.sleep(settings.BENCH["view"])
    return plain(request)


def io_longest(request: HttpRequest) -> HttpResponse:
    """Wait for the time of the view or of the upstream, the longer of the two."""
    time.sleep(max(settings.BENCH["view"], settings.BENCH["upstream"]))
    return plain(request)


def io_ours(request: HttpRequest) -> HttpResponse:
    """Wait for the time of the view, then read three experiences."""
    time.sleep(settings.BENCH["view"])
    return read(request)


def _build_question(request: HttpRequest, keys: Any) -> dict[str, Any]:
    return {
        "identifiers": {"customer_id": request.META["HTTP_X_VISITOR"]},
        "experience_key": list(keys),
        "USER_AGENT": request.META.get("HTTP_USER_AGENT", ""),
        "USER_IP_ADDRESS": request.META["REMOTE_ADDR"],
    }


def _get_title(answer: Any, key: str) -> str:
    title: str = answer.json()["experiences"][key]["payload"]["Title"]["value"]
    return title


def post(request: HttpRequest, keys: Sequence[str]) -> list[str]:
    """Return the titles of the experiences after one call of requests.post."""
    bench = settings.BENCH
    answer = requests.post(
        f"{bench['url']}/experiences/fetch",
        json=_build_question(request, keys),
        auth=("BENCH_DEBUG", "bench-key"),
        headers={"MOE-APPKEY": "BENCH_DEBUG"},
        timeout=1,
        verify=bench["bundle"] or True,
    )
    return [_get_title(answer, key) for key in keys]


def io_posts(request: HttpRequest) -> HttpResponse:
    """Call requests.post in the view for each experience, as the vendor's samples do."""
    titles = [title for key in KEYS for title in post(request, [key])]
    time.sleep(settings.BENCH["view"])
    return _respond(titles)


# Views that compute.

ROWS = [{"name": f"Product {number}", "price": number * 3.5, "stock": number % 3} for number in range(12)]


@functools.cache
def _get_list() -> Any:
    return engines["django"].from_string(
        "<ul>{% for row in rows %}<li class='{% if row.stock %}in{% else %}out{% endif %}'>"
        "{{ row.name }} <b>{{ row.price|floatformat:2 }}</b></li>{% endfor %}</ul>"
    )


def _compute() -> str:
    text: str = _get_list().render({"rows": ROWS})
    return text


def cpu_plain(request: HttpRequest) -> HttpResponse:
    """Render a list."""
    return _respond([_compute(), *[DEFAULT] * len(KEYS)])


def cpu_ours(request: HttpRequest) -> HttpResponse:
    """Render a list, then read three experiences."""
    return _respond([_compute(), *_read(request)])


def cpu_ours_tracked(request: HttpRequest) -> HttpResponse:
    """Render a list, then read three experiences and track their impressions."""
    text = _compute()
    titles = _read(request)
    for key in KEYS:
        request.personalization.track_impression(key)
    return _respond([text, *titles])


@functools.cache
def _get_threads() -> tuple[ThreadPoolExecutor, requests.Session]:
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=16))
    session.auth = ("BENCH_DEBUG", "bench-key")
    return ThreadPoolExecutor(16), session


def cpu_threads(request: HttpRequest) -> HttpResponse:
    """Render a list while a thread of a pool fetches with a requests.Session."""
    pool, session = _get_threads()
    url = f"{settings.BENCH['url']}/experiences/fetch"
    asked = pool.submit(session.post, url, json=_build_question(request, KEYS), timeout=1)
    text = _compute()
    answer = asked.result()
    return _respond([text, *[_get_title(answer, key) for key in KEYS]])


# Async views.


async def async_plain(request: HttpRequest) -> HttpResponse:
    """Wait for the time of the view."""
    await asyncio.sleep(settings.BENCH["view"])
    return plain(request)


async def async_ours(request: HttpRequest) -> HttpResponse:
    """Fetch three experiences while the view waits."""
    asked = asyncio.ensure_future(request.personalization.aprefetch(*KEYS))
    await asyncio.sleep(settings.BENCH["view"])
    await asked
    return read(request)


async def async_load(request: HttpRequest) -> HttpResponse:
    """Wait for three experiences."""
    await request.personalization.aload(*KEYS)
    return read(request)


async def async_worker(request: HttpRequest) -> HttpResponse:
    """Return the plain page at once."""
    return plain(request)


urlpatterns = [
    path(f"{page.__name__}/", page, name=page.__name__)
    for page in (
        worker,
        plain,
        read,
        read_first,
        read_one,
        read_many,
        read_and_track,
        io_plain,
        io_longest,
        io_ours,
        io_posts,
        cpu_plain,
        cpu_ours,
        cpu_ours_tracked,
        cpu_threads,
        async_plain,
        async_ours,
        async_load,
        async_worker,
    )
]

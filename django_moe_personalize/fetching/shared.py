"""The site's Django cache: the entries of this package in it, and the agreements of processes that share it.

A cache that fails is a miss: the functions here log the failure once and return as if the cache were empty.
Only read_notices() raises, because the doctor reports the failure.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from django.core.cache import BaseCache, caches
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache

from django_moe_personalize.conf import Settings, get_settings
from django_moe_personalize.digest import build_digest
from django_moe_personalize.runtime import Runtime, log_once, part

T = TypeVar("T")

CACHE_FORMAT: Final = 3
"""A part of every key. Raise it when a stored value changes shape, so that no process reads the old entries."""

NOTICE_SECONDS: Final = 60 * 60
"""Seconds during which other processes can read a notice."""

MAX_NOTICES: Final = 200
"""How many notices of a topic read_notices() reads, the latest ones."""


def build_key(*parts: str, settings: Settings | None = None) -> str:
    """Return the cache key of ``parts`` in the configured workspace. It is a keyed hash and reveals none of them."""
    settings = settings or get_settings()
    workspace = (settings.workspace_id, settings.base_url, str(settings.sandbox))
    return f"moe_personalize:{CACHE_FORMAT}:{build_digest((*workspace, *parts))}"


def get_many(keys: Iterable[str]) -> dict[str, Any]:
    """Return the entries that the site's cache has under ``keys``."""
    return _use(lambda cache: cache.get_many(keys), {})


def set_many(entries: Mapping[str, Any], *, timeout: float) -> bool:
    """Store ``entries`` in the site's cache for ``timeout`` seconds; return whether it accepted all of them."""
    return _use(lambda cache: not cache.set_many(dict(entries), timeout=timeout), False)


@part
def has_shared_cache(runtime: Runtime) -> bool:
    """Return whether processes share the site's cache, so that using it takes a round trip."""
    return _use(lambda cache: not isinstance(cache, LocMemCache | DummyCache), False)


def claim(visitor: str, experience_keys: Sequence[str], seconds: float) -> bool:
    """Claim a question for this process; return False if another process asks it at the moment.

    A claim lasts ``seconds``, also if its process dies. If processes share no cache, or if it fails, all may ask.
    """
    if not has_shared_cache():
        return True
    key = build_key("claim", visitor, *experience_keys)
    return _use(lambda cache: cache.add(key, 1, timeout=math.ceil(seconds)), True)


def add_to_count(name: str, amount: int, seconds: float) -> int | None:
    """Add to a number that all processes share and return the sum, or None if they share no cache.

    The cache keeps the number for twice ``seconds``.
    """
    if not has_shared_cache():
        return None
    key = build_key("count", name)

    def add(cache: BaseCache) -> int:
        try:
            return cache.incr(key, amount)
        except ValueError:
            # The number doesn't exist yet. If another process creates it first, this one adds to it.
            return amount if cache.add(key, amount, timeout=2 * seconds) else cache.incr(key, amount)

    return _use(add, None)


def put_up_notice(topic: str, **said: object) -> None:
    """Publish a notice of this process for the site's other processes, if they share a cache. Never raises.

    ``said`` are JSON values. The call waits for the cache, so only background threads make it.
    """
    number = add_to_count(f"notices/{topic}", 1, 7 * 24 * 60 * 60.0)
    if number is not None:
        notice = {**said, "process": f"{socket.gethostname()}:{os.getpid()}", "time": int(time.time())}
        set_many({build_key("notice", topic, str(number)): notice}, timeout=NOTICE_SECONDS)


def read_notices(topic: str) -> list[dict[str, Any]]:
    """Return the last notice of each process, the latest last. Raises the errors of the cache.

    Notices have numbers, because a cache can't list its keys, and processes that extend one list would overwrite
    each other's notices.
    """
    if not has_shared_cache():
        return []
    cache = caches[get_settings().cache]
    last = cache.get(build_key("count", f"notices/{topic}"), 0)
    keys = [build_key("notice", topic, str(number)) for number in range(max(1, last - MAX_NOTICES + 1), last + 1)]
    found = cache.get_many(keys)
    notices = [found[key] for key in keys if isinstance(found.get(key), dict)]
    by_process = {notice.get("process"): notice for notice in notices}
    return sorted(by_process.values(), key=notices.index)


def _use(action: Callable[[BaseCache], T], fallback: T) -> T:
    alias = get_settings().cache
    try:
        return action(caches[alias])
    except Exception as error:
        # Whatever a cache backend raises, the page goes on.
        message = "The cache %r failed (%s), so this process works without it. Check CACHES[%r]."
        log_once(("cache", alias, type(error)), message, alias, type(error).__name__, alias)
        return fallback

"""What the processes of a site agree on through its cache, where that is one they share."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Sequence
from typing import Any, Final

from django.core.cache import BaseCache, caches
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache

from django_moe_personalize.conf import get_settings
from django_moe_personalize.fetching.cache import build_key as build_key
from django_moe_personalize.fetching.cache import get_many as get_many
from django_moe_personalize.fetching.cache import set_many as set_many
from django_moe_personalize.runtime import Runtime, log_once, part

NOTICE_SECONDS: Final = 60 * 60
"""How long what a process has put up can be read."""

MAX_NOTICES: Final = 200
"""How many of the last notices of a topic are read."""

_COUNT_SECONDS: Final = 7 * 24 * 60 * 60.0


def claim(visitor_digest: str, experience_keys: Sequence[str], seconds: float) -> bool:
    """Return whether this process is to ask for ``experience_keys``, and no other does at this moment.

    A claim is over after ``seconds``, whatever became of who made it. Without a shared cache, or
    with one that fails, everyone asks.
    """
    cache = _get_shared_cache()
    if cache is None:
        return True
    try:
        return cache.add(build_key("claim", visitor_digest, *experience_keys), 1, timeout=max(1, math.ceil(seconds)))
    except Exception as error:  # whatever a cache backend raises, the page goes on
        _log_failure(error)
        return True


def add_to_count(name: str, amount: int, seconds: float) -> int | None:
    """Add to a number that all processes share and return it; ``None`` where they share none."""
    cache = _get_shared_cache()
    if cache is None:
        return None
    key = build_key("count", name)
    try:
        try:
            return cache.incr(key, amount)
        except ValueError:
            # Not there yet: the first of a slot makes it, and whoever comes second adds to that.
            return amount if cache.add(key, amount, timeout=2 * seconds) else cache.incr(key, amount)
    except Exception as error:  # see claim()
        _log_failure(error)
        return None


def read_counts(names: Sequence[str]) -> list[int]:
    """Return the numbers that all processes share under ``names``, 0 for others. Raises what the cache does."""
    cache = _get_shared_cache()
    keys = [build_key("count", name) for name in names]
    found: dict[str, Any] = {} if cache is None else cache.get_many(keys)
    return [int(found.get(key, 0)) for key in keys]


def put_up_notice(topic: str, **said: object) -> None:
    """Let other processes read what this one says of ``topic``; nothing where they share no cache, never raises.

    It waits for the cache, so no page calls it. ``said`` is of what JSON takes.
    """
    number = add_to_count(f"notices/{topic}", 1, _COUNT_SECONDS)
    cache = _get_shared_cache()
    if number is None or cache is None:
        return
    notice = {**said, "process": f"{socket.gethostname()}:{os.getpid()}", "time": int(time.time())}
    try:
        cache.set(build_key("notice", topic, str(number)), notice, timeout=NOTICE_SECONDS)
    except Exception as error:  # see claim()
        _log_failure(error)


def read_notices(topic: str) -> list[dict[str, Any]]:
    """Return the last notice of each process, the latest last. Raises what the cache does.

    Numbered, since no cache lists its keys, and since two processes that wrote one list would overwrite each other.
    """
    cache = _get_shared_cache()
    (last,) = read_counts([f"notices/{topic}"])
    keys = [build_key("notice", topic, str(number)) for number in range(max(1, last - MAX_NOTICES + 1), last + 1)]
    found: dict[str, Any] = {} if cache is None else cache.get_many(keys)
    notices = [found[key] for key in keys if isinstance(found.get(key), dict)]
    by_process = {notice.get("process"): notice for notice in notices}
    return sorted(by_process.values(), key=notices.index)


def has_shared_cache() -> bool:
    """Return whether the site's cache knows more than this process does, so that asking it may take its time."""
    return _is_shared()


def _get_shared_cache() -> BaseCache | None:
    return caches[get_settings().cache] if _is_shared() else None


@part
def _is_shared(runtime: Runtime) -> bool:
    return not isinstance(caches[runtime.settings.cache], LocMemCache | DummyCache)


def _log_failure(error: Exception) -> None:
    kind = type(error).__name__
    log_once(("coordination", kind), "The cache failed (%s), so each process asks MoEngage by itself.", kind)

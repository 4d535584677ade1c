"""The site's Django cache: this package's entries, and the claims, numbers and notices that processes share.

Some caches delete entries of any program when they have MAX_ENTRIES entries. In such a cache of the site, this package
stores only a bounded number of entries: none for each visitor, see has_room().

If the cache fails, the functions log the failure, and return as for an empty cache. Only read_notices() raises it.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from django.conf import settings as django_settings
from django.core.cache import BaseCache, caches
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache

from django_moe_personalize.log import Outage
from django_moe_personalize.moengage.types import draw_uuid
from django_moe_personalize.runtime import Runtime, get_runtime, part, protect_transactions
from django_moe_personalize.visitor import build_digest

T = TypeVar("T")

CACHE_FORMAT: Final = 4
"""A part of every cache key. Add 1 when a stored value changes shape, so that no process reads old entries."""

NOTICE_SECONDS: Final = 60 * 60
"""How long other processes can read a notice."""

MAX_NOTICES: Final = 200
"""How many of a topic's latest notices the cache keeps, and read_notices() reads."""

MAX_SHARE: Final = 20
"""In a cache that deletes entries beyond MAX_ENTRIES, a topic takes at most this part (1 / 20) of the entries."""


def build_key(*parts: str) -> str:
    """Return the cache key of ``parts`` in the current workspace. The key is a keyed hash, so it hides the parts."""
    settings = get_runtime().settings
    workspace = (settings.name, settings.workspace_id, settings.base_url, str(settings.sandbox))
    return f"moe_personalize:{CACHE_FORMAT}:{build_digest((*workspace, *parts))}"


def get_many(keys: Iterable[str]) -> dict[str, Any]:
    """Return the entries of ``keys`` in the site's cache."""
    return _use(lambda cache: cache.get_many(keys) or {}, {})


def set_many(entries: Mapping[str, Any], *, timeout: float | None) -> bool:
    """Store ``entries`` in the site's cache for ``timeout`` seconds, or for good. Return whether all are stored."""
    return _use(lambda cache: not cache.set_many(dict(entries), timeout=timeout), False)


@part
def has_shared_cache(runtime: Runtime) -> bool:
    """Return whether processes share the site's cache. Each use of a shared cache takes a round trip."""
    return _use(lambda cache: not isinstance(cache, LocMemCache | DummyCache), False, does_io=False)


@part
def has_room(runtime: Runtime) -> bool:
    """Return whether the site's cache may get entries for each visitor, and whether processes share these entries.

    With MAX_ENTRIES at its default, 330 visitors would evict all entries of the site, such as sessions and the counters
    of a login throttle. So such a cache gets these entries only if it belongs to this package alone.
    """
    alias = runtime.settings.cache
    return has_shared_cache(runtime) and _use(
        lambda cache: not culls(cache) or is_own_alias(alias), False, does_io=False
    )


def culls(cache: BaseCache | type) -> bool:
    """Return whether a cache deletes entries beyond MAX_ENTRIES, as Django's caches in files and databases do."""
    # Redis and Memcached have limits of their own, and delete the entries that were used least recently.
    return hasattr(cache, "_cull")


def is_own_alias(alias: str) -> bool:
    """Return whether neither Django nor another alias uses the cache ``alias``, as far as the settings show."""
    used = {"default", django_settings.SESSION_CACHE_ALIAS, django_settings.CACHE_MIDDLEWARE_ALIAS}
    # realpath(), because two aliases may write the path of one folder in two ways.
    places = {name: os.path.realpath(str(options.get("LOCATION"))) for name, options in django_settings.CACHES.items()}
    return alias not in used and list(places.values()).count(places[alias]) == 1


@part
def get_outage(runtime: Runtime) -> Outage:
    """Return the log of the failures of the site's cache."""
    place = f"The cache {runtime.settings.cache!r}"
    return Outage(f"{place} fails", f"{place} works again", part="cache")


def claim(visitor: str, experience_keys: Sequence[str], seconds: float) -> bool:
    """Claim a question for this process. Return False if another process has claimed the question.

    A claim lasts ``seconds``, even if its process dies. If processes share no answers, every process gets its claim.
    """
    if not has_room():
        return True
    key, own = build_key("claim", visitor, *experience_keys), draw_uuid()

    def claim_or_find(cache: BaseCache) -> bool:
        if cache.add(key, own, timeout=math.ceil(seconds)):
            return True
        # Some caches return a false value when they fail, such as django-redis with IGNORE_EXCEPTIONS.
        found = cache.get(key)
        return found == own or not (isinstance(found, str) and found)

    return _use(claim_or_find, True)


def add_to_count(name: str, amount: int, seconds: float) -> int | None:
    """Add to a visitor's number that all processes share, and return the sum. Return ``None`` if has_room() is False.

    The cache keeps the number for twice ``seconds``.
    """
    return _add_to_count(name, amount, seconds) if has_room() else None


def _add_to_count(name: str, amount: int, seconds: float) -> int | None:
    key = build_key("count", name)

    def add(cache: BaseCache) -> int:
        try:
            return cache.incr(key, amount)
        except ValueError:
            # The number doesn't exist yet. If another process creates the number first, add to that number.
            return amount if cache.add(key, amount, timeout=2 * seconds) else cache.incr(key, amount)

    return _use(add, None)


def put_up_notice(topic: str, **said: object) -> None:
    """Publish a notice for the site's other processes, if they share a cache. Never raises.

    ``said`` are JSON values. Call this function only in background threads, because it waits for the cache.
    """
    number = _add_to_count(f"notices/{topic}", 1, 7 * 24 * 60 * 60.0) if has_shared_cache() else None
    if number is not None:
        notice = {**said, "process": f"{socket.gethostname()}:{os.getpid()}", "time": int(time.time())}
        place = _use(lambda cache: number % _count_places(cache), 0, does_io=False)
        set_many({build_key("notice", topic, str(place)): notice}, timeout=NOTICE_SECONDS)


def read_notices(topic: str) -> list[dict[str, Any]]:
    """Return the newest notice of each process, from the oldest to the newest. Raises the errors of the cache.

    The notices have numbered keys, because a cache can't list its keys. One shared list wouldn't work: processes would
    overwrite each other's notices.
    """
    if not has_shared_cache():
        return []
    cache = caches[get_runtime().settings.cache]
    last = cache.get(build_key("count", f"notices/{topic}"), 0)
    places = _count_places(cache)
    keys = [build_key("notice", topic, str(number % places)) for number in range(last - places + 1, last + 1)]
    found = cache.get_many(keys)
    notices = [found[key] for key in keys if isinstance(found.get(key), dict)]
    by_process = {notice.get("process"): notice for notice in notices}
    return sorted(by_process.values(), key=notices.index)


def _count_places(cache: BaseCache) -> int:
    """Return how many notices of a topic the cache may keep."""
    return max(1, min(MAX_NOTICES, cache._max_entries // MAX_SHARE)) if culls(cache) else MAX_NOTICES


def _use(action: Callable[[BaseCache], T], fallback: T, *, does_io: bool = True) -> T:
    alias = get_runtime().settings.cache
    try:
        # The cache may be a table of the site's database.
        with protect_transactions():
            result = action(caches[alias])
    except Exception as error:
        # No error of a cache backend may fail a page.
        get_outage().fail(type(error).__name__, f"This process works without it. Check CACHES[{alias!r}].")
        return fallback
    if does_io:
        get_outage().end()
    return result

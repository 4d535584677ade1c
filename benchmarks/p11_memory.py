"""P11: memory for each cached visitor, with 3 experiences out of 30 variations of 2 KB, in the process and in Redis.

In the process the visitor's digest does not count, because every cache needs a key. In Redis everything counts
except the shared bodies.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks import site
from benchmarks.goal import Figure, Options, expect, run
from benchmarks.p06_single_flight import start_redis
from benchmarks.timing import alternate

KEYS = ("hero-banner", "promo-strip", "exit-offer")
VARIATIONS = 10
BODY_BYTES = 2_000
LIMIT = "<= 300 bytes"
VISITORS = 100_000
ONCE = 1_000_000
ACTIVE = 1_000


def build_variations() -> dict[str, list[Any]]:
    """Return ten experiences for each key, about 2 KB of JSON each, as the reader builds them."""
    from django_moe_personalize.moengage.client import read_experience

    names = ("Title", "Subtitle", "Text", "ImageUrl", "CtaLabel", "CtaUrl", "Color", "Terms")
    found: dict[str, list[Any]] = {}
    for key in KEYS:
        found[key] = []
        for number in range(VARIATIONS):
            payload = {name: f"{name} {number} ".ljust(BODY_BYTES // len(names) - 35, ".") for name in names}
            context = {"cid": f"{key}_{number}".ljust(40, "0"), "experience": key, "moe_locale_id": "0"}
            context |= {"moe_variation_id": str(number), "audience_name": "Everybody", "audience_id": "7" * 24}
            found[key].append(read_experience(key, {"payload": payload, "experience_context": context}))
    return found


def pick(variations: Mapping[str, Sequence[Any]], number: int) -> dict[str, Any]:
    """Return the experiences of the visitor with this number; all combinations occur."""
    return {key: variations[key][number // VARIATIONS**place % VARIATIONS] for place, key in enumerate(KEYS)}


def name_visitors(number: int, prefix: str = "visitor") -> list[str]:
    """Return the digests of ``number`` visitors."""
    from django_moe_personalize.visitor import build_digest

    return [build_digest([f"{prefix}-{index}"]) for index in range(number)]


def weigh(build: Callable[[], object], number: int) -> float:
    """Return the bytes that ``build()`` and its kept result add to the process, divided by ``number``."""
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    kept = build()
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    del kept
    return taken / number


def measure_process(variations: Mapping[str, Sequence[Any]], options: Options) -> Figure:
    """Return the bytes for each visitor in the process, against a copy of each answer's parsed JSON."""
    from django_moe_personalize.fetching.cache import get_cache

    visitors, cache = name_visitors(VISITORS), get_cache()

    def store() -> None:
        for number, visitor in enumerate(visitors):
            cache.keep(visitor, pick(variations, number))

    tracemalloc.start()
    copies = weigh(lambda: copy_answers(variations, 1_000), 1_000)
    ours = weigh(store, VISITORS)
    keys = weigh(lambda: name_visitors(10_000, "another"), 10_000)
    tracemalloc.stop()
    check_process(visitors, variations)
    return Figure(
        what=f"memory per visitor in the process, {VISITORS:,} visitors, key excluded; baseline: the parsed responses",
        baseline=copies,
        ours=ours,
        difference=ours,
        limit=LIMIT,
        unit="bytes",
        notes=[
            f"the key takes {keys:.0f} bytes more",
            f"the cache's own estimate, key included: {cache.memory._bytes / VISITORS:.0f} bytes",
        ],
        context=time_calls(visitors, variations, options),
    )


def copy_answers(variations: Mapping[str, Sequence[Any]], number: int) -> list[Any]:
    """Return the parsed JSON of the responses for ``number`` visitors, a copy for each."""
    entries = (pick(variations, visitor) for visitor in range(number))
    return [
        json.loads(json.dumps({key: [e.payload, e.experience_context] for key, e in entry.items()}))
        for entry in entries
    ]


def check_process(visitors: Sequence[str], variations: Mapping[str, Sequence[Any]]) -> None:
    """Raise WrongMeasurement unless memory holds all visitors, and the first and the last with their own answers."""
    from django_moe_personalize.fetching.cache import get_cache

    memory = get_cache().memory
    counts = len(memory._new) + len(memory._returning), len(memory._bodies)
    expect(counts == (len(visitors), len(KEYS) * VARIATIONS), f"the cache has {counts} visitors and bodies")
    for number in (0, len(visitors) - 1):
        answers = get_cache().peek(visitors[number], KEYS).answers
        shown = {key: answers[key].payload for key in KEYS}
        expect(shown == {key: e.payload for key, e in pick(variations, number).items()}, "another visitor's content")


def time_calls(visitors: Sequence[str], variations: Mapping[str, Sequence[Any]], options: Options) -> dict[str, float]:
    """Return the microseconds of the calls that a page makes, with all visitors in memory."""
    from django_moe_personalize.fetching.cache import get_cache

    cache, turns = get_cache(), iter(range(10**12))

    def choose() -> str:
        return visitors[next(turns) * 7919 % len(visitors)]

    answers = pick(variations, 0)
    calls = {
        "peek() of 3 keys, another visitor each time, µs": lambda: cache.peek(choose(), KEYS),
        "peek() of 3 keys, the same visitor, µs": lambda: cache.peek(visitors[0], KEYS),
        "keep() of 3 known bodies, µs": lambda: cache.keep(choose(), answers),
    }
    found = alternate(calls, rounds=options.pick(15, 5))
    return {name: found.median(name) * 1e6 for name in calls}


def measure_scan(variations: Mapping[str, Sequence[Any]], options: Options) -> Figure:
    """Return how many active visitors are still in memory after a flood of visitors who come once."""
    from django_moe_personalize.conf import get_settings
    from django_moe_personalize.fetching.cache import ExperienceCache

    now = time.time()
    cache, answers = ExperienceCache(get_settings(), clock=lambda: now), pick(variations, 0)
    active, once, most = name_visitors(ACTIVE, "active"), options.pick(ONCE, ONCE // 5), 0
    for visitor in active:
        cache.keep(visitor, answers)
    now += 2
    for visitor in active:
        cache.peek(visitor, KEYS)
    for number in range(once):
        cache.keep(f"{number:032x}", answers)
        if number % 100 == 0:
            most = max(most, len(cache.memory._new) + len(cache.memory._returning))
    there = sum(not cache.peek(visitor, KEYS).due for visitor in active)
    return Figure(
        what=f"active visitors still in memory after {once:,} visitors who came once",
        baseline=ACTIVE,
        ours=there,
        limit=">= 1",
        unit="visitors",
        notes=[f"at most {most:,} visitors in memory"],
    )


def measure_redis(variations: Mapping[str, Sequence[Any]], redis_url: str, options: Options) -> Figure:
    """Return the bytes per visitor in Redis without the shared bodies, against a pickle of each visitor's responses."""
    import redis

    server = redis.Redis.from_url(redis_url)
    visitors = name_visitors(options.pick(VISITORS, VISITORS // 5), "redis")
    empty, bodies, full = fill_redis(server, visitors, variations)
    ours = (full - bodies) / len(visitors)
    copy_to_site_cache(visitors[:1_000], variations)
    return Figure(
        what=f"memory per visitor in Redis, {len(visitors):,} visitors, key included; baseline: the pickled responses",
        baseline=(read_used(server) - full) / 1_000,
        ours=ours,
        difference=ours,
        limit=LIMIT,
        unit="bytes",
        notes=[
            f"MEMORY USAGE of one visitor: {weigh_entry(server, visitors[0])} bytes",
            f"all bodies: {bodies - empty:,} bytes",
        ],
    )


def read_used(server: Any) -> int:
    """Return the bytes that Redis uses."""
    return int(server.info("memory")["used_memory"])


def fill_redis(server: Any, visitors: Sequence[str], variations: Mapping[str, Sequence[Any]]) -> tuple[int, int, int]:
    """Store all bodies, then all visitors; return the bytes that Redis uses before, between and after."""
    from django.core.cache import cache as site_cache

    from django_moe_personalize.conf import get_settings
    from django_moe_personalize.fetching.cache import ExperienceCache, get_cache

    # So that the connection and its buffers exist.
    site_cache.set("warm", 1)
    empty = read_used(server)
    for index in range(VARIATIONS):
        get_cache().write(f"first-{index}", {key: variations[key][index] for key in KEYS})
    bodies, keys = read_used(server), server.dbsize()
    for index, visitor in enumerate(visitors):
        get_cache().write(visitor, pick(variations, index))
    expect(server.dbsize() - keys == len(visitors), "not every visitor is one entry")
    another_process = ExperienceCache(get_settings())
    expect(not another_process.read(visitors[-1], KEYS).due, "another process cannot read a visitor from Redis")
    return empty, bodies, read_used(server)


def copy_to_site_cache(visitors: Sequence[str], variations: Mapping[str, Sequence[Any]]) -> None:
    """Store the complete responses of each visitor, as a cache without shared bodies does."""
    from django.core.cache import cache as site_cache

    for index, visitor in enumerate(visitors):
        entries = {key: (e.payload, e.experience_context) for key, e in pick(variations, index).items()}
        site_cache.set(f"moe_personalize:copy:{visitor}", (0.0, entries), timeout=600)


def weigh_entry(server: Any, visitor: str) -> int:
    """Return the bytes of one visitor's key and value, as Redis reports them."""
    from django.core.cache import cache as site_cache

    from django_moe_personalize.fetching.shared import build_key

    return int(server.memory_usage(site_cache.make_key(build_key("visitor", visitor))))


def measure(options: Options) -> Iterator[Figure]:
    """Measure the process, flood it with visitors, and measure Redis if there is a redis-server."""
    from django.test import override_settings

    dummy = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    site.configure(moe=site.build_moe("http://127.0.0.1:9/v1"), CACHES=dummy)
    variations = build_variations()
    yield measure_process(variations, options)
    yield measure_scan(variations, options)
    if shutil.which("redis-server") is None:
        what, notes = "memory per visitor in Redis", ["not measured: PATH has no redis-server"]
        yield Figure(what=what, baseline=1, ours=float("nan"), limit=LIMIT, unit="bytes", notes=notes)
        return
    with start_redis() as url:
        redis = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": url}}
        with override_settings(CACHES=redis):
            yield measure_redis(variations, url, options)


if __name__ == "__main__":
    run("P11", measure)

"""Two brands in one process, with real HTTP and one shared cache: nothing of one brand reaches the other."""

import asyncio
import itertools
import math
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from django.test import AsyncClient, Client

from django_moe_personalize.fetching.cache import get_cache
from django_moe_personalize.fetching.upstream import get_breaker, get_pool
from django_moe_personalize.runtime import get_runtime, reset_runtimes
from tests import brands as site
from tests.brands import BRANDS, Brand
from tests.conftest import settle
from tests.services.conftest import LONG

CUSTOMERS = 40
WIDTH = 8
"""Pages at the same time."""


@pytest.fixture
def brands(settings, tmp_path):
    """The site of two brands, whose processes share a cache in files."""
    files = {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": str(tmp_path)}
    settings.CACHES = {**settings.CACHES, "moe": {**files, "OPTIONS": {"MAX_ENTRIES": 10_000}}}
    with ExitStack() as stack:
        found = [stack.enter_context(Brand(name)) for name in BRANDS]
        site.configure(settings, found, CACHE="moe", DELIVERY={"OPTIONS": {"interval": 0.2}})
        yield found
        # Otherwise threads would wait for their timeouts.
        for brand in found:
            brand.hanging.clear()
            brand.is_refusing = False
            brand.drop_connections()
        settle()
        reset_runtimes()


def plan(number):
    """Return pages as (brand, customer, whether the visitor clicks). Both brands have customers with the same ids.

    A fourth of the pages is of anonymous visitors, each with a cookie of each brand.
    """
    draw = random.Random(number)
    return [
        (draw.choice(BRANDS), draw.choice(["", *[f"customer-{n}" for n in range(CUSTOMERS)]]), draw.random() < 0.1)
        for _ in range(number)
    ]


def check(brand, customer, response, wrong):
    title, link = site.read(response)
    if title.partition(":")[0] != brand or (customer and title != f"{brand}:{customer}"):
        wrong.append((brand, customer, title))
    if "no-store" not in response["Cache-Control"]:
        wrong.append((brand, customer, response["Cache-Control"]))
    return link


def visit(pages, wrong):
    """Read pages with WSGI from several threads, each of which shows both brands in turn. Return the clicks."""
    clicks = Counter()

    def work(part):
        # One browser for both brands: the test client sends all of its cookies to every host.
        client = Client()
        for brand, customer, clicked in part:
            headers = {"x-brand": brand, "x-customer": customer}
            link = check(brand, customer, client.get("/", headers=headers), wrong)
            if clicked:
                # The address of a link doesn't tell the brand here, and the link counts for its own.
                other = {**headers, "x-brand": random.choice(BRANDS)}
                assert client.get(link, headers=other).status_code == 302
                clicks[brand] += 1

    with ThreadPoolExecutor(WIDTH) as pool:
        list(pool.map(work, [pages[start::WIDTH] for start in range(WIDTH)]))
    return clicks


def avisit(pages, wrong):
    """See visit(), with ASGI and one task for each browser."""
    clicks = Counter()

    async def work(part):
        client = AsyncClient()
        for brand, customer, clicked in part:
            headers = {"x-brand": brand, "x-customer": customer}
            link = check(brand, customer, await client.get("/async/", headers=headers), wrong)
            if clicked:
                other = {**headers, "x-brand": random.choice(BRANDS)}
                assert (await client.get(link, headers=other)).status_code == 302
                clicks[brand] += 1

    async def work_all():
        await asyncio.gather(*(work(pages[start::WIDTH]) for start in range(WIDTH)))

    asyncio.run(work_all())
    return clicks


@pytest.mark.parametrize(
    ("way", "function"),
    [(visit, "choose"), (avisit, "choose"), (avisit, "achoose")],
    ids=["wsgi", "asgi", "asgi and async function"],
)
def test_nothing_crosses(brands, settings, extent, tell, way, function):
    """Each page, event and cache entry is of its own brand, although the brands have customers with the same ids."""
    settings.MOE_PERSONALIZE = {**settings.MOE_PERSONALIZE, "WORKSPACE": f"tests.brands.{function}"}
    pages, wrong = plan(20_000 if extent is LONG else 700), []
    clicks = way(pages, wrong)
    shown, accepted = Counter(brand for brand, _, _ in pages), site.flush()
    assert accepted == {name: shown[name] + clicks[name] for name in BRANDS}
    for brand in brands:
        bodies = get_cache(get_runtime(brand.name)).memory._bodies.values()
        wrong += [body for body in bodies if not body.experience["Title"].startswith(f"{brand.name}:")]
        assert len(bodies) > CUSTOMERS
        assert len({event["moe_event_uuid"] for event in brand.events}) == len(brand.events)
        assert len(brand.events) == accepted[brand.name]
        wrong += brand.wrong
        brand.is_refusing = True
    # A new process finds the answers of each brand in the shared cache.
    reset_runtimes()
    for brand, customer in itertools.product(BRANDS, [f"customer-{n}" for n in range(CUSTOMERS)]):
        headers = {"x-brand": brand, "x-customer": customer}
        check(brand, customer, Client().get("/", headers=headers), wrong)
    tell(f"{len(pages):,} pages, {sum(accepted.values()):,} events, {len(wrong)} crossed")
    assert wrong == []


def find_p99(seconds):
    return sorted(seconds)[math.ceil(0.99 * len(seconds)) - 1]


def test_hanging_brand_delays_no_other(brands, settings, extent, tell):
    """While the MoEngage of one brand hangs, the other brand shares no thread, breaker or delivery with it."""
    settings.MOE_PERSONALIZE = {**settings.MOE_PERSONALIZE, "DEADLINE": 0.3, "CACHE_TTL": 0, "CACHE_STALE_TTL": 0}
    mine, other = brands
    stopped, titles = threading.Event(), Counter()

    def get(brand, number):
        headers = {"x-brand": brand.name, "x-customer": f"customer-{number}"}
        return site.read(Client().get("/", headers=headers))[0].partition(":")[0]

    def disturb():
        for number in itertools.count():
            if stopped.is_set():
                return
            titles[get(other, number)] += 1
            time.sleep(0.01)

    def measure(number):
        for n in range(number):
            started = time.perf_counter()
            assert get(mine, n) == mine.name
            yield time.perf_counter() - started

    live, hanging = [], []
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(disturb)
        list(measure(50))
        for _ in range(10 if extent is LONG else 3):
            live += measure(100)
            other.hanging.set()
            before = titles["Welcome"]
            while titles["Welcome"] == before or len(hanging) % 100:
                hanging += measure(10)
            assert get_breaker(get_runtime(mine.name)).state == "closed"
            assert not get_pool(get_runtime(mine.name)).in_flight
            other.hanging.clear()
            other.drop_connections()
        stopped.set()
    tell(f"p99 {find_p99(live) * 1000:.1f} ms, while the other brand hangs {find_p99(hanging) * 1000:.1f} ms")
    shared = {id(each) for each in get_runtime(mine.name)._parts.values()} & {
        id(each) for each in get_runtime(other.name)._parts.values() if not isinstance(each, bool | type(None))
    }
    assert shared == set()
    assert mine.wrong + other.wrong == []

"""A client that invents values fills no memory, and takes no answers from other visitors."""

import resource
from datetime import UTC, datetime

import pytest
from django.core.cache import caches
from django.core.management import call_command
from django.test import RequestFactory

from django_moe_personalize.conf import get_settings
from django_moe_personalize.fetching.cache import ExperienceCache
from django_moe_personalize.fetching.local_cache import MAX_BYTES, MAX_VISITORS, LocalCache
from django_moe_personalize.moengage.client import read_experience
from django_moe_personalize.visitor.attributes import collect_attributes
from django_moe_personalize.visitor.gather import Visitor
from django_moe_personalize.visitor.identity import GRANTED, Identity
from tests.conftest import settle
from tests.fetching.virtual_cache import use_virtual_cache  # noqa: F401 - a fixture

NOW = datetime(2026, 11, 22, tzinfo=UTC)
SEEN = {
    "hero": read_experience("hero", {"payload": {"Title": "Hello"}, "experience_context": {"cid": "x"}}),
    "promo": None,
}


@pytest.mark.timeout(1800)
def test_made_up_campaigns_stay_within_their_bound(extent, tell):
    """A flood of distinct UTM values fills its share of the memory, and a returning visitor still hits."""
    values, places = extent(6_000, 1_000_000), extent(600, MAX_VISITORS)
    now = 1_800_000_000.0
    cache = ExperienceCache(get_settings(), clock=lambda: now, memory=LocalCache(max_visitors=places))
    regular = Visitor(Identity("regular"), {}).digest
    cache.keep(regular, SEEN)
    request = RequestFactory().get("/")
    held, hits = [], []
    for number in range(values):
        request.META["QUERY_STRING"] = f"utm_source=made-up-{number}&utm_medium={number % 7}"
        visitor = Visitor(Identity("flood"), collect_attributes(request, now=NOW, consent=GRANTED))
        cache.keep(visitor.digest, SEEN)
        if number % 100 == 0:
            now += 2
            hits.append(not cache.peek(regular, tuple(SEEN)).due)
            if len(hits) % 20 == 0:
                # As a page has stale answers refreshed.
                cache.keep(regular, SEEN)
        if number in (values // 2, values - 1):
            visitors = len(cache.memory._new) + len(cache.memory._returning)
            held.append((visitors, cache.memory._bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    (_, before, rss_before), (visitors, after, rss_after) = held
    tell(f"{values} values: {visitors} visitors, {after} bytes, {rss_after} KiB, {sum(hits)} of {len(hits)} hits")
    assert visitors <= places
    assert after <= before * 1.05 <= MAX_BYTES
    assert rss_after <= rss_before * 1.05
    assert all(hits)


@pytest.fixture
def many_visitors(upstream, settings, client):
    """Return a function that lets this many visitors with different campaigns and browsers open a page."""
    settings.ROOT_URLCONF = "tests.site"
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"

    def visit(number):
        for index in range(number):
            agent = f"Mozilla/5.0 (X11; Linux x86_64; rv:{index}.0) Firefox/140.0"
            assert client.get(f"/read/?utm_source=made-up-{index}", headers={"user-agent": agent}).status_code == 200
        settle()

    return visit


def test_the_site_cache_gets_nothing_without_an_end(many_visitors, virtual):
    """An invented campaign leaves references in the site's cache, not copies, and they expire."""
    many_visitors(20)
    lengths = [len(text) for _, text in virtual.entries.values()]
    assert len(lengths) >= 20
    assert sum(length > 60 for length in lengths) <= 5
    assert all(until < float("inf") for until, _ in virtual.entries.values())


@pytest.mark.parametrize("backend", ["filebased.FileBasedCache", "db.DatabaseCache", "locmem.LocMemCache"])
@pytest.mark.django_db(transaction=True)
def test_visitors_evict_nothing_of_the_site(many_visitors, settings, tmp_path, backend):
    """With default options, no number of visitors evicts an entry of the site, such as the counters of a throttle."""
    location = "cache_table" if backend.startswith("db") else str(tmp_path)
    settings.CACHES = {"default": {"BACKEND": f"django.core.cache.backends.{backend}", "LOCATION": location}}
    call_command("createcachetable")
    cache = caches["default"]
    throttles = {f"throttle-{number}": number for number in range(290)}
    cache.set_many(throttles)
    many_visitors(330)
    assert cache.get_many(throttles) == throttles

"""Who makes up values of his own fills nobody's memory and takes nobody's answers away."""

import resource
from datetime import UTC, datetime

import pytest
from django.test import RequestFactory

from django_moe_personalize.conf import get_settings
from django_moe_personalize.fetching import cache, local_cache
from django_moe_personalize.fetching.cache import ExperienceCache
from django_moe_personalize.fetching.local_cache import LocalCache
from django_moe_personalize.moengage.types import DataSource, Experience
from django_moe_personalize.visitor.attributes import collect_attributes
from django_moe_personalize.visitor.consent import GRANTED
from django_moe_personalize.visitor.gather import Visitor
from django_moe_personalize.visitor.identity import Identity
from tests.conftest import settle

NOW = datetime(2026, 11, 22, tzinfo=UTC)
SEEN = {
    "hero": Experience("hero", {"Title": "Hello"}, {"cid": "x"}, DataSource.NETWORK),
    "promo": None,
}


@pytest.mark.timeout(1800)
def test_made_up_campaigns_stay_within_their_bound(monkeypatch, extent, tell):
    """A flood of distinct UTM values fills its share of the memory; a visitor who comes back hits as ever."""
    values = extent(6_000, 1_000_000)
    places = extent(600, local_cache.MAX_VISITORS)
    memory = LocalCache(max_visitors=places)
    monkeypatch.setattr(cache, "local_cache", memory)
    now, settings = [1_800_000_000.0], get_settings()
    regular = ExperienceCache(Visitor(Identity("regular"), {}).build_digest(), settings, clock=lambda: now[0])
    regular.set_local(SEEN)
    request = RequestFactory().get("/")
    held, hits = [], []
    for number in range(values):
        request.META["QUERY_STRING"] = f"utm_source=made-up-{number}&utm_medium={number % 7}"
        visitor = Visitor(Identity("flood"), collect_attributes(request, now=NOW, consent=GRANTED))
        ExperienceCache(visitor.build_digest(), settings, clock=lambda: now[0]).set_local(SEEN)
        if number % 100 == 0:
            now[0] += 2
            hits.append(len(regular.get_local(SEEN)) == len(SEEN))
            if len(hits) % 20 == 0:
                # As a page would have it refreshed.
                regular.set_local(SEEN)
        if number in (values // 2, values - 1):
            held.append((memory.counts, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    (before, rss_before), (after, rss_after) = held
    tell(f"{values} values: {after}, {rss_after} KiB at most, the regular visitor hit {sum(hits)} of {len(hits)}")
    assert after.visitors <= places
    assert after.bytes <= before.bytes * 1.05 <= local_cache.MAX_BYTES
    assert rss_after <= rss_before * 1.05
    assert all(hits)


def test_the_site_cache_gets_nothing_without_an_end(upstream, settings, client):
    """What a made-up campaign leaves in the site's cache goes by itself, and is a reference, not a copy."""
    from django.core.cache import cache as site_cache

    settings.ROOT_URLCONF = "tests.site"
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    for number in range(20):
        assert client.get(f"/read/?utm_source=made-up-{number}").status_code == 200
    settle()
    values = {key: site_cache.get(key.split(":", 2)[2]) for key in list(site_cache._cache)}
    lengths = sorted(len(str(value)) for value in values.values())
    assert len(values) >= 20
    assert sum(length > 60 for length in lengths) <= 5
    assert all(site_cache._expire_info[key] is not None for key in values)

"""Keys, freshness and stale answers in the site's cache."""

import pytest
from django.core.cache import cache as django_cache
from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize import cache
from django_moe_personalize.cache import ExperienceCache, build_digest
from django_moe_personalize.conf import get_settings
from django_moe_personalize.identity import Identity
from django_moe_personalize.moengage.types import DataSource, Experience
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.visitor import Visitor

OFFERING = {"dp_offering_id": "1", "offering_content": {}, "offering_context": {"moe_offering_id": "1"}}
HERO = Experience("hero", {"Title": "Hello", "list": [OFFERING]}, {"cid": "1"})

parts = st.lists(st.text(), max_size=5)


class Clock:
    """A clock that a test moves."""

    now = 1_000.0

    def __call__(self):
        return self.now


@given(parts, parts)
def test_digests_tell_parts_apart(first, second):
    """Different parts have different digests, wherever the border between them lies."""
    assert (build_digest(first) == build_digest(second)) == (first == second)


identities = st.builds(
    Identity,
    customer_id=st.none() | st.sampled_from(["", "a", "anon-a", "id:a", "none"]),
    user_identifiers=st.dictionaries(
        st.sampled_from(["u_em", "u_mb", "1"]), st.sampled_from(["a", "b", ""]), max_size=2
    ),
    anonymous=st.booleans(),
)
attributes = st.dictionaries(st.sampled_from(["u_em", "a", "b", "1"]), st.sampled_from(["a", "b", ""]), max_size=3)


@given(identities, attributes, identities, attributes)
def test_visitors_are_told_apart(one, his, other, hers):
    """Two visitors share answers only when identity and attributes are the same."""
    same = (one, his) == (other, hers)
    assert (Visitor(one, his).build_digest() == Visitor(other, hers).build_digest()) == same


def test_vary_cache_on_limits_what_tells_visitors_apart():
    """Attributes that are not in VARY_CACHE_ON make no other entry; identities always do."""
    first = Visitor(Identity("1"), {"utm_medium": "email", "USER_IP_ADDRESS": "192.0.2.1"})
    second = Visitor(Identity("1"), {"utm_medium": "email", "USER_IP_ADDRESS": "192.0.2.2"})
    assert first.build_digest() != second.build_digest()
    with override_personalize(VARY_CACHE_ON=["utm_medium"]):
        assert first.build_digest() == second.build_digest()
        assert first.build_digest() != Visitor(Identity("2"), first.attributes).build_digest()


def test_keys_tell_nothing(settings):
    """No id can be read from a key, nor guessed without the site's secret."""
    visitor = Visitor(Identity("customer-4711"), {})
    key = cache.build_key("experience", visitor.build_digest(), "hero")
    assert "4711" not in key
    assert "hero" not in key
    settings.SECRET_KEY = "another"
    assert cache.build_key("experience", visitor.build_digest(), "hero") != key


def test_workspaces_share_nothing():
    """Another workspace's answers are other entries."""
    key = cache.build_key("x")
    with override_personalize(SANDBOX=False, WORKSPACE_ID="W", API_KEY="k", DATA_CENTER="01"):
        one = cache.build_key("x")
    with override_personalize(SANDBOX=False, WORKSPACE_ID="W", API_KEY="k", DATA_CENTER="02"):
        two = cache.build_key("x")
    assert len({key, one, two}) == 3


def test_present_and_absent_answers_come_back():
    """An experience comes back whole, with its offerings, and says that it is from the cache."""
    store = ExperienceCache("visitor", get_settings())
    store.set({"hero": HERO, "nope": None})
    found = store.get(["hero", "nope", "unasked"])
    assert found.keys() == {"hero", "nope"}
    hero = found["hero"].experience
    assert (hero.payload, hero.experience_context) == (HERO.payload, HERO.experience_context)
    assert hero.source is DataSource.CACHE
    assert [offering.offering_id for offering in hero.offerings] == ["1"]
    assert found["nope"].experience is None
    assert ExperienceCache("another", get_settings()).get(["hero"]) == {}


@pytest.mark.parametrize(
    ("age", "fresh"),
    [(0, True), (59.9, True), (60, False), (600, False), (600.1, None)],
)
def test_freshness(age, fresh):
    """An answer is fresh for CACHE_TTL, usable for CACHE_STALE_TTL, and then gone."""
    clock = Clock()
    store = ExperienceCache("visitor", get_settings(), clock=clock)
    store.set({"hero": HERO})
    clock.now += age
    found = store.get(["hero"])
    assert (found["hero"].fresh if found else None) is fresh


def test_cache_that_fails_is_a_miss(settings, caplog):
    """Reading gives nothing, writing does nothing, and the log says it once."""
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    cache.set_many({"a": 1}, timeout=1)
    assert cache.get_many(["a"]) == {}
    assert len(caplog.records) == 1


def test_another_alias(settings):
    """CACHE names one of the site's caches."""
    memory = "django.core.cache.backends.locmem.LocMemCache"
    settings.CACHES = {
        "default": {"BACKEND": memory, "LOCATION": "default"},
        "experiences": {"BACKEND": memory, "LOCATION": "experiences"},
    }
    with override_personalize(CACHE="experiences"):
        cache.set_many({"a": 1}, timeout=60)
        assert cache.get_many(["a"]) == {"a": 1}
    assert django_cache.get("a") is None

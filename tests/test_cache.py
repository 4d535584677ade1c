"""Keys, freshness and stale answers; and what the settings and a cache that fails do to them."""

import pytest
from django.core.cache import cache as django_cache
from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize.conf import get_settings
from django_moe_personalize.digest import build_digest
from django_moe_personalize.fetching import cache
from django_moe_personalize.fetching.cache import ExperienceCache, get_local_cache
from django_moe_personalize.fetching.local_cache import NAME_BYTES
from django_moe_personalize.moengage.types import DataSource, Experience
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.visitor.gather import Visitor
from django_moe_personalize.visitor.identity import Identity
from tests.test_resilience import Clock
from tests.virtual_cache import HERO, VIRTUAL, use_virtual_cache  # noqa: F401 - a fixture among them

parts = st.lists(st.text(), max_size=5)


@pytest.fixture(params=["memory", "cache"])
def level(request):
    """Give what makes the answer come from the process's memory, and then from the site's cache."""
    return cache.forget if request.param == "cache" else lambda: None


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
    name = cache._build_reference("hero", "")[:NAME_BYTES]
    settings.SECRET_KEY = "another"
    assert cache.build_key("experience", visitor.build_digest(), "hero") != key
    assert cache._build_reference("hero", "")[:NAME_BYTES] != name


def test_workspaces_share_nothing():
    """Another workspace's answers are other entries."""
    key = cache.build_key("x")
    with override_personalize(SANDBOX=False, WORKSPACE_ID="W", API_KEY="k", DATA_CENTER="01"):
        one = cache.build_key("x")
    with override_personalize(SANDBOX=False, WORKSPACE_ID="W", API_KEY="k", DATA_CENTER="02"):
        two = cache.build_key("x")
    assert len({key, one, two}) == 3


def test_content_is_told_apart():
    """Payload, context and key all make the body, as do the types of JSON."""
    variations = [
        HERO,
        Experience("promo", HERO.payload, HERO.experience_context),
        Experience("hero", HERO.payload, {"cid": "2"}),
        Experience("hero", {"Title": 1}),
        Experience("hero", {"Title": True}),
        Experience("hero", {"Title": 1.0}),
        Experience("hero", {"Title": "1"}),
        Experience("hero", {}, {"Title": 1}),
    ]
    for number, experience in enumerate(variations):
        ExperienceCache(str(number), get_settings()).set({experience.experience_key: experience})
    get_local_cache().clear()
    for number, experience in enumerate(variations):
        found = ExperienceCache(str(number), get_settings()).get(["hero", "promo"])
        assert found.keys() == {experience.experience_key}
        cached = found[experience.experience_key].experience
        assert repr((cached.payload, cached.experience_context)) == repr(
            (experience.payload, experience.experience_context)
        )
    bodies = {cache._build_reference(key, "{}")[NAME_BYTES:] for key in ("hero", "promo")}
    assert len(bodies) == 2


def test_present_and_absent_answers_come_back(level):
    """An experience comes back whole, with its offerings, and says that it is from the cache."""
    store = ExperienceCache("visitor", get_settings())
    store.set({"hero": HERO, "nope": None})
    level()
    found = store.get(["hero", "nope", "unasked"])
    assert found.keys() == {"hero", "nope"}
    hero = found["hero"].experience
    assert (hero.payload, hero.experience_context) == (HERO.payload, HERO.experience_context)
    assert list(hero.payload) == ["Title", "list", "Button"]
    assert hero.source is DataSource.CACHE
    assert [offering.offering_id for offering in hero.offerings] == ["1"]
    assert found["nope"].experience is None
    assert ExperienceCache("another", get_settings()).get(["hero"]) == {}


@pytest.mark.parametrize(
    ("age", "fresh"),
    [(-5.5, None), (-5, True), (0, True), (59.5, True), (60, False), (600, False), (600.5, None)],
)
def test_freshness(level, age, fresh):
    """An answer is fresh for CACHE_TTL, usable for CACHE_STALE_TTL, and then gone, as it is when it came later."""
    clock = Clock()
    store = ExperienceCache("visitor", get_settings(), clock=clock)
    store.set({"hero": HERO, "nope": None})
    clock.now += age
    level()
    for key in ("hero", "nope"):
        found = store.get([key])
        assert (found[key].fresh if found else None) is fresh


def test_stored_moment_counts_and_not_the_moment_of_reading():
    """What a process reads late it does not keep longer."""
    clock = Clock()
    store = ExperienceCache("visitor", get_settings(), clock=clock)
    store.set({"hero": HERO})
    clock.now += 59
    get_local_cache().clear()
    assert store.get(["hero"])["hero"].fresh
    clock.now += 1
    assert not store.get_local(["hero"])["hero"].fresh
    clock.now += 541
    assert store.get_local(["hero"]) == store.get(["hero"]) == {}


def test_without_a_life_nothing_is_kept(virtual):
    """CACHE_TTL and CACHE_STALE_TTL of 0 turn the cache off, in the process too."""
    with override_personalize(CACHE_TTL=0, CACHE_STALE_TTL=0):
        store = ExperienceCache("visitor", get_settings())
        store.set({"hero": HERO})
        assert store.get_local(["hero"]) == {}
    assert virtual.calls == []


def test_stale_from_the_start(virtual):
    """CACHE_TTL of 0 alone keeps answers for when the vendor fails."""
    with override_personalize(CACHE_TTL=0):
        store = ExperienceCache("visitor", get_settings(), clock=virtual.time)
        store.set({"hero": HERO})
        virtual.now -= 1
        assert not store.get(["hero"])["hero"].fresh


def test_memory_answers_when_the_cache_is_down(settings, caplog):
    """A cache that fails costs no answer that this process has."""
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    clock = Clock()
    store = ExperienceCache("visitor", get_settings(), clock=clock)
    store.set({"hero": HERO})
    clock.now += 60
    assert not store.get(["hero"])["hero"].fresh


def test_changed_settings_empty_the_memory(settings):
    """Another workspace, or another cache, begins with nothing in memory; other settings change nothing."""
    store = ExperienceCache("visitor", get_settings())
    store.set({"hero": HERO})
    settings.APPEND_SLASH = False
    assert store.get_local(["hero"])
    with override_personalize(CACHE_TTL=30):
        assert store.get_local(["hero"]) == {}
        store.set({"hero": HERO})
    assert store.get_local(["hero"]) == {}
    store.set({"hero": HERO})
    settings.CACHES = VIRTUAL
    assert store.get_local(["hero"]) == {}


def test_another_secret_shares_nothing(settings):
    """Entries made with another SECRET_KEY are not found."""
    store = ExperienceCache("visitor", get_settings())
    store.set({"hero": HERO})
    get_local_cache().clear()
    settings.SECRET_KEY = "another"
    assert store.get(["hero"]) == {}


def test_cache_that_fails_is_a_miss(settings, caplog):
    """Reading gives nothing, writing does nothing, and the log says it once."""
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    cache.set_many({"a": 1}, timeout=1)
    assert cache.get_many(["a"]) == {}
    assert not cache.set_many({"a": 1}, timeout=1)
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


def test_memory_alone():
    """What is put into memory is there at once, and in no other process."""
    store = ExperienceCache("visitor", get_settings())
    store.set_local({"hero": HERO, "nope": None})
    assert store.get_local(["hero", "nope"]).keys() == {"hero", "nope"}
    get_local_cache().clear()
    assert store.get(["hero", "nope"]) == {}
    with override_personalize(CACHE_TTL=0, CACHE_STALE_TTL=0):
        nothing = ExperienceCache("visitor", get_settings())
        nothing.set_local({"hero": HERO})
        assert nothing.get_local(["hero"]) == {}

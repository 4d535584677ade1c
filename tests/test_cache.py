"""Keys, freshness and stale answers, in the process and in the site's cache."""

import json
import threading

import pytest
from django.core.cache import cache as django_cache
from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize import cache
from django_moe_personalize.cache import CachedExperience, ExperienceCache, build_digest
from django_moe_personalize.conf import get_settings
from django_moe_personalize.identity import Identity
from django_moe_personalize.interning import NAME_BYTES, LocalCache
from django_moe_personalize.moengage.types import DataSource, Experience
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.visitor import Visitor
from tests.virtual_cache import GARBAGE, VIRTUAL, server

OFFERING = {"dp_offering_id": "1", "offering_content": {}, "offering_context": {"moe_offering_id": "1"}}
HERO = Experience("hero", {"Title": "Hello", "list": [OFFERING], "Button": "Go"}, {"cid": "1"})
PROMO = Experience("promo", {"Text": "Free returns"}, {"cid": "2"})

parts = st.lists(st.text(), max_size=5)


class Clock:
    """A clock that a test moves."""

    now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture(params=["memory", "cache"])
def level(request):
    """Give what makes the answer come from the process's memory, and then from the site's cache."""
    return cache.forget if request.param == "cache" else lambda: None


@pytest.fixture
def virtual(settings):
    """Give a cache server on a virtual clock as the site's cache."""
    settings.CACHES = VIRTUAL
    server.__init__()
    return server


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
    cache.forget()
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


def test_round_trips(virtual):
    """One each way in steady state, none while memory is fresh, one more for bodies that are new."""
    store = ExperienceCache("visitor", get_settings(), clock=virtual.time)
    store.set({"hero": HERO, "nope": None})
    assert store.get(["hero", "nope"]).keys() == store.get_local(["nope", "hero"]).keys() == {"hero", "nope"}
    assert virtual.calls == [("set", 1), ("set", 1)]
    cache.forget()
    store.get(["hero", "nope"])
    assert virtual.calls[2:] == [("get", 1), ("get", 1)]
    virtual.now += 60
    store.get(["hero", "nope"])
    assert virtual.calls[4:] == [("get", 1)]
    store.get(["hero", "unknown"])
    assert virtual.calls[5:] == [("get", 1)]


def test_body_is_written_again_before_it_expires(virtual):
    """Half of its time a body is not written again; after that it is, so that it outlives who refers to it."""
    store = ExperienceCache("visitor", get_settings(), clock=virtual.time)
    store.set({"hero": HERO})
    for seconds, writes in ((599, 1), (1, 2), (599, 1), (-700, 2)):
        virtual.now += seconds
        virtual.calls.clear()
        store.set({"hero": HERO})
        assert virtual.calls == [("set", 1)] * writes
    virtual.now += 599
    ExperienceCache("other", get_settings(), clock=virtual.time).set({"hero": HERO})
    virtual.now += 599.5
    cache.forget()
    assert ExperienceCache("other", get_settings(), clock=virtual.time).get(["hero"])


def test_body_that_the_cache_did_not_take_is_written_again(virtual):
    """A body counts as written only when the cache took it."""
    store = ExperienceCache("visitor", get_settings())
    virtual.refuse = lambda text: text.startswith("[")
    store.set({"hero": HERO})
    virtual.refuse = None
    virtual.calls.clear()
    store.set({"hero": HERO})
    assert virtual.calls == [("set", 1), ("set", 1)]


def test_visitors_share_a_body(virtual):
    """What many are shown is stored once and is one object in the process, whatever order its names come in."""
    again = Experience("hero", dict(reversed(HERO.payload.items())), HERO.experience_context)
    stores = [ExperienceCache(f"visitor-{number}", get_settings()) for number in range(10)]
    for number, store in enumerate(stores):
        store.set({"hero": again if number % 2 else HERO})
    assert len(virtual.entries) == 11
    assert sum(len(text) for _, text in virtual.entries.values()) < 1_000
    cache.forget()
    experiences = {id(store.get(["hero"])["hero"].experience) for store in stores}
    assert len(experiences) == 1


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
    cache.forget()
    for number, experience in enumerate(variations):
        found = ExperienceCache(str(number), get_settings()).get(["hero", "promo"])
        assert found.keys() == {experience.experience_key}
        cached = found[experience.experience_key].experience
        assert repr((cached.payload, cached.experience_context)) == repr(
            (experience.payload, experience.experience_context)
        )
    bodies = {cache._build_reference(key, "{}")[NAME_BYTES:] for key in ("hero", "promo")}
    assert len(bodies) == 2


def test_other_answers_of_a_visitor_stay(virtual):
    """What is stored for some keys leaves the others as they are, also where only their reference is known."""
    store = ExperienceCache("visitor", get_settings(), clock=virtual.time)
    store.set({"hero": HERO, "promo": PROMO})
    cache.forget()
    virtual.now += 10
    assert store.get(["hero"]).keys() == {"hero"}
    assert store.get_local(["promo"]) == {}
    virtual.calls.clear()
    store.set({"exit": None})
    assert virtual.calls == [("set", 1)]
    cache.forget()
    virtual.now += 50
    found = store.get(["hero", "promo", "exit"])
    assert {key: cached.fresh for key, cached in found.items()} == {"hero": False, "promo": False, "exit": True}


def test_what_nobody_can_use_any_more_is_not_written_again(virtual):
    """An answer past its hard age, or of the future, leaves both levels at the next write."""
    store = ExperienceCache("visitor", get_settings(), clock=virtual.time)
    store.set({"hero": HERO})
    for step in (600.5, -600):
        virtual.now += step
        store.set({"exit": None})
        assert cache.local_cache.counts.bodies == 1
        (visitor,) = {text for _, text in virtual.entries.values() if not text.startswith(r'"[\"')}
        assert len(json.loads(visitor)) == 32
        store.set({"hero": HERO})


def test_clock_that_was_set_back_a_little_loses_no_answer(virtual):
    """What is stored last is what is known, though it seems to have been stored earlier."""
    store = ExperienceCache("visitor", get_settings(), clock=virtual.time)
    store.set({"hero": HERO, "promo": PROMO})
    virtual.now -= 3
    store.set({"hero": None})
    cache.forget()
    found = store.get(["hero", "promo"])
    assert found["hero"] == CachedExperience(None, fresh=True)
    assert found["promo"].experience.payload == PROMO.payload


def test_newest_of_both_levels_is_taken(virtual):
    """A stale answer in memory gives way to what another process has stored since."""
    store = ExperienceCache("visitor", get_settings(), clock=virtual.time)
    store.set({"hero": HERO, "nope": None})
    mine, cache.local_cache = cache.local_cache, LocalCache()
    try:
        virtual.now += 70
        store.get(["nope"])
        store.set({"hero": None, "exit": None})
    finally:
        cache.local_cache = mine
    assert store.get_local(["hero"])["hero"].experience.payload == HERO.payload
    found = store.get(["hero", "nope"])
    assert found == {"hero": CachedExperience(None, fresh=True), "nope": CachedExperience(None, fresh=False)}


def test_what_memory_lacks_is_asked_for(virtual):
    """One key fresh in memory does not keep the others from being looked up."""
    store = ExperienceCache("visitor", get_settings())
    store.set({"hero": HERO, "promo": PROMO})
    cache.forget()
    assert store.get(["hero"]).keys() == {"hero"}
    assert store.get(["hero", "promo"]).keys() == {"hero", "promo"}


@pytest.mark.parametrize("value", GARBAGE, ids=range(len(GARBAGE)))
def test_what_is_not_ours_is_a_miss(virtual, value):
    """Whatever another program or release left in our place is nobody's answer, and is overwritten."""
    store = ExperienceCache("visitor", get_settings())
    store.set({"hero": HERO, "promo": PROMO})
    visitor = next(name for name, (_, text) in virtual.entries.items() if not text.startswith(r'"[\"'))
    body = next(name for name, (_, text) in virtual.entries.items() if text.startswith(r'"[\"hero'))
    cache.forget()
    ours, virtual.entries[body] = virtual.entries[body], (float("inf"), json.dumps(value))
    assert store.get(["hero", "promo"]).keys() == {"promo"}
    virtual.entries[body] = ours
    virtual.entries[visitor] = (float("inf"), json.dumps(value))
    cache.forget()
    assert store.get(["hero", "promo"]) == {}
    store.set({"hero": HERO})
    cache.forget()
    assert store.get(["hero", "promo"]).keys() == {"hero"}


def test_visitor_cut_short_is_a_miss(virtual):
    """Half a visitor is nobody: no part of it is taken over and written again."""
    store = ExperienceCache("visitor", get_settings())
    store.set({"hero": None, "promo": None})
    ((name, (until, text)),) = virtual.entries.items()
    virtual.entries[name] = (until, json.dumps(json.loads(text)[:-4]))
    cache.forget()
    assert store.get(["hero", "promo"]) == {}
    store.set({"exit": None})
    cache.forget()
    assert store.get(["hero", "promo", "exit"]).keys() == {"exit"}


def test_body_that_is_gone_is_a_miss_of_its_key(virtual):
    """The site's cache may lose a body: that key is fetched anew, and stored for all."""
    store, other = (ExperienceCache(name, get_settings()) for name in ("visitor", "other"))
    for each in (store, other):
        each.set({"hero": HERO, "promo": PROMO})
    cache.forget()
    del virtual.entries[next(name for name, (_, text) in virtual.entries.items() if text.startswith(r'"[\"hero'))]
    assert store.get(["hero", "promo"]).keys() == {"promo"}
    store.set({"hero": HERO})
    assert other.get(["hero", "promo"]).keys() == {"hero", "promo"}


def test_forged_body_is_a_miss(virtual):
    """Who can write into the cache, without the site's secret, cannot choose what visitors are shown."""
    store = ExperienceCache("visitor", get_settings())
    store.set({"hero": HERO})
    virtual.entries = {
        name: (until, text.replace("Hello", "Hacked")) for name, (until, text) in virtual.entries.items()
    }
    cache.forget()
    assert store.get(["hero"]) == {}


def test_many_keys_of_one_visitor_at_once(virtual):
    """Threads that store different keys of one visitor leave all of them in the process."""
    keys = [f"key-{number}" for number in range(8)]
    stores = [ExperienceCache("visitor", get_settings()) for _ in keys]
    pool = [threading.Thread(target=store.set, args=({key: HERO},)) for key, store in zip(keys, stores, strict=True)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    assert stores[0].get_local(keys).keys() == set(keys)


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
    cache.forget()
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
    cache.forget()
    assert store.get(["hero", "nope"]) == {}
    with override_personalize(CACHE_TTL=0, CACHE_STALE_TTL=0):
        nothing = ExperienceCache("visitor", get_settings())
        nothing.set_local({"hero": HERO})
        assert nothing.get_local(["hero"]) == {}

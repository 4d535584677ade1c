"""Both levels of the cache, a process's memory and the site's cache: what is written when, and what is a miss."""

import json
import threading

import pytest

from django_moe_personalize.conf import get_settings
from django_moe_personalize.fetching import cache
from django_moe_personalize.fetching.cache import CachedExperience, ExperienceCache, get_local_cache
from django_moe_personalize.fetching.local_cache import LocalCache
from django_moe_personalize.moengage.types import Experience
from tests.virtual_cache import GARBAGE, HERO, PROMO, use_virtual_cache  # noqa: F401 - a fixture among them


def test_round_trips(virtual):
    """One each way in steady state, none while memory is fresh, one more for bodies that are new."""
    store = ExperienceCache("visitor", get_settings(), clock=virtual.time)
    store.set({"hero": HERO, "nope": None})
    assert store.get(["hero", "nope"]).keys() == store.get_local(["nope", "hero"]).keys() == {"hero", "nope"}
    assert virtual.calls == [("set", 1), ("set", 1)]
    get_local_cache().clear()
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
    get_local_cache().clear()
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
    get_local_cache().clear()
    experiences = {id(store.get(["hero"])["hero"].experience) for store in stores}
    assert len(experiences) == 1


def test_other_answers_of_a_visitor_stay(virtual):
    """What is stored for some keys leaves the others as they are, also where only their reference is known."""
    store = ExperienceCache("visitor", get_settings(), clock=virtual.time)
    store.set({"hero": HERO, "promo": PROMO})
    get_local_cache().clear()
    virtual.now += 10
    assert store.get(["hero"]).keys() == {"hero"}
    assert store.get_local(["promo"]) == {}
    virtual.calls.clear()
    store.set({"exit": None})
    assert virtual.calls == [("set", 1)]
    get_local_cache().clear()
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
    get_local_cache().clear()
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
    get_local_cache().clear()
    assert store.get(["hero"]).keys() == {"hero"}
    assert store.get(["hero", "promo"]).keys() == {"hero", "promo"}


@pytest.mark.parametrize("value", GARBAGE, ids=range(len(GARBAGE)))
def test_what_is_not_ours_is_a_miss(virtual, value):
    """Whatever another program or release left in our place is nobody's answer, and is overwritten."""
    store = ExperienceCache("visitor", get_settings())
    store.set({"hero": HERO, "promo": PROMO})
    visitor = next(name for name, (_, text) in virtual.entries.items() if not text.startswith(r'"[\"'))
    body = next(name for name, (_, text) in virtual.entries.items() if text.startswith(r'"[\"hero'))
    get_local_cache().clear()
    ours, virtual.entries[body] = virtual.entries[body], (float("inf"), json.dumps(value))
    assert store.get(["hero", "promo"]).keys() == {"promo"}
    virtual.entries[body] = ours
    virtual.entries[visitor] = (float("inf"), json.dumps(value))
    get_local_cache().clear()
    assert store.get(["hero", "promo"]) == {}
    store.set({"hero": HERO})
    get_local_cache().clear()
    assert store.get(["hero", "promo"]).keys() == {"hero"}


def test_visitor_cut_short_is_a_miss(virtual):
    """Half a visitor is nobody: no part of it is taken over and written again."""
    store = ExperienceCache("visitor", get_settings())
    store.set({"hero": None, "promo": None})
    ((name, (until, text)),) = virtual.entries.items()
    virtual.entries[name] = (until, json.dumps(json.loads(text)[:-4]))
    get_local_cache().clear()
    assert store.get(["hero", "promo"]) == {}
    store.set({"exit": None})
    get_local_cache().clear()
    assert store.get(["hero", "promo", "exit"]).keys() == {"exit"}


def test_body_that_is_gone_is_a_miss_of_its_key(virtual):
    """The site's cache may lose a body: that key is fetched anew, and stored for all."""
    store, other = (ExperienceCache(name, get_settings()) for name in ("visitor", "other"))
    for each in (store, other):
        each.set({"hero": HERO, "promo": PROMO})
    get_local_cache().clear()
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
    get_local_cache().clear()
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

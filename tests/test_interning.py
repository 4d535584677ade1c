"""The process's own level of the cache: what it keeps, what goes, and that nobody can change what is shared."""

import os
import signal
import threading
import warnings
from collections import OrderedDict

import pytest

from django_moe_personalize.fetching.local_cache import (
    MAX_ANSWERS,
    Body,
    CachedExperience,
    LocalCache,
    LocalCounts,
    Span,
    build_experience,
    unfold,
)
from django_moe_personalize.moengage.types import Experience

ALWAYS = Span(0, 10**12)
MINUTE = 60_000


def body(number, size=0):
    """Build the body with this number."""
    return Body(number.to_bytes(4, "big") * 4, f"key-{number}", Experience(f"key-{number}", {}), size=size)


def put(cache, visitor, *bodies, at=0, span=ALWAYS):
    """Store bodies for a visitor."""
    return cache.merge(visitor, {b.name: (at, b) for b in bodies}, span)


def read(cache, visitor, now=0):
    """Return what is known of a visitor, by key."""
    return {b.key: at for at, b in unfold(cache.find(visitor, now))}


def test_visitors_share_bodies_and_free_them():
    """A body is one object for all, and goes with the last visitor who has it."""
    cache = LocalCache(max_visitors=2)
    put(cache, "ann", body(1), body(2))
    put(cache, "ben", body(1))
    assert cache.find("ann", 0)[1] is cache.find("ben", 0)[1] is cache.get_body(body(1).reference)
    assert (cache.counts.visitors, cache.counts.bodies) == (2, 2)
    put(cache, "eve", body(1))
    assert read(cache, "ann") == {}
    assert (cache.counts.visitors, cache.counts.bodies) == (2, 1)


def test_visitor_is_one_flat_tuple():
    """Bodies stored together share their moment, and the newest come first."""
    cache = LocalCache()
    first, second, third = body(1), body(2), body(3)
    put(cache, "ann", first, second, at=1)
    assert put(cache, "ann", third, at=2) == (2, third, 1, first, second)


def test_newer_answer_stays_and_useless_ones_go():
    """Of two answers the newer stays; what is too old or of the future goes, and with it the visitor."""
    cache = LocalCache()
    put(cache, "ann", body(1), body(2), at=10)
    put(cache, "ann", body(1), at=5)
    assert read(cache, "ann") == {"key-1": 10, "key-2": 10}
    put(cache, "ann", body(1), at=20)
    assert read(cache, "ann") == {"key-1": 20, "key-2": 10}
    cache.merge("ann", {body(1).name: (15, body(1))}, ALWAYS, overwrite=True)
    assert put(cache, "ann", span=Span(12, 30))[0] == 15
    assert put(cache, "ann", span=Span(0, 14)) == ()
    assert cache.counts == LocalCounts(0, 0, 0)


def test_nothing_is_kept_of_a_visitor_of_whom_nothing_is_known():
    """A visitor without any answer takes no place."""
    cache = LocalCache()
    assert put(cache, "ann") == ()
    assert cache.counts == LocalCounts(0, 0, 0)


def test_body_is_learnt_for_everybody():
    """Whoever reads a body that was known by its reference alone gives it to all who have the reference."""
    cache = LocalCache()
    bare = Body(body(1).reference)
    put(cache, "ann", bare)
    weight = cache.counts.bytes
    assert read(cache, "ann") == {None: 0}
    put(cache, "ben", body(1, size=100))
    assert read(cache, "ann") == read(cache, "ben") == {"key-1": 0}
    assert bare.fresh == CachedExperience(Experience("key-1", {}), fresh=True)
    assert bare.stale == CachedExperience(Experience("key-1", {}), fresh=False)
    put(cache, "ben", Body(body(1).reference))
    assert read(cache, "ben") == {"key-1": 0}
    put(cache, "ben", span=Span(1, 1))
    assert cache.counts.bytes == weight + 100


def test_keys_of_one_visitor_are_bounded():
    """A site that makes keys out of what a visitor sends keeps the newest."""
    cache = LocalCache()
    for number in range(MAX_ANSWERS + 10):
        put(cache, "ann", body(number), at=number)
    assert read(cache, "ann").keys() == {f"key-{number}" for number in range(10, MAX_ANSWERS + 10)}
    assert cache.counts.bodies == MAX_ANSWERS


def test_bodies_made_for_one_visitor_each_are_bounded_by_their_weight():
    """Content that nobody shares leaves fewer visitors in memory, never more memory; one too large is not kept."""
    cache = LocalCache(max_bytes=100_000)
    for number in range(1_000):
        put(cache, f"visitor-{number}", body(number, size=9_000))
        assert cache.counts.bytes <= 100_000
    assert 5 < cache.counts.visitors == cache.counts.bodies <= 10
    put(cache, "ann", body(1, size=200_000))
    assert cache.counts == LocalCounts(0, 0, 0)


def test_who_comes_back_outlasts_any_number_who_come_once():
    """Random query parameters make visitors without end, and no active visitor loses a place to them."""
    cache, shared = LocalCache(max_visitors=100), body(1)
    active = [f"active-{number}" for number in range(20)]
    for visitor in active:
        put(cache, visitor, shared)
        cache.find(visitor, MINUTE)
    answers = {shared.name: (MINUTE, shared)}
    for number in range(50_000):
        cache.merge(str(number), answers, ALWAYS)
    assert all(cache.find(visitor, 2 * MINUTE) for visitor in active)
    assert cache.counts.visitors == 100


def test_reading_on_in_one_page_is_not_coming_back():
    """What one page reads twice is no reason to keep its visitor; what is read a second later is."""
    cache = LocalCache(max_visitors=10)
    put(cache, "once", body(1))
    put(cache, "again", body(1))
    cache.find("once", 999)
    cache.find("again", 1_000)
    for number in range(10):
        put(cache, str(number), body(1))
    assert cache.find("again", 0)
    assert not cache.find("once", 0)


def test_visitor_read_lately_stays_longer():
    """Among those who did not come back yet, the one read longest ago goes first."""
    cache = LocalCache(max_visitors=3)
    for visitor in ("first", "second", "third"):
        put(cache, visitor, body(1))
    cache.find("first", 0)
    put(cache, "fourth", body(1))
    assert cache.find("first", 0)
    assert not cache.find("second", 0)
    put(cache, "third", body(2))
    put(cache, "fifth", body(1))
    assert cache.find("third", 0)
    assert not cache.find("fourth", 0)


def test_those_who_came_back_leave_room_for_newcomers():
    """Past their share, the one who is away longest gives way, and keeps a newcomer's place for now."""
    cache = LocalCache(max_visitors=10)
    for number in range(10):
        put(cache, str(number), body(1))
        cache.find(str(number), MINUTE)
    assert all(cache.find(str(number), 0) for number in range(10))
    cache.find("2", 0)
    for visitor in ("newcomer", "returning"):
        put(cache, visitor, body(1))
    cache.find("returning", MINUTE)
    for number in range(10):
        put(cache, f"new-{number}", body(1))
    assert [n for n in range(10) if cache.find(str(n), 0)] == [2, 4, 5, 6, 7, 8, 9]
    assert cache.find("returning", 0)
    assert not cache.find("newcomer", 0)
    assert cache.counts.visitors == 10


def test_visitor_who_is_just_moved_is_found():
    """A visitor whom another thread moves from one segment to the other while a page looks is found."""
    cache = LocalCache()
    put(cache, "ann", body(1))

    class Moving(OrderedDict):
        def move_to_end(self, visitor):
            cache._protected[visitor] = self.pop(visitor)
            super().move_to_end(visitor)

    cache._first = Moving(cache._first)
    assert read(cache, "ann", MINUTE) == {"key-1": 0}


def test_answer_stored_again_keeps_the_place():
    """A visitor who came back stays one when the answers are fetched anew."""
    cache = LocalCache(max_visitors=5)
    put(cache, "ann", body(1))
    cache.find("ann", MINUTE)
    put(cache, "ann", body(2), at=MINUTE)
    for number in range(10):
        put(cache, str(number), body(1))
    assert read(cache, "ann") == {"key-1": 0, "key-2": MINUTE}


def test_reading_does_not_wait():
    """While another thread changes the map, a page reads; a visitor taken out meanwhile comes back nowhere."""
    cache = LocalCache()
    put(cache, "ann", body(1))
    with cache._lock:
        assert cache.find("ann", MINUTE)
        assert cache.find("ben", MINUTE) == ()
    cache._promote("ben")
    assert cache.find("ben", MINUTE) == ()


def test_many_threads():
    """Threads that store and read the same visitors lose no answer and no count."""
    cache = LocalCache(max_visitors=50)
    barrier, errors = threading.Barrier(4), []

    def work(number):
        try:
            barrier.wait()
            for turn in range(500):
                put(cache, "all", body(number), at=turn)
                put(cache, f"{number}-{turn}", body(turn % 7))
                cache.find(f"{(number + 1) % 4}-{turn}", MINUTE)
                assert f"key-{number}" in read(cache, "all", MINUTE)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert read(cache, "all") == dict.fromkeys((f"key-{number}" for number in range(4)), 499)
    assert cache.counts.visitors == 50
    cache.clear()
    assert cache.counts == LocalCounts(0, 0, 0)


def test_child_of_a_fork_starts_empty_and_does_not_wait():
    """A process forked in the middle of another thread's change begins anew; the parent goes on."""
    cache = LocalCache()
    put(cache, "ann", body(1))
    with cache._lock, warnings.catch_warnings():
        # Python warns of a fork beside threads; that it goes well is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            right = cache.counts == LocalCounts(0, 0, 0) and len(put(cache, "ann", body(1))) == 2
            os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert read(cache, "ann") == {"key-1": 0}


def test_a_cached_experience_cannot_be_changed():
    """A change at any depth raises TypeError, and a later change of the source has no effect."""
    payload, context = {"list": [1]}, {"cid": "1"}
    experience = build_experience("hero", payload, context)
    for change in (experience.payload["list"].clear, experience.experience_context.clear, experience.payload.clear):
        with pytest.raises(TypeError, match="share its content"):
            change()
    payload["list"].clear()
    context.clear()
    assert experience == build_experience("hero", {"list": [1]}, {"cid": "1"})

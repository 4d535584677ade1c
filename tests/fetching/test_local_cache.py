"""The memory of one process: which answers it shares and keeps, and how many bytes it takes."""

import gc
import json
import tracemalloc
from collections import OrderedDict
from unittest import mock

import pytest

from django_moe_personalize.conf import get_settings
from django_moe_personalize.fetching import local_cache
from django_moe_personalize.fetching.cache import ExperienceCache
from django_moe_personalize.fetching.local_cache import MAX_ANSWERS, Body, LocalCache, unfold
from tests.fetching.shapes import SHAPES
from tests.fetching.virtual_cache import build
from tests.processes import together

ALWAYS = range(10**12)
MINUTE = 60_000


def count(cache):
    """Return the numbers of visitors and of bodies, and the estimated bytes."""
    return len(cache._new) + len(cache._returning), len(cache._bodies), cache._bytes


def body(number, text=""):
    """Build the body with this number."""
    experience = build(f"key-{number}", Text=text)
    return Body(number.to_bytes(16, "big"), f"key-{number}", experience)


def put(cache, visitor, *bodies, at=0, usable=ALWAYS, overwrite=False):
    """Store bodies for a visitor."""
    return cache.store(visitor, [(at, bodies)], usable, overwrite=overwrite)


def read(cache, visitor, now=0):
    """Return the moments of a visitor's answers by key."""
    return {key: at for at, bundle in unfold(cache.find(visitor, now)) for key in bundle.answers}


def test_visitors_share_bodies_and_free_them():
    """A body is one object for all visitors, and leaves the memory with its last visitor."""
    cache = LocalCache(max_visitors=2)
    first, second = body(1), body(2)
    put(cache, "ann", first, second)
    put(cache, "ben", body(1))
    assert cache.find("ben", 0)[1].bodies == (first,)
    assert cache.find_body(first.reference) is first
    assert count(cache)[:2] == (2, 2)
    put(cache, "eve", body(1))
    assert read(cache, "ann") == {}
    assert count(cache)[:2] == (2, 1)
    assert cache.find_body(second.reference) is None


def test_bundle_is_shared_only_as_it_is():
    """A visitor with other answers, and a bundle that has left the memory, need store(). The bytes add up."""
    cache = LocalCache(max_visitors=2)
    (_, bundle), before = put(cache, "ann", body(1)), cache._bytes
    assert cache.share("ben", 5, bundle)
    assert cache._bytes - before == local_cache._weigh_record(cache.find("ben", 5)) > 0
    assert cache.share("ben", 7, bundle)
    assert (cache.find("ben", 7), cache.find("ann", 7)[0], bundle.holders) == ((7, bundle), 0, 2)
    put(cache, "ann", body(2), at=8)
    assert not cache.share("ann", 9, bundle)
    for visitor in ("eve", "joe"):
        put(cache, visitor, body(3))
    assert not cache.share("ann", 9, bundle)
    assert cache.find("ann", 9) == ()


def test_record_is_one_flat_tuple():
    """Answers of one moment are one bundle, whatever their order. One bundle has all answers, since the oldest."""
    cache = LocalCache()
    first, second, third = body(1), body(2), body(3)
    put(cache, "ann", first, second, at=1)
    record = put(cache, "ann", third, at=2)
    assert [at for at, _ in unfold(record)] == [2, 1]
    assert [bundle.bodies for _, bundle in unfold(record)] == [(third,), (first, second)]
    assert (record[0], record[1].bodies) == (1, (first, second, third))
    assert put(cache, "ben", second, first)[1] is record[-1]


def test_newer_answer_stays_and_useless_ones_go():
    """The newer of two answers stays. Unusable answers leave, and so does a visitor without answers."""
    cache = LocalCache()
    put(cache, "ann", body(1), body(2), at=10)
    put(cache, "ann", body(1), at=5)
    assert read(cache, "ann") == {"key-1": 10, "key-2": 10}
    put(cache, "ann", body(1), at=20)
    assert read(cache, "ann") == {"key-1": 20, "key-2": 10}
    put(cache, "ann", body(1), at=15, overwrite=True)
    assert put(cache, "ann", usable=range(12, 31))[0] == 15
    assert put(cache, "ann", usable=range(15)) == put(cache, "ben") == ()
    assert count(cache) == (0, 0, 0)


def test_keys_of_one_visitor_are_bounded():
    """If a site builds keys from a visitor's input, only the newest answers stay."""
    cache = LocalCache()
    for number in range(MAX_ANSWERS + 10):
        put(cache, "ann", body(number), at=number)
    assert read(cache, "ann").keys() == {f"key-{number}" for number in range(10, MAX_ANSWERS + 10)}
    put(cache, "ben", *(body(number) for number in range(MAX_ANSWERS + 1)))
    assert len(read(cache, "ben")) == MAX_ANSWERS


def test_content_of_one_visitor_each_is_bounded_by_its_bytes():
    """With different content for each visitor, the memory holds fewer visitors. Content above the limit isn't kept."""
    cache = LocalCache(max_bytes=100_000)
    for number in range(1_000):
        put(cache, str(number), body(number, "x" * 9_000))
        assert cache._bytes <= 100_000
    assert 5 < count(cache)[0] == count(cache)[1] <= 10
    put(cache, "ann", body(1, "x" * 200_000))
    assert count(cache) == (0, 0, 0)


def _fill(build_payload, visitors, bodies):
    """Return a cache with the answers of so many visitors, of whom several share each body."""
    cache = ExperienceCache(get_settings(), memory=LocalCache(max_bytes=1_000_000))
    for number in range(bodies):
        # Parsed, so that the strings of two bodies are not the same objects.
        payload = json.loads(json.dumps(build_payload(number))) if build_payload else None
        hero = payload and build("hero", {"cid": f"{number}"}, **payload)
        answers = {"hero": hero} if hero else {f"absent-{number}": None}
        for visitor in range(number, visitors, bodies):
            cache.keep(f"{visitor:032}", answers)
    return cache


@pytest.mark.parametrize(("visitors", "bodies"), [(15, 15), (60, 2)], ids=["one each", "shared"])
@pytest.mark.parametrize("shape", SHAPES)
def test_estimate_is_within_a_quarter(shape, visitors, bodies):
    """The estimated bytes are close to the measured bytes, whatever the shape of the content, and within the limit."""
    # The first call of a process also stores things that aren't content.
    _fill(SHAPES[shape], 1, 1)
    # Objects in CPython's free lists are not traced when they are used again; a collection empties the lists.
    gc.collect()
    tracemalloc.start()
    try:
        cache = _fill(SHAPES[shape], visitors, bodies)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.75 * taken <= cache.memory._bytes <= min(1.25 * taken, 1_000_000)


# Which visitors stay


def test_returning_visitors_outlast_any_number_of_others():
    """Random query parameters make visitors without end, and no active visitor loses a place to them."""
    cache, shared = LocalCache(max_visitors=100), body(1)
    active = [f"active-{number}" for number in range(20)]
    for visitor in active:
        put(cache, visitor, shared)
        cache.find(visitor, MINUTE)
    for number in range(10_000):
        put(cache, str(number), shared, at=MINUTE)
    assert all(cache.find(visitor, 2 * MINUTE) for visitor in active)
    assert count(cache)[0] == 100


def test_second_read_of_a_page_is_no_return():
    """A read within a second of the answer belongs to the same page. A later read makes the visitor a returning one."""
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
    """Among the new visitors, the visitor with the oldest read leaves first."""
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


def test_returning_visitors_leave_room_for_others():
    """If there are too many returning visitors, the visitor with the oldest read becomes a new visitor again."""
    cache = LocalCache(max_visitors=10)
    for number in range(10):
        put(cache, str(number), body(1))
        cache.find(str(number), MINUTE)
    assert (len(cache._returning), list(cache._new)) == (8, ["0", "1"])
    put(cache, "newcomer", body(1))
    assert [visitor for visitor in ("0", "1", "2", "newcomer") if cache.find(visitor, 0)] == ["1", "2", "newcomer"]


def test_returning_visitor_stays_one():
    """A returning visitor who gets new answers stays a returning visitor."""
    cache = LocalCache(max_visitors=5)
    put(cache, "ann", body(1))
    cache.find("ann", MINUTE)
    put(cache, "ann", body(2), at=MINUTE)
    for number in range(10):
        put(cache, str(number), body(1))
    assert read(cache, "ann") == {"key-1": 0, "key-2": MINUTE}


# Threads


@pytest.mark.parametrize("moves", [True, False])
def test_reading_finds_a_visitor_who_is_moved(moves):
    """A read finds a visitor whom another thread moves to the other segment. It doesn't find a visitor who leaves."""
    cache = LocalCache()
    put(cache, "ann", body(1))

    class Moving(OrderedDict):
        def move_to_end(self, visitor):
            record = self.pop(visitor)
            if moves:
                cache._returning[visitor] = record
            super().move_to_end(visitor)

    cache._new = Moving(cache._new)
    assert read(cache, "ann", MINUTE) == ({"key-1": 0} if moves else {})


def test_reading_does_not_wait_for_the_lock():
    """A page reads while another thread changes the map, and a visitor who has left meanwhile stays away."""
    cache = LocalCache()
    put(cache, "ann", body(1))
    lock, cache._lock = cache._lock, mock.Mock()
    cache._lock.acquire.return_value = False
    assert cache.find("ann", MINUTE)
    assert cache.find("ben", MINUTE) == ()
    cache._lock.acquire.assert_called_once_with(blocking=False)
    cache._lock = lock
    cache._promote("ben")
    assert cache.find("ben", MINUTE) == ()


def test_many_threads():
    """Threads that store and read the same visitors lose no answer and no count."""
    cache = LocalCache(max_visitors=50)

    def work(number):
        for turn in range(500):
            put(cache, "all", body(number), at=turn)
            put(cache, f"{number}-{turn}", body(turn % 7))
            cache.find(f"{(number + 1) % 4}-{turn}", MINUTE)
            assert f"key-{number}" in read(cache, "all", MINUTE)

    # together() fails if one of the threads does.
    together(4, work)
    assert read(cache, "all") == dict.fromkeys((f"key-{number}" for number in range(4)), 499)
    assert count(cache)[0] == 50
    for visitor in [*cache._new, *cache._returning]:
        put(cache, visitor, usable=range(0))
    assert count(cache) == (0, 0, 0)

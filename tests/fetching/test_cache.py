"""The cache in memory and in the site's cache: which answers are fresh, when it writes, and which values are misses."""

import json
from base64 import b64decode, b64encode

import pytest

from django_moe_personalize.conf import get_settings
from django_moe_personalize.fetching import cache
from django_moe_personalize.fetching.cache import ExperienceCache, Known, get_cache
from django_moe_personalize.moengage.json_values import FrozenDict
from django_moe_personalize.moengage.types import DataSource, Experience
from django_moe_personalize.testing import override_personalize
from tests.fetching.virtual_cache import (  # noqa: F401 - a fixture among them
    GARBAGE,
    HERO,
    PROMO,
    build,
    use_virtual_cache,
)


@pytest.fixture
def start(virtual):
    """Return a function that starts a process: a cache with an empty memory above the site's cache."""
    return lambda: ExperienceCache(get_settings(), clock=virtual.time)


@pytest.fixture(params=["memory", "site"])
def pair(request, start):
    """Give a cache to write to and a cache to read from: the same cache, or the cache of another process."""
    process = start()
    return process, process if request.param == "memory" else start()


def test_present_and_absent_answers_come_back(pair):
    """A cached experience is complete, has its offerings, and has the source CACHE."""
    writer, reader = pair
    writer.write("ann", {"hero": HERO, "nope": None})
    answers, due = reader.read("ann", ["hero", "nope", "unasked"])
    assert (answers.keys(), answers["nope"], due) == ({"hero", "nope"}, None, ("unasked",))
    hero = answers["hero"]
    assert hero == Experience("hero", HERO.payload, HERO.experience_context, DataSource.CACHE, HERO.offerings)
    assert list(hero.payload) == ["Title", "list", "Button"]
    assert [offering.offering_id for offering in hero.offerings] == ["1"]
    assert hero.offerings[0].raw is hero["list"][0]
    with pytest.raises(TypeError):
        hero.payload["Title"] = "mine"
    assert reader.read("ben", ["hero"]) == Known({}, ("hero",))


@pytest.mark.parametrize(
    ("age", "fresh"),
    [(-5.5, None), (-5, True), (0, True), (59.5, True), (60, False), (599.5, False), (600.5, None)],
)
def test_freshness(pair, virtual, age, fresh):
    """An answer is fresh for CACHE_TTL and usable for CACHE_STALE_TTL. An answer from the future isn't usable."""
    writer, reader = pair
    writer.write("ann", {"hero": HERO, "nope": None})
    virtual.now += age
    for look in (reader.peek, reader.read) if reader is writer else (reader.read, reader.peek):
        answers, due = look("ann", ["hero", "nope"])
        assert answers.keys() == (set() if fresh is None else {"hero", "nope"})
        assert due == (() if fresh else ("hero", "nope"))


def test_answers_of_several_moments(start, virtual):
    """Each answer of a visitor has its own age. A new answer replaces the old answer for the same key."""
    process = start()
    for key, answer in (("hero", HERO), ("promo", PROMO), ("exit", None)):
        process.keep("ann", {key: answer})
        virtual.now += 30
    answers, due = process.peek("ann", ["exit", "hero", "promo"])
    assert answers.keys() == {"hero", "promo", "exit"}
    assert due == ("hero", "promo")
    process.keep("ann", {"hero": None, "promo": PROMO})
    answers, due = process.peek("ann", ["exit", "hero", "promo"])
    assert (answers["hero"], answers["promo"].payload, due) == (None, PROMO.payload, ())


def test_visitors_share_answers(start, virtual):
    """Visitors with the same answers share one read-only mapping, whatever the order of names in the JSON."""
    again = Experience("hero", dict(reversed(HERO.payload.items())), HERO.experience_context)
    process, other = start(), start()
    for number in range(10):
        process.write(f"visitor-{number}", {"hero": again if number % 2 else HERO, "nope": None})
        other.read(f"visitor-{number}", ["hero"])
    for each in (process, other):
        assert len({id(each.peek(f"visitor-{number}", ["hero"]).answers) for number in range(10)}) == 1
        assert len(each.memory._bodies) == 2
    assert len(virtual.entries) == 12
    assert sum(len(text) for _, text in virtual.entries.values()) < 1_200
    with pytest.raises(TypeError):
        process.peek("visitor-1", []).answers["hero"] = None
    process.keep("ann", {"hero": HERO, "promo": PROMO})
    assert process.peek("ann", []).answers["hero"] is process.peek("visitor-1", []).answers["hero"]


def test_content_is_told_apart(start):
    """Answers that differ in payload, context, key or JSON type have different bodies."""
    variations = [
        HERO,
        build("promo", HERO.experience_context, **HERO.payload),
        build("hero", {"cid": "2"}, **HERO.payload),
        *(build("hero", Title=value) for value in (1, True, 1.0, "1")),
        Experience("hero", {}, {"Title": 1}),
        Experience("hero", {"Title": 1}, {}),
    ]
    writer, reader = start(), start()
    for number, one in enumerate(variations):
        writer.write(str(number), {one.experience_key: one})
    for number, one in enumerate(variations):
        (found,) = reader.read(str(number), ["hero"]).answers.values()
        # Their representations, because True equals 1 and 1.0.
        assert repr((found.payload, found.experience_context)) == repr((one.payload, one.experience_context))
    assert len(reader.memory._bodies) == len(variations)


def test_unchanged_response_is_not_hashed_again(start, monkeypatch):
    """A cache remembers its own entry of a frozen response, also for visitors with other answers."""
    process, plain, response = start(), Experience("hero", {"Title": "a"}), FrozenDict(hero=HERO, nope=None)
    for one in (start(), process):
        one.write("ann", response)
    process.keep("eve", {"hero": plain})
    plain.payload["Title"] = "b"
    process.keep("ben", {"hero": plain})
    assert [process.peek(visitor, []).answers["hero"]["Title"] for visitor in ("eve", "ben")] == ["a", "b"]
    process.keep("bob", {"promo": PROMO})
    monkeypatch.setattr(cache, "_encode_sorted", None)
    for visitor in ("bob", "ben", "cat"):
        process.keep(visitor, response)
        assert process.peek(visitor, ["hero", "nope"]).answers["hero"].payload == HERO.payload
    with pytest.raises(TypeError):
        process.keep("dan", FrozenDict(hero=HERO))


def test_equal_response_is_stored_in_one_step(start, virtual, monkeypatch):
    """Visitors with the same response share its bundle, but never an answer that only one of the visitors got."""
    process, response = start(), FrozenDict(hero=HERO)
    process.keep("ann", {"promo": PROMO})
    process.keep("ann", response)
    virtual.now += 1
    process.keep("ben", response)
    answers, due = process.peek("ben", ["hero", "promo"])
    assert (answers.keys(), due) == ({"hero"}, ("promo",))
    monkeypatch.setattr(process, "_keep", None)
    process.keep("eve", response)
    assert process.peek("eve", ["hero"]) == (process.peek("ben", []).answers, ())


def test_without_a_lifetime_nothing_is_kept(start, virtual):
    """CACHE_TTL and CACHE_STALE_TTL of 0 turn both levels off."""
    with override_personalize(CACHE_TTL=0, CACHE_STALE_TTL=0):
        process = start()
        process.write("ann", {"hero": HERO})
        process.keep("ann", {"hero": HERO})
        assert process.read("ann", ["hero"]) == Known({}, ("hero",))
    assert virtual.calls == []


def test_stale_from_the_start(start, virtual):
    """With only CACHE_TTL at 0, the cache keeps stale answers, even after the clock was set back."""
    with override_personalize(CACHE_TTL=0):
        process = start()
        process.write("ann", {"hero": HERO})
        virtual.now -= 1
        assert process.read("ann", ["hero"]).due == ("hero",)
        assert process.peek("ann", ["hero"]).answers.keys() == {"hero"}


def test_memory_alone(start, virtual):
    """keep() stores in this process without any I/O."""
    process = start()
    process.keep("ann", {"hero": HERO})
    process.keep("ann", {})
    process.write("ann", {})
    assert process.peek("ann", ["hero"]).due == ()
    assert virtual.calls == []
    assert start().read("ann", ["hero"]).due == ("hero",)


def test_memory_answers_when_the_cache_is_down(settings, virtual, caplog):
    """If the site's cache fails, the answers in memory stay, and the log tells the failure once."""
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    process = ExperienceCache(get_settings(), clock=virtual.time)
    process.write("ann", {"hero": HERO})
    virtual.now += 60
    answers, due = process.read("ann", ["hero"])
    assert (answers.keys(), due) == ({"hero"}, ("hero",))
    assert [record.getMessage() for record in caplog.records] == [
        "The cache 'default' fails (ConnectionError). This process works without it. Check CACHES['default']."
    ]


def test_settings_have_their_own_cache():
    """Other settings begin with an empty memory."""
    get_cache().keep("ann", {"hero": HERO})
    assert not get_cache().peek("ann", ["hero"]).due
    with override_personalize(CACHE_TTL=30):
        assert get_cache().peek("ann", ["hero"]).due


def test_another_secret_or_workspace_shares_nothing(start, settings):
    """Another site's entries in the same cache are not found."""
    start().write("ann", {"hero": HERO})
    with override_personalize(SANDBOX=False, WORKSPACE_ID="W", API_KEY="k", DATA_CENTER="01"):
        assert start().read("ann", ["hero"]).due
    settings.SECRET_KEY = "another"
    assert start().read("ann", ["hero"]).due


# Round trips


def test_round_trips(start, virtual):
    """A read and a write take one round trip each, and a second one for new bodies. Fresh memory takes none."""
    process, other = start(), start()
    process.write("ann", {"hero": HERO, "nope": None})
    assert process.read("ann", ["hero", "nope"]).due == ()
    assert virtual.calls == [("set", 2), ("set", 1)]
    other.read("ann", ["hero", "nope"])
    assert virtual.calls[2:] == [("get", 1), ("get", 2)]
    virtual.now += 60
    other.read("ann", ["hero", "nope"])
    assert virtual.calls[4:] == [("get", 1)]
    process.write("ann", {"hero": build("hero", HERO.experience_context, **HERO.payload), "nope": None})
    other.read("ann", ["hero", "unknown"])
    assert virtual.calls[5:] == [("set", 1), ("get", 1)]


def test_body_is_written_again_before_it_expires(start, virtual):
    """A body is written again after half of its lifetime, so the body outlives the visitors that refer to it."""
    process = start()
    process.write("ann", {"hero": HERO})
    for seconds, writes in ((599, 1), (1, 2), (599, 1), (-700, 2)):
        virtual.now += seconds
        virtual.calls.clear()
        process.write("ann", {"hero": HERO})
        assert virtual.calls == [("set", 1)] * writes
    virtual.now += 599
    process.write("ben", {"hero": HERO})
    virtual.now += 599.5
    assert start().read("ben", ["hero"]).answers


def test_body_that_the_cache_refused_is_written_again(start, virtual):
    """A body counts as written only if the cache accepted it."""
    process = start()
    virtual.refuse = lambda text: text.startswith("[")
    process.write("ann", {"hero": HERO})
    virtual.refuse = None
    virtual.calls.clear()
    process.write("ann", {"hero": HERO})
    assert virtual.calls == [("set", 1), ("set", 1)]


# Several processes


def test_useless_answers_are_not_written_again(start, virtual):
    """An answer past its lifetime, or from the future, leaves both levels at the next write."""
    process = start()
    process.write("ann", {"hero": HERO})
    for step in (600.5, -600):
        virtual.now += step
        process.write("ann", {"exit": None})
        assert len(process.memory._bodies) == 1
        assert len(virtual.entries[virtual.find_visitor()][1]) == 34
        process.write("ann", {"hero": HERO})


def test_newest_answer_of_both_levels_wins(start, virtual):
    """A newer answer of another process replaces a stale answer in memory. An older answer never does."""
    process, other = start(), start()
    process.write("ann", {"hero": HERO, "nope": None})
    virtual.now += 70
    other.read("ann", ["nope"])
    other.write("ann", {"hero": None})
    process.keep("ann", {"nope": PROMO})
    answers, due = process.read("ann", ["hero", "nope"])
    assert (answers["hero"], answers["nope"].payload, due) == (None, PROMO.payload, ())


# Misses


@pytest.mark.parametrize("value", GARBAGE, ids=range(len(GARBAGE)))
def test_foreign_value_is_a_miss(start, virtual, value):
    """A value that another program or release left under our keys is ignored and overwritten."""
    start().write("ann", {"hero": HERO, "promo": PROMO})
    visitor, body = virtual.find_visitor(), virtual.find_body("hero")
    ours = virtual.entries[body]
    virtual.put(body, value)
    assert start().read("ann", ["hero", "promo"]).due == ("hero",)
    virtual.entries[body] = ours
    virtual.put(visitor, value)
    process = start()
    assert process.read("ann", ["hero", "promo"]) == Known({}, ("hero", "promo"))
    process.write("ann", {"hero": HERO})
    assert start().read("ann", ["hero"]).due == ()


@pytest.mark.parametrize(
    "change",
    [lambda text: text[:-4], lambda text: text * 2, lambda text: b64encode(b64decode(text) * 200).decode()],
    ids=["cut", "twice", "long"],
)
def test_visitor_of_another_length_is_a_miss(start, virtual, change):
    """A visitor's text that is cut, or longer than this package writes, is ignored as a whole."""
    start().write("ann", {"hero": HERO, "promo": PROMO, "exit": None})
    name = virtual.find_visitor()
    virtual.put(name, change(json.loads(virtual.entries[name][1])))
    assert start().read("ann", ["hero"]).answers == {}


def test_lost_body_is_a_miss_of_its_key(start, virtual):
    """If the site's cache loses a body, one visitor's next answer brings it back for all."""
    process = start()
    for visitor in ("ann", "ben"):
        process.write(visitor, {"hero": HERO, "promo": PROMO})
    del virtual.entries[virtual.find_body("hero")]
    other = start()
    assert other.read("ann", ["hero", "promo"]).due == ("hero",)
    other.write("ann", {"hero": HERO})
    assert start().read("ben", ["hero", "promo"]).due == ()


def test_forged_body_is_a_miss(start, virtual):
    """A program that can write into the cache, but lacks the site's secret, can't choose what visitors see."""
    start().write("ann", {"hero": HERO})
    for name, (until, text) in virtual.entries.items():
        virtual.entries[name] = until, text.replace("Hello", "Hacked")
    assert start().read("ann", ["hero"]).due == ("hero",)

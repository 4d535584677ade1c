"""The site's cache, with the claims, numbers and notices that processes share."""

import os
import tempfile
import time

import pytest
from django.core.cache import cache, caches
from django.core.cache.backends.filebased import FileBasedCache

from django_moe_personalize.fetching.cache import get_cache
from django_moe_personalize.fetching.shared import (
    MAX_SHARE,
    add_to_count,
    build_key,
    claim,
    get_many,
    has_room,
    has_shared_cache,
    put_up_notice,
    read_notices,
    set_many,
)
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import reset_runtimes
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.visitor import Identity, Visitor
from tests.fetching.asking import ask
from tests.processes import use_shared_cache  # noqa: F401 - a fixture
from tests.wire import LONG

VISITOR = Visitor(Identity("1"), {})


class Forgetful(FileBasedCache):
    """A cache that stores only numbers."""

    def __init__(self, location, params):
        super().__init__(tempfile.mkdtemp(), params)

    def set(self, key, value, *args, **kwargs):
        """Fail for all values but numbers."""
        if not isinstance(value, int):
            raise OSError("full")
        super().set(key, value, *args, **kwargs)


# Entries


def test_keys_tell_nothing(settings):
    """A cache key hides its parts. Without the site's secret, the key can't be computed."""
    key = build_key("experience", "customer-4711", "hero")
    assert "4711" not in key
    assert "hero" not in key
    settings.SECRET_KEY = "another"
    assert build_key("experience", "customer-4711", "hero") != key


def test_workspaces_share_nothing():
    """Another workspace, or data center, has other keys."""
    keys = {build_key("x")}
    for data_center in ("01", "02"):
        with override_personalize(SANDBOX=False, WORKSPACE_ID="W", API_KEY="k", DATA_CENTER=data_center):
            keys.add(build_key("x"))
    assert len(keys) == 3


def test_cache_is_the_one_that_the_settings_name(settings):
    """CACHE names one of the site's caches."""
    memory = "django.core.cache.backends.locmem.LocMemCache"
    settings.CACHES = {name: {"BACKEND": memory, "LOCATION": name} for name in ("default", "experiences")}
    with override_personalize(CACHE="experiences"):
        assert set_many({"a": 1}, timeout=60)
        assert get_many(["a"]) == {"a": 1}
    assert (caches["experiences"].get("a"), cache.get("a")) == (1, None)


def test_cache_that_fails_is_a_miss(settings, caplog):
    """A failing cache raises nothing, each process asks for itself, and the log tells each kind of error once."""
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    assert not set_many({"a": 1}, timeout=1)
    assert get_many(["a"]) == {}
    assert claim("visitor", ["a"], 1.0)
    assert add_to_count("slot", 5, 60.0) is None
    put_up_notice("breaker", state="open")
    assert len(caplog.records) == 1
    settings.CACHES = {"default": {"BACKEND": "tests.fetching.test_shared.Forgetful"}}
    put_up_notice("breaker", state="open")
    assert "(OSError)" in caplog.records[1].getMessage()


# Claims and counts


@pytest.mark.parametrize("answer", [None, False, 0, "", {}], ids=repr)
def test_cache_that_fails_in_silence_claims_nothing(settings, upstream, monkeypatch, answer):
    """A refused claim that isn't in the cache belongs to no other process. So no page waits for that process."""
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.SilentCache", "LOCATION": answer}}
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited for another process"))
    for _ in range(2):
        assert ask(VISITOR, ["hero-banner"], deadline=Deadline(LONG)).experiences.keys() == {"hero-banner"}
    assert add_to_count("slot", 5, 60.0) in (None, answer)
    put_up_notice("breaker", state="open")


@pytest.mark.parametrize("answer", [None, False, 0])
def test_claim_of_a_cache_with_other_answers(shared, monkeypatch, answer):
    """If add() stores a claim but returns no true value, the claim still belongs to the process that made it."""
    add = FileBasedCache.add
    monkeypatch.setattr(FileBasedCache, "add", lambda *args, **kwargs: add(*args, **kwargs) and answer)
    assert claim("visitor", ["a"], 1.0)
    assert not claim("visitor", ["a"], 1.0)


@pytest.mark.parametrize("clocks", [("monotonic",), ("monotonic", "time", "perf_counter")], ids=len)
def test_stopped_clock_stops_no_wait(shared, upstream, monkeypatch, clocks):
    """A wait for a process that died ends, also in a test that has stopped Python's clocks."""
    claim(VISITOR.digest, ["hero-banner"], 5.0)
    for name in clocks:
        monkeypatch.setattr(time, name, lambda: 1_800_000_000.0)
    assert ask(VISITOR, ["hero-banner"], deadline=Deadline(0.5)).experiences.keys() == {"hero-banner"}


def test_cache_of_one_process_is_no_agreement():
    """Without a shared cache every process asks, and counts alone."""
    assert claim("visitor", ["a"], 1.0)
    assert claim("visitor", ["a"], 1.0)
    assert add_to_count("slot", 5, 60.0) is None
    put_up_notice("breaker", state="open")
    assert read_notices("breaker") == []


@pytest.mark.parametrize(
    ("alias", "location", "has"),
    [
        ("default", "a", False),
        ("sessions", "b", False),
        ("pages", "c", False),
        ("copy", "a", False),
        ("same", "./a/", False),
        ("own", "d", True),
    ],
)
@pytest.mark.parametrize("backend", ["filebased.FileBasedCache", "db.DatabaseCache"])
def test_cache_of_the_site_gets_no_entries_for_each_visitor(settings, backend, alias, location, has):
    """A cache that evicts entries beyond MAX_ENTRIES gets claims and counts only if it belongs to the package alone."""
    settings.CACHES = {
        name: {"BACKEND": f"django.core.cache.backends.{backend}", "LOCATION": place}
        for name, place in (("default", "a"), ("sessions", "b"), ("pages", "c"), (alias, location))
    }
    settings.SESSION_CACHE_ALIAS, settings.CACHE_MIDDLEWARE_ALIAS = "sessions", "pages"
    with override_personalize(CACHE=alias):
        assert has_room() is has
        assert has_shared_cache()


def test_notices_take_a_share_of_the_site_cache(settings, tmp_path):
    """In a cache of the site, the latest notices overwrite the oldest notices."""
    backend = "django.core.cache.backends.filebased.FileBasedCache"
    options = {"MAX_ENTRIES": 3 * MAX_SHARE}
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": str(tmp_path), "OPTIONS": options}}
    for number in range(7):
        put_up_notice("breaker", state=number)
    # One entry is the number of the latest notice.
    assert len(list(tmp_path.iterdir())) == 1 + 3
    assert [notice["state"] for notice in read_notices("breaker")] == [6]


def test_one_process_claims(shared):
    """The first process that claims a question asks it; another question is another claim."""
    assert claim("visitor", ["a"], 1.0)
    assert not claim("visitor", ["a"], 1.0)
    assert claim("visitor", ["b"], 1.0)
    assert claim("another", ["a"], 1.0)


def test_all_processes_count_together(shared, monkeypatch):
    """Each process adds to the number, even if two processes create the number at the same time."""
    assert [add_to_count("slot", 5, 60.0) for _ in range(3)] == [5, 10, 15]
    add = FileBasedCache.add

    def add_late(self, key, value, *args, **kwargs):
        add(self, key, 100, *args, **kwargs)
        return add(self, key, value, *args, **kwargs)

    monkeypatch.setattr(FileBasedCache, "add", add_late)
    assert add_to_count("next", 1, 60.0) == 101


def test_another_process_has_the_answer(shared, upstream, monkeypatch):
    """A process without the claim uses the other process's answer as soon as the answer is in the cache."""
    answers = ask(VISITOR, ["hero-banner"], deadline=Deadline(10)).learned
    assert len(upstream.fetches) == 1
    reset_runtimes()
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            get_cache().write(VISITOR.digest, answers)

    monkeypatch.setattr(time, "sleep", sleep)
    assert ask(VISITOR, ["hero-banner"], deadline=Deadline(10)).experiences.keys() == {"hero-banner"}
    assert len(pauses) == 3
    assert len(upstream.fetches) == 1


def test_claim_without_an_answer_is_waited_for_half_the_time(shared, upstream):
    """If the process with the claim died, other processes wait for half of their time and then ask."""
    claim(VISITOR.digest, ["hero-banner"], 5.0)
    started = time.monotonic()
    answer = ask(VISITOR, ["hero-banner"], deadline=Deadline(2))
    assert time.monotonic() - started >= 1
    assert answer.experiences.keys() == {"hero-banner"}


def test_site_that_caches_nothing_never_waits(shared, upstream):
    """With CACHE_TTL at 0 the answer of another process is never fresh, so every process asks at once."""
    with override_personalize(CACHE_TTL=0, CACHE_STALE_TTL=0):
        for count in (1, 2):
            assert ask(VISITOR, ["hero-banner"], deadline=Deadline(10)).experiences
            assert len(upstream.fetches) == count
        assert claim(VISITOR.digest, ["hero-banner"], 5.0)


# Notices


def test_last_notice_of_each_process_counts(shared, monkeypatch):
    """The latest notice of each process counts. The latest notice comes last. Only MAX_NOTICES notices are kept."""
    monkeypatch.setattr("django_moe_personalize.fetching.shared.MAX_NOTICES", 2)
    for pid, state in ((3, "open"), (1, "open"), (2, "open"), (1, "closed")):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        put_up_notice("breaker", state=state)
    notices = [(notice["process"].rpartition(":")[2], notice["state"]) for notice in read_notices("breaker")]
    assert notices == [("2", "open"), ("1", "closed")]
    assert read_notices("another") == []


def test_foreign_value_is_no_notice(shared):
    """A notice that another program wrote is ignored."""
    put_up_notice("breaker", state="open")
    caches["experiences"].set(build_key("notice", "breaker", "1"), "not ours")
    assert read_notices("breaker") == []

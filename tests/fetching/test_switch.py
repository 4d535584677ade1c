"""How a process learns which experiences are off: from the database and the shared cache, in a thread of its own."""

import threading
import time

import pytest
from django.core.cache import caches
from django.db import DatabaseError, connection

from django_moe_personalize import api
from django_moe_personalize.exceptions import DeadlineExceeded
from django_moe_personalize.fetching import switch as switch_module
from django_moe_personalize.fetching import switch_store
from django_moe_personalize.fetching.flights import get_flights
from django_moe_personalize.fetching.shared import build_key
from django_moe_personalize.fetching.switch import IDLE_SECONDS, get_switch
from django_moe_personalize.fetching.switch_store import FRESH_SECONDS, TABLE_SECONDS, Entry, NoStoreError, Store
from django_moe_personalize.models import Switch
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import get_runtime, reset_runtimes
from django_moe_personalize.testing import override_personalize
from tests.conftest import settle
from tests.delivery.conftest import without_table
from tests.pages import title
from tests.processes import SOON, no_threads, use_shared_cache  # noqa: F401 - a fixture

pytestmark = pytest.mark.urls("tests.site")

HERO = "hero-banner"
BROKEN = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}


@pytest.fixture
def store():
    return Store(get_runtime())


@pytest.fixture
def no_table(db):
    with without_table(Switch):
        yield


def fail(*args, **kwargs):
    raise DatabaseError("secret")


def keys(entries):
    return [entry.experience_key for entry in entries if entry.is_in_force(time.time())]


# Where the state is.


def test_the_database_keeps_the_state(db, store):
    """Of each workspace apart. Who switched on again, and when, stays too."""
    Switch.objects.create(pk="other", workspace="outlet", changed_at="2026-01-01 00:00Z")
    store.change([HERO, "x" * 1000, ""], is_off=True, by="ada" * 100)
    assert keys(store.read()) == ["", HERO, "x" * 1000]
    store.change([HERO], is_off=False, by="bob")
    assert keys(store.read()) == ["", "x" * 1000]
    assert {entry.experience_key: entry.changed_by for entry in store.read()}[HERO] == "bob"
    assert str(Switch.objects.get(experience_key="", workspace="default")) == "All experiences"


def test_processes_ask_the_database_together(db, shared, store, django_assert_num_queries, monkeypatch):
    """A note in the shared cache is young, or the database fails: then the note counts."""
    store.change([HERO], is_off=True, by="ada")
    with django_assert_num_queries(0):
        assert keys(Store(get_runtime()).read()) == [HERO]
    monkeypatch.setattr(switch_store.time, "time", lambda: time.monotonic() + FRESH_SECONDS)
    Switch.objects.all().delete()
    monkeypatch.setattr(store, "_read_table", fail)
    assert [entry.experience_key for entry in store.read()] == [HERO]
    caches["experiences"].clear()
    with pytest.raises(DatabaseError):
        store.read()
    assert Store(get_runtime()).read() == ()


@pytest.mark.parametrize("note", ["nonsense", ["nonsense"], [None, [["too short"]]], [0, None]])
def test_a_note_of_another_program_is_ignored(db, shared, store, note):
    """The cache may have anything under this key."""
    caches["experiences"].set(build_key("switch"), note)
    assert store.read() == ()


@pytest.mark.parametrize("databases", ["no table", "no database"])
def test_a_site_without_the_table_uses_its_shared_cache(databases, shared, store, monkeypatch, request):
    """The state stays there without a limit of time."""
    if databases == "no table":
        request.getfixturevalue("no_table")
    else:
        monkeypatch.setitem(connection.settings_dict, "ENGINE", "django.db.backends.dummy")
    assert store.can_change()
    assert store.read() == ()
    store.change([HERO], is_off=True, by="ada")
    store.change(["promo-strip"], is_off=True, by="ada")
    assert keys(Store(get_runtime()).read()) == [HERO, "promo-strip"]


def test_a_site_without_both_cant_change_the_state(no_table, store, settings, monkeypatch):
    """Otherwise the command would change nothing and tell nobody. A cache that fails doesn't keep the state either."""
    assert not store.can_change()
    with pytest.raises(NoStoreError, match=r"Run `manage.py migrate`\. Or set MOE_PERSONALIZE"):
        store.change([HERO], is_off=True)
    settings.CACHES = BROKEN
    store = Store(get_runtime())
    with pytest.raises(ConnectionError):
        store.read()
    monkeypatch.setattr(store, "_read", tuple)
    with pytest.raises(NoStoreError):
        store.change([HERO], is_off=True)


def test_a_process_looks_for_the_table_now_and_then(no_table, store, django_assert_num_queries, monkeypatch):
    """A deployment may migrate after the start. Not each time, because a large database has many tables."""
    assert store.read() == ()
    with django_assert_num_queries(0):
        store.read()
    later = time.monotonic() + TABLE_SECONDS + 1
    monkeypatch.setattr(switch_store.time, "monotonic", lambda: later)
    monkeypatch.setattr(connection.introspection, "table_names", lambda: [Switch._meta.db_table])
    assert store.has_table()


def test_times_are_in_the_time_zone_of_the_site(settings):
    """Also on a site without time zones."""
    settings.TIME_ZONE = "Asia/Kolkata"
    entry = Entry("", True, 1_800_000_000.0, "", 1_790_000_000.0)
    told = "All experiences are switched off (at 2026-09-21 19:43:20+05:30, until 2027-01-15 13:30:00+05:30)."
    assert entry.describe() == told
    settings.USE_TZ = False
    assert "+05:30" not in entry.describe()


# A process that shows experiences.


class Entries:
    """A store in memory. It may fail."""

    def __init__(self):
        self.keys, self.on, self.until, self.error = [], [], None, None
        self.reads = threading.Semaphore(0)

    def read(self):
        self.reads.release()
        if self.error is not None:
            raise self.error
        off = [Entry(key, True, self.until, "ada", 100_000.0) for key in self.keys]
        return (*off, *[Entry(key, False, None, "bob", 200_000.0) for key in self.on])

    def is_possible(self):
        return True


@pytest.fixture
def serving_store(monkeypatch):
    """Read the state as a server does, from a store of this test."""
    entries = Entries()
    monkeypatch.setattr(switch_module, "is_test_run", lambda: False)
    monkeypatch.setattr(switch_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(switch_module, "Store", lambda runtime: entries)
    reset_runtimes()
    return entries


def await_state(is_right):
    until = time.monotonic() + SOON
    while not is_right():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_the_first_page_of_a_process_obeys(upstream, visit, serving_store, caplog):
    """A page waits for the state in its fetch. Each change has one line in the log of the process."""
    serving_store.keys = [HERO]
    assert title(visit("/tags/")) == "Welcome"
    assert [body["experience_key"] for body in upstream.fetches] == [["promo-strip"]]
    serving_store.keys, serving_store.on = [], [HERO]
    await_state(lambda: not get_switch().list_off())
    assert title(visit("/tags/")) != "Welcome"
    serving_store.keys, serving_store.on, serving_store.until = [HERO], [], time.time() + 3600
    await_state(get_switch().list_off)
    assert title(visit("/tags/")) == "Welcome"
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    off, on, again = caplog.messages
    assert off.startswith("Experience 'hero-banner' is switched off (by ada at 1970-01-01 ")
    assert off.endswith(" Pages show the default. Run `manage.py moe_switch on hero-banner` to switch on again.")
    assert on.startswith("Experience 'hero-banner' is switched on again (by bob at 1970-01-03 ")
    assert ", until 20" in again


def test_a_process_that_doesnt_know_the_state_shows_nothing(upstream, visit, serving_store, caplog):
    """If the first read fails, pages don't wait for the next one. They show experiences as soon as it succeeds."""
    serving_store.error = DatabaseError("secret")
    get_flights()
    await_state(lambda: get_switch()._outage.is_on)
    assert title(visit("/tags/")) == "Welcome"
    with pytest.raises(DeadlineExceeded, match="the state of the kill switch isn't known"):
        api.fetch_experience(HERO, customer_id="42")
    settle()
    assert upstream.requests == []
    serving_store.error = None
    await_state(lambda: get_switch().is_known)
    assert title(visit("/tags/")) != "Welcome"
    told = [message for message in caplog.messages if "kill switch" in message]
    assert told[0] == (
        "The state of the kill switch can't be read (DatabaseError). Until it can, pages show their defaults. "
        "Check the database and the cache."
    )
    assert told[1].startswith("The state of the kill switch can be read again after ")


def test_the_last_state_stays_during_an_outage(upstream, visit, serving_store, caplog):
    """A time that ends in the outage ends the switch."""
    serving_store.keys, serving_store.until = [HERO], time.time() + 3600
    assert title(visit("/tags/")) == "Welcome"
    serving_store.error = DatabaseError("secret")
    await_state(lambda: get_switch()._outage.is_on)
    assert title(visit("/tags/")) == "Welcome"
    assert "pages obey its last state" in caplog.text
    (entry,) = get_switch().entries
    get_switch()._entries = (entry._replace(until=time.time() - 1),)
    await_state(lambda: not get_switch().list_off())
    assert title(visit("/tags/")) != "Welcome"
    assert "Experience 'hero-banner' is switched on again (the time is over)." in caplog.messages


def test_a_process_at_rest_reads_nothing(upstream, visit, serving_store, monkeypatch):
    """Long after its last page, the thread ends. The next page starts it, and obeys what has changed meanwhile."""
    with override_personalize(CACHE_TTL=0, CACHE_STALE_TTL=0):
        assert title(visit("/tags/")) != "Welcome"
        switch, thread = get_switch(), get_switch()._thread
        later = time.monotonic() + IDLE_SECONDS + 1
        monkeypatch.setattr(switch_module, "monotonic", lambda: later)
        switch._used_at, switch._landed = 0.0, get_flights().landed
        thread.join(SOON)
        assert not switch.is_known
        assert not get_flights().may_start_in_page
        serving_store.keys = [HERO]
        assert title(visit("/tags/")) == "Welcome"
        assert switch._thread is not thread


def test_a_process_with_a_key_off_never_rests(serving_store, monkeypatch):
    """Its pages may make no fetch, and must see that the key is on again."""
    serving_store.keys = [""]
    get_flights()
    await_state(get_switch().list_off)
    monkeypatch.setattr(switch_module, "monotonic", lambda: time.monotonic() + 10_000)
    serving_store.reads.acquire(timeout=SOON)
    assert get_switch()._rest() is False


def test_no_thread_is_left(upstream, client, serving_store):
    """Then pages show nothing, and the next fetch tries again."""
    with no_threads():
        get_flights()
        assert not get_switch().wait(Deadline(0.0))
    assert title(client.get("/tags/")) != "Welcome"


def test_the_end_of_a_runtime_ends_the_thread(serving_store):
    """Not more than the read at this moment follows."""
    get_flights()
    switch = get_switch()
    reset_runtimes()
    switch._thread.join(SOON)
    assert not switch._thread.is_alive()
    switch._known.clear()
    switch._thread = None
    switch._start()
    assert switch._thread is None


def test_a_site_that_cant_switch_has_no_thread(upstream, client, monkeypatch):
    """Neither a database nor a shared cache: nothing can be off."""
    monkeypatch.setattr(switch_module, "is_test_run", lambda: False)
    monkeypatch.setitem(connection.settings_dict, "ENGINE", "django.db.backends.dummy")
    assert title(client.get("/tags/")) != "Welcome"
    assert get_switch()._thread is None


def test_no_page_joins_a_flight_from_before(upstream, serving_store):
    """Its answer, and what it shows when it is late, may have the key."""
    flights = get_flights()
    await_state(lambda: get_switch().is_known)
    flights._flights["key"] = object()
    get_switch().change((Entry(HERO, True, None, "ada", 1.0),))
    assert flights._flights == {}

"""What ``manage.py moe_doctor`` finds out about the site: its cache, processes, delivery, and what is installed."""

import sys
import time
from datetime import timedelta

import pytest
from django.core.cache.backends.base import BaseCache
from django.db import connection as database
from django.utils import timezone

from django_moe_personalize.conf import get_settings
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.delivery.queued import QueuedDelivery
from django_moe_personalize.doctor import site
from django_moe_personalize.fetching import upstream
from django_moe_personalize.models import OutboxEvent
from django_moe_personalize.resilience.governor import SLOT_SECONDS, name_slot
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.tracking.watchdog import TOPIC
from tests.conftest import settle
from tests.diagnosis import SHORT, diagnose, find, of, use_outbox  # noqa: F401 - a fixture among them
from tests.processes import use_shared_cache  # noqa: F401 - a fixture
from tests.delivery.events import backend, make_events

# The cache and the processes


def test_a_cache_that_is_shared(shared):
    """It is used, and said to be shared; nothing is left in it."""
    assert "is one that processes share" in find("The cache 'default' works")[1]


def test_a_cache_of_one_process():
    """What is lost by it is said."""
    assert "the breaker, the requests a minute" in find("The cache 'default' works, and is each process's own")[1]


class Slow(BaseCache):
    """A cache that takes its time, or forgets, as told."""

    delay, keeps, store = 0.0, True, {}

    def __init__(self, location, params):
        super().__init__(params)

    def set(self, key, value, timeout=None, version=None):
        """Take a moment."""
        time.sleep(self.delay)
        self.store.update({key: value} if self.keeps else {})

    def get(self, key, default=None, version=None):
        """Return it."""
        return self.store.get(key, default)

    def delete(self, key, version=None):
        """Forget."""
        return self.store.pop(key, None) is not None

    def clear(self):
        """Forget everything."""
        self.store.clear()


def test_caches_that_do_not_work(settings, monkeypatch):
    """A slow one, one that forgets, one that fails and one that hangs: each is told, and the rest is examined."""
    settings.CACHES = {"default": {"BACKEND": "tests.test_doctor_vitals.Slow"}}
    monkeypatch.setattr(Slow, "delay", 0.05)
    with override_personalize(DEADLINE=0.01, SANDBOX=True):
        assert find("longer than a page may wait")[0] == "warning"
    monkeypatch.setattr(Slow, "keeps", False)
    assert find("did not give back what was stored")[0] == "problem"
    monkeypatch.setattr(Slow, "delay", 1.0)
    assert find("The cache: no answer in time", diagnose(SHORT))[0] == "problem"
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    found = diagnose()
    assert find("The cache: NotImplementedError", found)[0] == "problem"
    assert "secret-host" not in str(found)


def test_caches_of_which_the_checks_speak(settings):
    """A dummy and an unknown alias are the checks' findings, and are not repeated."""
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    assert len([text for _, text in diagnose() if "keeps nothing" in text]) == 1
    assert of(*site.examine_cache(get_settings())) == []
    with override_personalize(CACHE="nowhere"):
        assert of(*site.examine_cache(get_settings())) == []


def test_processes_that_share_nothing():
    """Where there is nothing to read, it is said where to look."""
    assert find("in their logs alone")[0] == "ok"


def test_processes_that_are_well(shared):
    """A breaker that has closed again is no finding."""
    shared.put_up_notice(upstream.BREAKER_TOPIC, state="closed", reason="the probe was answered")
    shared.put_up_notice(TOPIC, missed={}, stalled=False)
    found = diagnose()
    assert find("No process has reported", found)[0] == "ok"
    assert find("10,000 requests a minute at most 0 are taken", found)[0] == "ok"


def test_processes_that_are_not(shared):
    """What breakers and alarms have put up is said, with the process and its age."""
    for _ in range(5):
        upstream.get_breaker().failure()
    settle()
    shared.put_up_notice(TOPIC, missed={"hero": 300}, stalled=True)
    found = diagnose()
    state, text = find("The breaker of ", found)
    assert state == "warning"
    assert "was open 0 s ago: 5 failures in a row." in text or "was open 1 s ago" in text
    assert find("Experience 'hero' was rendered on 300 pages at least", found)[0] == "problem"
    assert find("recorded events and saw none delivered", found)[0] == "problem"


def test_requests_of_the_minute(shared):
    """What all processes have taken of the workspace's limit is said, and warned of near its end."""
    slot = int(time.time() // SLOT_SECONDS)
    for number in range(12):
        shared.add_to_count(name_slot(slot - number), 5000, 60.0)
    state, text = find("requests a minute at most")
    assert state == "warning"
    assert f"{12 * (10_000 // 13):,} are taken" in text


# The delivery


@pytest.mark.parametrize(
    ("name", "debug", "state", "words"),
    [
        ("thread.ThreadDelivery", False, "ok", "delivers in each serving process, where its counts live"),
        ("immediate.ImmediateDelivery", False, "ok", "sends while the page waits"),
        ("dummy.DummyDelivery", False, "warning", "sends nothing. Leave DELIVERY"),
        ("dummy.DummyDelivery", True, "ok", "sends nothing."),
    ],
)
def test_deliveries(settings, name, debug, state, words):
    """It is said where the counts live."""
    settings.DEBUG = debug
    with override_personalize(SANDBOX=True, DELIVERY=backend(name)):
        assert find(words)[0] == state


def test_a_delivery_that_cannot_be_made():
    """The mistake in the options is told."""
    with override_personalize(DELIVERY=backend("immediate.ImmediateDelivery", timeout=-1, nonsense=1)):
        assert find("The delivery: ")[0] == "problem"


class Queued(QueuedDelivery):
    """A queue that takes nothing."""

    def __init__(self, *, fallback=None):
        super().__init__(fallback=fallback, timeout=1, max_attempts=1, backoff=1, max_backoff=1, pause=1)


def test_a_queue_and_its_fallback():
    """Both are examined."""
    fallback = backend("immediate.ImmediateDelivery")
    for options in ({}, {"fallback": fallback}):
        with override_personalize(DELIVERY={"BACKEND": "tests.test_doctor_vitals.Queued", "OPTIONS": options}):
            found = diagnose()
            assert find("hands events to a queue", found)[0] == "ok"
            assert len([text for _, text in found if "ImmediateDelivery" in text]) == len(options)


def test_an_outbox_that_works(outbox):
    """Its books are those of all processes."""
    get_delivery().record(make_events(3))
    get_delivery().drop(1, "overflow")
    found = diagnose()
    assert find("The outbox in the database 'default': 3 events accepted, 0 delivered, 3 pending", found)[0] == "ok"
    assert not [state for state, text in found if "pending event" in text]


def test_an_outbox_that_nobody_empties(outbox):
    """The oldest event's age tells that no deliverer runs, or that it gets nowhere."""
    get_delivery().record(make_events(2))
    outbox.rows.update(created_at=timezone.now() - timedelta(minutes=45))
    state, text = find("The oldest pending event has waited for 45 minutes; no deliverer has one of them now.")
    assert state == "problem"
    assert "moe_deliver --watch" in text
    outbox.rows.update(lease="0" * 32, due_at=timezone.now() + timedelta(minutes=1))
    assert find("a deliverer has 2 of them at this moment")[0] == "problem"
    outbox.rows.update(created_at=timezone.now())
    assert find("A deliverer has 2 events at this moment")[0] == "ok"


def test_an_outbox_with_parked_events(outbox):
    """What MoEngage refused waits for somebody to look at it."""
    get_delivery().record(make_events(2))
    outbox.rows.update(state=OutboxEvent.State.REFUSED)
    found = diagnose()
    assert find("2 events are parked", found)[0] == "warning"
    assert "2 dropped (refused)" in find("The outbox in", found)[1]


def test_an_outbox_without_tables(outbox):
    """Who forgot to migrate is told."""
    with database.cursor() as cursor:
        cursor.execute("ALTER TABLE moe_personalize_outboxevent RENAME TO elsewhere")
    try:
        assert find("has no outbox, so every event is lost. Run `manage.py migrate --database default`")[0] == "problem"
    finally:
        with database.cursor() as cursor:
            cursor.execute("ALTER TABLE elsewhere RENAME TO moe_personalize_outboxevent")


def test_a_database_that_fails(settings):
    """Where the database cannot be asked the command goes on; the exception's text may hold a password."""
    with override_personalize(DELIVERY=backend("database.DatabaseDelivery")):
        found = diagnose()
    assert find("The delivery: RuntimeError.", found)[0] == "problem"


# What is installed


def install(folder, name, version):
    """Put a distribution's metadata into a folder."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_an_environment_that_is_well(monkeypatch):
    """Nothing is said of what is right."""
    assert of(*site.examine_environment(shows_html=False)) == []


def test_an_environment_that_breaks_things(tmp_path, monkeypatch):
    """Another urllib3 in its place, an old one, and HTML that nothing cleans."""
    install(tmp_path, "niquests", "3.14.0")
    install(tmp_path, "urllib3", "1.26.20")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "nh3", None)
    found = of(*site.examine_environment(shows_html=True))
    assert [state for state, _ in found] == ["warning"] * 3
    assert [text.split()[0] for _, text in found] == ["niquests", "urllib3", "A"]
    assert "1.26.20" in found[1][1]

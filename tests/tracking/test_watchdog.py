"""The alarm: what pages show and nobody counts, what is recorded and never leaves; and who is told."""

import logging
import os
from dataclasses import replace

import pytest
from django.core.cache import cache
from django.test import Client

from django_moe_personalize import alarm as alarm_module
from django_moe_personalize import tracking
from django_moe_personalize.delivery.base import BaseDelivery, get_delivery
from django_moe_personalize.fetching import metadata, shared
from django_moe_personalize.moengage.types import Action, Event, Experience
from django_moe_personalize.signals import impressions_missing
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.tracking.watchdog import MAX_EXPERIENCES, Alarm
from tests.conftest import settle
from tests.processes import filled, use_shared_cache  # noqa: F401 - a fixture among them
from tests.virtual_time import Clock

PERSON = {"HTTP_USER_AGENT": "Mozilla/5.0"}
HERO = Experience("hero", {}, {"cid": "1", "experience": "The hero"})
SEEN = Event(Action.SHOWN, "42", HERO.experience_context, 1)


@pytest.fixture
def clock():
    """Give a clock that stands still."""
    return Clock()


@pytest.fixture
def missing():
    """Collect what the signal ``impressions_missing`` says."""
    told = []

    def hear(sender, experience_key, rendered, **kwargs):
        told.append((experience_key, rendered))

    impressions_missing.connect(hear)
    yield told
    impressions_missing.disconnect(hear)


def show(alarm, clock, pages=100, seconds=61.0):
    """Let pages show the hero, evenly over some time."""
    for _ in range(pages):
        clock.now += seconds / (pages - 1)
        alarm.add_page([HERO])
    settle()


def errors(caplog):
    """Return the messages of the errors logged."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def test_shown_on_many_pages_and_never_counted(clock, caplog, missing):
    """One error an experience, with the mend, and the signal; once, however long it goes on."""
    with override_personalize(IMPRESSIONS="visible"):
        alarm = Alarm(clock=clock)
        show(alarm, clock, pages=99)
        assert errors(caplog) == []
        show(alarm, clock, pages=301)
    (error,) = errors(caplog)
    assert error.startswith("Experience 'hero' was rendered on 100 pages, and not one impression of it was recorded.")
    assert "{% personalize_scripts %}" in error
    assert missing == [("hero", 100)]


def test_a_burst_is_looked_at_later(clock, caplog):
    """A hundred pages within a moment leave browsers no time to report; the next hundred are looked at again."""
    with override_personalize(IMPRESSIONS="visible"):
        alarm = Alarm(clock=clock)
        show(alarm, clock, pages=199, seconds=1.0)
        assert errors(caplog) == []
        show(alarm, clock, pages=2)
    assert len(errors(caplog)) == 1


@pytest.mark.parametrize("mode", ["web_sdk", "manual"])
def test_modes_in_which_others_count(clock, caplog, mode):
    """Where MoEngage's script or the site's code counts, nothing is missed here."""
    with override_personalize(IMPRESSIONS=mode):
        show(Alarm(clock=clock), clock, pages=300)
    assert errors(caplog) == []


def test_one_impression_is_enough(clock, caplog):
    """Whoever has counted one has what it needs; a click alone is no impression."""
    with override_personalize(IMPRESSIONS="visible"):
        alarm = Alarm(clock=clock)
        alarm.add_events([SEEN])
        show(alarm, clock)
        assert errors(caplog) == []
        alarm = Alarm(clock=clock)
        alarm.add_events([replace(SEEN, action=Action.CLICKED)])
        settle()
        # The mark of the other alarm, which shares the cache.
        cache.clear()
        show(alarm, clock)
    assert len(errors(caplog)) == 1


def test_another_process_counts(shared, clock, caplog):
    """Beacons may all come to other processes, which say so in the cache; again and again, as long as they do."""
    with override_personalize(IMPRESSIONS="visible"):
        counting, showing = Alarm(clock=clock), Alarm(clock=clock)
        counting.add_events([SEEN, SEEN])
        settle()
        show(showing, clock)
        show(showing, clock)
        assert errors(caplog) == []
        assert showing._counted == {"The hero": 0.0}
        marked = counting._counted["The hero"]
        clock.now = marked
        counting.add_events([SEEN])
        settle()
    assert counting._counted["The hero"] > marked


def test_what_is_remembered_is_bounded(clock):
    """A workspace with more experiences than anyone has costs no more memory."""
    alarm = Alarm(clock=clock)
    for number in range(MAX_EXPERIENCES + 5):
        alarm.add_page([Experience(f"key-{number}", {}, {})])
    assert len(alarm._shown) == MAX_EXPERIENCES


def test_busy_thread_costs_a_look(clock, caplog):
    """Where nobody is free to look, the next hundred pages ask again."""
    with override_personalize(IMPRESSIONS="visible"):
        alarm = Alarm(clock=clock)
        with filled(metadata.get_pool()):
            for _ in range(100):
                clock.now += 1
                alarm.add_page([HERO])
        assert errors(caplog) == []
        show(alarm, clock)
    assert len(errors(caplog)) == 1


def record(alarm, clock, *, after):
    """Record an event some time later, and let it be looked at."""
    clock.now += after
    get_delivery().record([SEEN])
    alarm.add_events([SEEN])
    settle()


def test_events_that_never_leave(clock, caplog, missing):
    """After ten minutes without one that was delivered one error, and the signal for what was shown."""
    queue = {"BACKEND": "tests.test_alarm.Hoarding"}
    with override_personalize(DELIVERY=queue):
        alarm = Alarm(clock=clock)
        alarm.add_page([HERO])
        for _ in range(3):
            record(alarm, clock, after=300)
        assert errors(caplog) == []
        record(alarm, clock, after=299)
        assert errors(caplog) == []
        for _ in range(3):
            record(alarm, clock, after=300)
        (error,) = errors(caplog)
        assert error.startswith("4 events were recorded in the last 14 minutes and none was delivered.")
        assert missing == [("hero", 1)]
        # One that leaves ends it, and the next time is another.
        get_delivery().deliver(1)
        for _ in range(5):
            record(alarm, clock, after=300)
    assert len(errors(caplog)) == 2


def test_seldom_is_not_never(clock, caplog):
    """An event an hour that is on its way when it is looked at is no alarm."""
    with override_personalize(DELIVERY={"BACKEND": "tests.test_alarm.Hoarding"}):
        alarm = Alarm(clock=clock)
        for _ in range(5):
            record(alarm, clock, after=3600)
            get_delivery().deliver(1)
    assert errors(caplog) == []


def test_a_delivery_that_cannot_be_asked_is_no_alarm(clock, caplog):
    """A database that is away has alarms of its own."""
    with override_personalize(DELIVERY={"BACKEND": "tests.test_alarm.Speechless"}):
        record(Alarm(clock=clock), clock, after=300)
    assert errors(caplog) == []


class Hoarding(BaseDelivery):
    """A delivery that takes everything and sends nothing."""

    def take(self, events):
        """Keep."""


class Speechless(Hoarding):
    """A delivery whose counts cannot be had."""

    def counts(self):
        """Fail."""
        raise OSError("away")


def visits(path="/tags/", **options):
    """Let a person see a page."""
    assert Client().get(path, **{**PERSON, **options}).status_code == 200


@pytest.mark.urls("tests.site")
@pytest.mark.django_db
@pytest.mark.parametrize(("mode", "pages"), [("render", 1), ("visible", 1), ("web_sdk", 0), ("manual", 0)])
def test_pages_add_themselves(upstream, mode, pages):
    """A page that shows experiences to a person counts once for each; robots, errors and HEAD do not."""
    with override_personalize(IMPRESSIONS=mode):
        visits()
        visits(HTTP_USER_AGENT="Googlebot")
        Client().head("/tags/", **PERSON)
        Client().get("/missing/", **PERSON)
        shown = alarm_module.alarm._shown
        assert {key: entry.pages for key, entry in shown.items()} == (
            dict.fromkeys(["hero-banner", "promo-strip"], pages) if pages else {}
        )


@pytest.mark.urls("tests.site")
@pytest.mark.django_db
def test_who_may_not_be_counted_is_not_missed(upstream):
    """Without consent, or with nobody to count, there is nothing to miss."""
    with override_personalize(IMPRESSIONS="visible"):
        visits(HTTP_SEC_GPC="1")
        assert alarm_module.alarm._shown == {}
    with override_personalize(IMPRESSIONS="visible", ANONYMOUS_ID=False):
        visits()
        assert alarm_module.alarm._shown == {}


@pytest.mark.urls("tests.site")
@pytest.mark.django_db
def test_impressions_of_pages_are_counted(upstream, caplog, monkeypatch):
    """In the mode "render" every page counts itself, so however many there are, nothing is missed."""
    monkeypatch.setattr(alarm_module, "RENDERED_SECONDS", 0.0)
    client = Client()
    for _ in range(101):
        client.get("/tags/", **PERSON)
    settle()
    assert alarm_module.alarm._shown["hero-banner"].pages == 101
    assert errors(caplog) == []


def test_loss_is_no_count(monkeypatch):
    """What the delivery did not take was not counted."""
    with override_personalize(DELIVERY={"BACKEND": "tests.test_alarm.Refusing"}):
        tracking.record([SEEN])
    assert alarm_module.alarm._counted == {}


class Refusing(Hoarding):
    """A delivery that breaks its promise never to raise."""

    def record(self, events):
        """Fail."""
        raise OSError("full")


def test_forked_child_starts_anew(clock):
    """A child has shown and counted nothing itself."""
    alarm = Alarm(clock=clock)
    alarm.add_page([HERO])
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, b"%d" % len(alarm._shown))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 1) == b"0"
    assert len(alarm._shown) == 1
    os.close(reader)
    os.close(writer)


def test_settings_that_change_start_anew(settings):
    """A test that changes the settings meets nothing of before; another setting leaves it alone."""
    alarm_module.alarm.add_page([HERO])
    settings.SITE_ID = 7
    assert alarm_module.alarm._shown
    settings.MOE_PERSONALIZE = {"SANDBOX": True}
    assert not alarm_module.alarm._shown


def read_notice():
    """Return what this process has put up."""
    (notice,) = shared.read_notices(alarm_module.TOPIC)
    return notice["missed"], notice["stalled"]


def test_what_is_missed_is_put_up(shared, clock):
    """Other processes, the doctor's among them, read what this one misses, for as long as it does."""
    with override_personalize(IMPRESSIONS="visible"):
        alarm = Alarm(clock=clock)
        show(alarm, clock)
        assert read_notice() == ({"hero": 100}, False)
        show(alarm, clock, pages=100, seconds=60.0)
        assert read_notice() == ({"hero": 100}, False)
        cache.clear()
        show(alarm, clock, pages=100, seconds=shared.NOTICE_SECONDS)
        assert read_notice() == ({"hero": 300}, False)
        alarm.add_events([SEEN])
        settle()
        show(alarm, clock, pages=100, seconds=shared.NOTICE_SECONDS)
        assert read_notice() == ({}, False)


def test_stall_is_put_up(shared, clock):
    """That nothing leaves is said until something does."""
    with override_personalize(DELIVERY={"BACKEND": "tests.test_alarm.Hoarding"}):
        alarm = Alarm(clock=clock)
        for _ in range(5):
            record(alarm, clock, after=300)
        assert read_notice() == ({}, True)
        get_delivery().deliver(1)
        record(alarm, clock, after=300)
        assert read_notice() == ({}, False)


def test_busy_thread_keeps_no_count_from_others(shared, clock):
    """A process that could not tell others that it counts tells them with its next event."""
    alarm = Alarm(clock=clock)
    with filled(metadata.get_pool()):
        alarm.add_events([SEEN])
    assert alarm._counted["The hero"] == clock.now
    alarm.add_events([SEEN])
    settle()
    assert alarm._counted["The hero"] > clock.now

"""The watchdog: experiences without impressions, events that are never delivered, and the notices about them."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
from django.core.cache import cache
from django.test import Client

from django_moe_personalize import tracking
from django_moe_personalize.delivery.base import BaseDelivery, get_delivery
from django_moe_personalize.fetching.shared import NOTICE_SECONDS, read_notices
from django_moe_personalize.fetching.upstream import get_background
from django_moe_personalize.moengage.types import Action, Event, Experience
from django_moe_personalize.signals import impressions_missing
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.tracking.page import Impressions
from django_moe_personalize.tracking.watchdog import (
    NEWCOMERS_TOPIC,
    TOPIC,
    WEB_SDK_TOPIC,
    Watchdog,
    get_watchdog,
)
from tests.conftest import settle
from tests.pages import BROWSER
from tests.processes import filled, use_shared_cache  # noqa: F401 - a fixture among them
from tests.virtual_time import Clock

HERO = Experience("hero", {}, {"cid": "1", "experience": "The hero"})
SEEN = Event(Action.SHOWN, "42", HERO.experience_context, 1)


class Hoarding(BaseDelivery):
    """A delivery that accepts events and sends none."""

    def take(self, events):
        """Keep the events."""


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watchdog(clock):
    return Watchdog(clock=clock)


@pytest.fixture
def missing():
    """Collect the keys and pages of the signal ``impressions_missing``."""
    told = []

    def hear(sender, experience_key, rendered, **kwargs):
        told.append((experience_key, rendered))

    impressions_missing.connect(hear)
    yield told
    impressions_missing.disconnect(hear)


@pytest.fixture
def visible():
    with override_personalize(IMPRESSIONS="visible"):
        yield


@pytest.fixture
def hoarding():
    with override_personalize(DELIVERY={"BACKEND": f"{__name__}.Hoarding"}):
        yield


def show(watchdog, clock, pages=100, seconds=61.0):
    """Let pages show the hero, evenly over some time, and the last one a minute later."""
    for number in range(1, pages + 1):
        clock.now += 60 if number == pages else seconds / (pages - 1)
        watchdog.add_rendered_page({"hero": HERO})
    settle()


def record(watchdog, clock, *, after, times=1):
    """Record an event some time later, and let the watchdog check the delivery."""
    for _ in range(times):
        clock.now += after
        get_delivery().record([SEEN])
        watchdog.add_recorded_events([SEEN])
        settle()


def test_shown_on_many_pages_and_never_counted(visible, watchdog, clock, caplog, missing):
    """The log has one error with the fix, and the signal is sent once."""
    show(watchdog, clock, pages=99)
    assert caplog.messages == []
    show(watchdog, clock, pages=1)
    show(watchdog, clock, pages=300)
    [error] = caplog.messages
    assert error.startswith("100 pages showed the experience 'hero', but no impression of it was recorded. In the mode")
    assert "{% personalize_scripts %}" in error
    assert missing == [("hero", 100)]


def test_many_pages_within_a_moment(visible, watchdog, clock, caplog):
    """Browsers had no time to report yet, so the watchdog checks again a minute later."""
    for _ in range(200):
        watchdog.add_rendered_page({"hero": HERO})
    settle()
    assert caplog.messages == []
    show(watchdog, clock, pages=1)
    assert len(caplog.messages) == 1


def test_notice_of_new_ids(shared, watchdog, clock):
    """After its first minute, and then every quarter of an hour, a process tells the doctor about new ids."""
    for after, given in [(1, []), (60, [2]), (60, [2]), (900, [4])]:
        clock.now += after
        watchdog.add_new_id(f"anon-{clock.now}")
        settle()
        assert [len(notice["given"]) for notice in read_notices(NEWCOMERS_TOPIC)] == given


def test_pages_without_the_web_sdk(shared, watchdog, clock, caplog):
    """The tenth page within an hour is an error in the log. Once a minute the doctor gets the count of this hour."""
    for after, pages in [(0, 1), (1, 1), *[(7, 1)] * 8, (60, 11), (3600, 1), *[(1, 1)] * 20]:
        clock.now += after
        watchdog.add_page_without_sdk()
        settle()
        [notice] = read_notices(WEB_SDK_TOPIC)
        assert notice["pages"] == pages
    [error] = caplog.messages
    assert error.startswith("10 pages waited for MoEngage's Web SDK, but it never came, so they counted nothing. Check")


@pytest.mark.parametrize("mode", ["web_sdk", "manual"])
def test_modes_that_are_not_watched(clock, caplog, mode):
    """In these modes MoEngage's script or the site's own code counts."""
    with override_personalize(IMPRESSIONS=mode):
        show(Watchdog(clock=clock), clock, pages=300)
    assert caplog.messages == []


@pytest.mark.parametrize(("action", "errors"), [(Action.SHOWN, 0), (Action.CLICKED, 1)])
def test_one_impression_is_enough(visible, watchdog, clock, caplog, action, errors):
    """An experience with an impression is not missing. A click is not an impression."""
    watchdog.add_recorded_events([replace(SEEN, action=action)])
    show(watchdog, clock)
    assert len(caplog.messages) == errors


def test_impression_in_another_process(shared, visible, clock, caplog):
    """If all beacons reach one process, this process tells the other processes in the cache, again and again."""
    counting, showing = Watchdog(clock=clock), Watchdog(clock=clock)
    counting.add_recorded_events([SEEN, SEEN])
    settle()
    show(showing, clock)
    show(showing, clock)
    assert caplog.messages == []
    assert showing._counted == {"The hero": 0.0}
    clock.now = until = counting._counted["The hero"]
    counting.add_recorded_events([SEEN])
    settle()
    assert counting._counted["The hero"] > until


def test_memory_is_bounded(watchdog, monkeypatch):
    """The watchdog remembers the newest experiences, and counts the pages with more as well."""
    monkeypatch.setattr(tracking.watchdog, "MAX_EXPERIENCES", 100)
    pages = 300
    for number in range(pages):
        key = f"key-{number}"
        watchdog.add_rendered_page({key: Experience(key, {}, {}), "hero": HERO})
    assert len(watchdog._rendered) == 100
    assert len(watchdog._pages) <= 200
    assert watchdog._count_pages()["hero"] == pages


def test_memory_of_reported_pages_is_bounded(watchdog, monkeypatch):
    """Pages may show endless sets of experiences."""
    monkeypatch.setattr(tracking.watchdog, "MAX_EXPERIENCES", 2)
    for number in range(10):
        shown = {f"e{number}": replace(HERO, experience_key=f"e{number}")}
        watchdog.add_recorded_events(Impressions("42", shown, 1))
    assert len(watchdog._pages) <= 4


def test_busy_background_thread(visible, watchdog, clock, caplog):
    """The watchdog checks again after the next hundred pages, and shares an impression with the next event."""
    with filled(get_background()):
        for _ in range(100):
            clock.now += 1
            watchdog.add_rendered_page({"hero": HERO})
    assert caplog.messages == []
    show(watchdog, clock)
    assert len(caplog.messages) == 1
    with filled(get_background()):
        watchdog.add_recorded_events([SEEN])
    assert watchdog._counted["The hero"] == clock.now
    watchdog.add_recorded_events([SEEN])
    settle()
    assert watchdog._counted["The hero"] > clock.now


def test_events_that_are_never_delivered(hoarding, watchdog, clock, caplog, missing):
    """After ten minutes the log has one error, and the signal is sent for the shown experiences."""
    watchdog.add_rendered_page({"hero": HERO})
    record(watchdog, clock, after=300, times=3)
    record(watchdog, clock, after=299)
    assert caplog.messages == []
    record(watchdog, clock, after=300, times=3)
    [error] = caplog.messages
    assert error.startswith("4 events were recorded in the last 14 minutes, but none was delivered. Run")
    assert missing == [("hero", 1)]
    # A delivered event ends the stall. The next one is another error.
    get_delivery().count_delivered(1)
    record(watchdog, clock, after=300, times=5)
    assert [entry.moe_event for entry in caplog.records] == ["stall_start", "stall_end", "stall_start"]
    assert {entry.levelname for entry in caplog.records} == {"ERROR"}


def test_rare_events(hoarding, watchdog, clock, caplog):
    """One event an hour, which is pending during the check, is no stall."""
    for _ in range(5):
        record(watchdog, clock, after=3600)
        get_delivery().count_delivered(1)
    assert caplog.messages == []


def test_delivery_that_cannot_count(hoarding, watchdog, clock, caplog, monkeypatch):
    """A database that is down has its own errors."""
    monkeypatch.setattr(Hoarding, "counts", Mock(side_effect=OSError("away")))
    record(watchdog, clock, after=300)
    assert caplog.messages == []


def test_lost_events_do_not_count(hoarding, monkeypatch):
    """An impression is missing if the delivery breaks its promise never to raise an exception."""
    monkeypatch.setattr(Hoarding, "record", Mock(side_effect=OSError("full")))
    tracking.record([SEEN])
    assert get_watchdog()._counted == {}


@pytest.mark.urls("tests.site")
@pytest.mark.django_db
@pytest.mark.parametrize(
    ("options", "pages"),
    [
        ({"IMPRESSIONS": "render"}, 1),
        ({"IMPRESSIONS": "visible"}, 1),
        ({"IMPRESSIONS": "web_sdk"}, 0),
        ({"IMPRESSIONS": "manual"}, 0),
        ({"IMPRESSIONS": "visible", "ANONYMOUS_ID": False}, 0),
        ({"IMPRESSIONS": "visible", "CONSENT": "tests.site.deny_everything"}, 0),
    ],
)
def test_pages_that_are_watched(upstream, options, pages):
    """Only a page that shows experiences to a person who may be counted: no robot, no error page, no HEAD."""
    with override_personalize(**options):
        for method, path, agent in (
            ("get", "/tags/", BROWSER),
            ("get", "/tags/", "Googlebot"),
            ("head", "/tags/", BROWSER),
            ("get", "/missing/", BROWSER),
        ):
            getattr(Client(), method)(path, headers={"User-Agent": agent})
        rendered = get_watchdog()._count_pages()
    assert rendered == (dict.fromkeys(["hero-banner", "promo-strip"], pages) if pages else {})


@pytest.mark.urls("tests.site")
@pytest.mark.django_db
def test_pages_count_themselves_in_the_mode_render(upstream, caplog, monkeypatch):
    """After a hundred pages nothing is missing."""
    monkeypatch.setattr(tracking.watchdog, "RENDERED_SECONDS", 0.0)
    client = Client()
    for _ in range(101):
        client.get("/tags/")
    settle()
    assert get_watchdog()._count_pages()["hero-banner"] == 101
    assert caplog.messages == []


def read_notice():
    """Return what the notice of this process says."""
    [notice] = read_notices(TOPIC)
    return notice["missed"], notice["stalled"]


def test_notice_about_missing_impressions(shared, visible, watchdog, clock):
    """Other processes, such as the doctor, can read the notice as long as something is missing."""
    show(watchdog, clock)
    assert read_notice() == ({"hero": 100}, False)
    show(watchdog, clock, pages=100, seconds=60.0)
    assert read_notice() == ({"hero": 100}, False)
    cache.clear()
    show(watchdog, clock, pages=100, seconds=NOTICE_SECONDS)
    assert read_notice() == ({"hero": 300}, False)
    watchdog.add_recorded_events([SEEN])
    settle()
    show(watchdog, clock, pages=100, seconds=NOTICE_SECONDS)
    assert read_notice() == ({}, False)


def test_notice_about_a_stall(shared, hoarding, watchdog, clock):
    """The notice ends when an event is delivered."""
    record(watchdog, clock, after=300, times=5)
    assert read_notice() == ({}, True)
    get_delivery().count_delivered(1)
    record(watchdog, clock, after=300)
    assert read_notice() == ({}, False)

"""The doctor's findings about the site: its cache, processes, delivery and installed packages."""

import os
import re
import sys
import time
from datetime import timedelta

import pytest
from django.core.cache.backends.base import BaseCache
from django.utils import timezone

from django_moe_personalize.conf import get_settings
from django_moe_personalize.doctor import site
from django_moe_personalize.fetching.shared import put_up_notice
from django_moe_personalize.fetching.switch import get_switch
from django_moe_personalize.fetching.upstream import BREAKER_TOPIC
from django_moe_personalize.models import OutboxEvent, Switch
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.tracking.watchdog import TOPIC, WEB_SDK_TOPIC
from tests.delivery.conftest import without_table
from tests.doctor.conftest import SHORT, as_pairs, build_backend, diagnose, find, record_events
from tests.pages import BROWSER
from tests.processes import use_shared_cache  # noqa: F401 - a fixture


def test_cache_that_works(settings, request):
    """The finding says whether processes share the cache."""
    assert find("The cache 'default' works, but each process has its own")[0] == "ok"
    assert find("share no cache, so only their logs report rate limits")[0] == "ok"
    request.getfixturevalue("shared")
    assert find("The cache 'experiences' works")[1].endswith("and processes share it.")


def test_keys_that_are_off(shared):
    """Each has a finding, with the person who has switched it off. Without a table or a cache, nothing can be off."""
    assert find("No experience is switched off.")[0] == "ok"
    get_switch().turn(["", "hero-banner"], is_off=True, by="ada")
    assert find("All experiences are switched off (by ada at ")[0] == "warning"
    assert find("Experience 'hero-banner' is switched off")[1].endswith(
        "Run `manage.py moe_switch on hero-banner` when it should be shown again."
    )
    with override_personalize(CACHE="default"), without_table(Switch):
        assert find("`manage.py moe_switch` can't work")[0] == "warning"


class SlowCache(BaseCache):
    delay, keeps, values = 0.0, True, {}

    def __init__(self, location, params):
        super().__init__(params)

    def set(self, key, value, timeout=None, version=None):
        time.sleep(self.delay)
        self.values.update({key: value} if self.keeps else {})

    def get(self, key, default=None, version=None):
        return self.values.get(key, default)

    def delete(self, key, version=None):
        return self.values.pop(key, None) is not None


def test_caches_that_do_not_work(settings, monkeypatch):
    """A cache that is slow, loses values, hangs or fails has a finding, and the doctor goes on."""
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.SlowCache"}}
    monkeypatch.setattr(SlowCache, "delay", 0.05)
    with override_personalize(DEADLINE=0.01, SANDBOX=True):
        assert find("which is longer than DEADLINE")[0] == "warning"
    monkeypatch.setattr(SlowCache, "keeps", False)
    assert find("loses values immediately")[0] == "problem"
    monkeypatch.setattr(SlowCache, "delay", 1.0)
    assert find("The doctor tried the cache, and got no answer in time.", diagnose(SHORT))[0] == "problem"
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    found = diagnose()
    assert find("The doctor tried the cache, and got the error ConnectionError.", found)[0] == "problem"
    assert "secret-host" not in str(found)


def test_caches_that_the_checks_report(settings):
    """DummyCache and an unknown alias are reported once, by the system checks."""
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    assert len([text for _, text in diagnose() if "stores nothing" in text]) == 1
    assert as_pairs(site.examine_cache(get_settings())) == []
    with override_personalize(CACHE="nowhere"):
        assert as_pairs(site.examine_cache(get_settings())) == []


def test_processes_that_are_well(shared_cache):
    """A circuit breaker that has closed again is not reported."""
    put_up_notice(BREAKER_TOPIC, state="closed", reason="the probe was answered")
    put_up_notice(TOPIC, missed={}, stalled=False)
    assert find("so it gets no visitors' answers")[0] == "ok"
    assert find("No process reported a rate limit or an open circuit breaker")[0] == "ok"


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("open", "5 failures in a row", "The circuit breaker of {} changed to open {} ago: 5 failures in a row. Check"),
        ("half-open", "why", "The circuit breaker of {} changed to half-open {} ago: why. Check above"),
        ("open", "rate limited for 9 s", "MoEngage's rate limit stopped {} {} ago: rate limited for 9 s. Raise CACHE"),
        ("closed", "the rate limit is over", "MoEngage's rate limit stopped {} until {} ago. Raise CACHE_TTL, narrow"),
    ],
)
def test_processes_that_were_stopped(shared_cache, state, reason, words):
    """An open circuit breaker, and a rate limit even when it is over, are warnings with process, time and fix."""
    put_up_notice(BREAKER_TOPIC, state=state, reason=reason)
    found = [finding for finding in diagnose() if f":{os.getpid()}" in finding[1]]
    assert [kind for kind, _ in found] == ["warning"]
    assert re.match(words.format(rf"process \S+:{os.getpid()}", r"\d+ s"), found[0][1])


def test_missing_impressions_and_stalled_delivery(shared_cache):
    """The notices of the watchdogs are problems. Pages without MoEngage's Web SDK may be those of an ad blocker."""
    put_up_notice(TOPIC, missed={"hero": 300}, stalled=True)
    put_up_notice(WEB_SDK_TOPIC, pages=12)
    found = diagnose()
    assert find("at least 12 pages waited for MoEngage's Web SDK, but it never came. Check that", found)[0] == "warning"
    assert find("At least 300 pages showed experience 'hero', but no impression", found)[0] == "problem"
    assert find(f":{os.getpid()} recorded events, but ", found)[0] == "problem"


@pytest.mark.parametrize(
    ("setting", "visits", "state", "words"),
    [
        ("always", 120, "warning", "Of 120 {}, 119 (99%) never came back. Set ANONYMOUS_EVENTS"),
        ("always", 9, "ok", "Of 9 {}, 8 (89%) never came back. Each of these may be a profile"),
        ("returning", 120, "ok", "Of 120 {}, 119 (99%) never came back. The package reports none"),
    ],
)
@pytest.mark.urls("tests.site")
def test_new_visitors(client, upstream, setting, visits, state, words):
    """The finding says how many new ids never came back. Robots that say so, and pages without an id, don't matter."""
    with override_personalize(ANONYMOUS_EVENTS=setting, DELIVERY=build_backend("dummy.DummyDelivery")):
        assert [text for _, text in diagnose() if "new anonymous ids" in text] == []
        for _ in range(visits):
            client.cookies.clear()
            client.get("/tags/")
        client.get("/tags/")
        for agent in ("Googlebot", BROWSER):
            client.cookies.clear()
            client.get("/tags/" if agent == "Googlebot" else "/prefetching/", headers={"User-Agent": agent})
        assert find(words.format("new anonymous ids in a sample"))[0] == state


@pytest.mark.parametrize(
    ("name", "debug", "state", "words"),
    [
        ("thread.ThreadDelivery", False, "ok", "delivers in each web process, and only that process knows its counts"),
        ("immediate.ImmediateDelivery", False, "ok", "sends while the page waits"),
        ("dummy.DummyDelivery", False, "warning", "sends nothing. Remove DELIVERY"),
        ("dummy.DummyDelivery", True, "ok", "sends nothing."),
    ],
)
def test_deliveries(settings, name, debug, state, words):
    """The finding says how events are delivered and who knows the counts."""
    settings.DEBUG = debug
    with override_personalize(SANDBOX=True, DELIVERY=build_backend(name)):
        assert find(words)[0] == state


def test_delivery_with_wrong_options():
    """The mistake in the options is a problem."""
    with override_personalize(DELIVERY=build_backend("immediate.ImmediateDelivery", timeout=-1, nonsense=1)):
        assert find("The doctor couldn't try the delivery: ")[0] == "problem"


@pytest.mark.parametrize("options", [{}, {"fallback": build_backend("immediate.ImmediateDelivery")}])
def test_queue_and_its_fallback(options):
    """The doctor examines the queue's delivery and its fallback."""
    with override_personalize(DELIVERY=build_backend("celery.CeleryDelivery", **options)):
        found = diagnose()
    assert find("hands events to a queue", found)[0] == "ok"
    assert len([text for _, text in found if "ImmediateDelivery" in text]) == len(options)


def test_outbox(outbox):
    """An old event is a problem. A parked event is a warning. The finding says whether a deliverer is sending now."""
    record_events(2)
    found = diagnose()
    assert find("The outbox in the database 'default': 2 events accepted, 0 delivered, 2 pending", found)[0] == "ok"
    assert not [text for _, text in found if "pending event" in text]
    outbox.rows.update(created_at=timezone.now() - timedelta(minutes=45), is_conversion=True)
    assert find("The oldest pending")[1].endswith("--watch`. Only conversions wait, so check DATA_API_KEY too.")
    outbox.rows.update(is_conversion=False)
    state, text = find("The oldest pending event has waited for 45 minutes, and no deliverer is sending events now.")
    assert state == "problem"
    assert "moe_deliver --watch" in text
    outbox.rows.update(lease="0" * 32, due_at=timezone.now() + timedelta(minutes=1))
    assert find("a deliverer is sending 2 events now. Read the log of the deliverer.")[0] == "problem"
    outbox.rows.update(created_at=timezone.now())
    assert find("A deliverer is sending 2 events now.")[0] == "ok"
    outbox.rows.update(state=OutboxEvent.State.REFUSED)
    found = diagnose()
    assert find("2 events are parked", found)[0] == "warning"
    assert "2 dropped (refused)" in find("The outbox in", found)[1]


def test_outbox_without_a_table(outbox):
    """The finding names the command that creates the table."""
    with without_table():
        assert find("so every event is lost. Run `manage.py migrate --database default`.")[0] == "problem"


def install(folder, name, version):
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_wrong_packages(tmp_path, monkeypatch):
    """A replaced urllib3, an old urllib3, and HTML without nh3 are warnings. Right packages have no finding."""
    assert as_pairs(site.examine_packages(set())) == []
    install(tmp_path, "niquests", "3.14.0")
    install(tmp_path, "urllib3", "1.26.20")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "nh3", None)
    found = as_pairs(site.examine_packages({"experience_html"}))
    assert [state for state, _ in found] == ["warning"] * 3
    assert [text.split()[0] for _, text in found] == ["niquests", "urllib3", "A"]
    assert "1.26.20" in found[1][1]

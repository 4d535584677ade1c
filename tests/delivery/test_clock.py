"""A wrong clock of the site loses no event: the sandbox refuses events from its future, over HTTP, as MoEngage does."""

import re
import threading
import time

import pytest

from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.delivery.sending import send
from django_moe_personalize.moengage import clock
from django_moe_personalize.moengage.clock import MAX_SKEW, VendorClock
from django_moe_personalize.resilience import monotonic
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.server import SandboxServer
from django_moe_personalize.sandbox.workspace import load_workspace
from tests.delivery.events import backend, make_event
from tests.delivery.vendor import SOON

HOUR = 3600
DATE = "Sun, 22 Nov 2026 12:00:00 GMT"
NOON = 1_795_348_800.0


class Site:
    """A site whose clock is ``ahead`` of the sandbox's by some seconds. Its events leave with ``send()``."""

    def __init__(self, monkeypatch):
        self.ahead = 0.0
        self._real = time.time
        self.engine = Engine(load_workspace(), clock=self._real)
        monkeypatch.setattr(time, "time", lambda: self._real() + self.ahead)

    def record(self, *customers):
        get_delivery().record([make_event(customer).move(int(time.time())) for customer in customers])

    def send(self):
        get_delivery().flush(SOON)

    def read(self):
        """Return the customers and the times of the events in the sandbox's ledger, in seconds from now."""
        now = self._real()
        return [(entry.customer_id, entry.event_time - now) for entry in self.engine.ledger.entries()]


@pytest.fixture
def site(monkeypatch, settings):
    site = Site(monkeypatch)
    server = SandboxServer(site.engine)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    workspace = site.engine.workspace
    settings.MOE_PERSONALIZE = {
        "BASE_URL": server.url,
        "WORKSPACE_ID": workspace.workspace_id,
        "API_KEY": workspace.api_key,
    }
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("ahead", [90, 3 * HOUR, -90, -3 * HOUR])
@pytest.mark.parametrize("name", ["thread.ThreadDelivery", "database.DatabaseDelivery", "immediate.ImmediateDelivery"])
@pytest.mark.django_db(transaction=True)
def test_wrong_clock_loses_no_event(site, settings, caplog, name, ahead):
    """Events arrive in order and never from the future. The log says once how wrong the clock is, and when it's right.

    In the end the clock is corrected while an event waits.
    """
    settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | {"DELIVERY": backend(name)}
    site.ahead = ahead
    for customer in ("1st", "2nd"):
        site.record(customer)
        site.send()
    site.record("3rd")
    site.ahead = 0
    site.send()
    site.record("4th")
    site.send()
    arrived = site.read()
    assert [customer for customer, _ in arrived] == ["1st", "2nd", "3rd", "4th"]
    times = [at for _, at in arrived]
    assert times == sorted(times)
    assert min(ahead, 0) - SOON < times[0]
    assert times[-1] <= 0
    said = re.findall(r"wrong \(about (\d+) s (ahead of|behind)|(agrees) with MoEngage's again", caplog.text)
    assert [(way, again) for _, way, again in said] == [("ahead of" if ahead > 0 else "behind", ""), ("", "agrees")]
    assert abs(int(said[0][0]) - abs(ahead)) <= SOON
    assert "refused" not in caplog.text


def test_events_of_a_machine_with_a_wrong_clock(site):
    """A worker with the right clock sends the events of a web server whose clock is ahead. A bad event is found too."""
    site.ahead = 90
    events = [make_event(str(number)).move(int(time.time())) for number in range(8)]
    events[3].attributes.pop("cid")
    times = [event.event_time for event in events]
    for site.ahead in (0, 90):
        outcome = send(events, timeout=SOON)
        assert [event for event, _ in outcome.refused] == [events[3]]
        assert outcome.delivered == events[:3] + events[4:]
    # The second time, the sandbox knows the UUIDs. The events themselves have their own time, for their next attempt.
    assert len(site.read()) == 7
    assert max(at for _, at in site.read()) <= 0
    assert [event.event_time for event in events] == times


@pytest.mark.parametrize(
    ("ahead", "headers", "skew"),
    [
        (0.0, {}, 0.0),
        (90.0, {}, 90.0),
        (-90.0, {}, -90.0),
        (0.9, {}, 0.0),
        (2.0, {}, 2.0),
        (MAX_SKEW + 60, {}, 0.0),
        (-MAX_SKEW - 60, {}, 0.0),
        (90.0, {"age": "0"}, 90.0),
        (90.0, {"age": "90"}, 0.0),
        *((90.0, {"date": date}, 0.0) for date in ("", "yesterday", "0", "Sun, 99 Nov 2026 12:00:00 GMT", "x" * 9999)),
    ],
)
def test_clock_learns_from_dates(monkeypatch, ahead, headers, skew):
    """The resolution is a second. Missing, absurd and cached dates teach nothing."""
    monkeypatch.setattr(time, "time", lambda: NOON + ahead)
    vendor = VendorClock()
    vendor.learn({"date": DATE, **headers}, monotonic())
    assert vendor.skew == pytest.approx(skew, abs=0.5)
    assert abs(vendor.now() - (NOON + ahead - skew)) <= 1.0


def test_clock_keeps_what_it_knows(monkeypatch):
    """A date that fits changes nothing, a date that doesn't fit does. A step of this machine's clock moves no event."""
    moment = [100.0]
    monkeypatch.setattr(clock, "monotonic", lambda: moment[0])
    monkeypatch.setattr(time, "time", lambda: NOON + 90)
    vendor = VendorClock()
    for seconds, at, skew in ((0, 100.0, 90), (1, 100.5, 90), (1, 101.7, 90), (30, 100.0, 60), (0, 100.0, 90)):
        moment[0] = at
        vendor.learn({"date": DATE.replace("12:00:00", f"12:00:{seconds:02}")}, at)
        moment[0] = 100.0
        assert vendor.skew == skew
    for step in (0.0, 3600.0):
        monkeypatch.setattr(time, "time", lambda step=step: NOON + step)
        assert vendor.now() == NOON

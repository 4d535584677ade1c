"""Flights that fail end on time, report the error once, and leave nothing behind."""

import asyncio
import json
import select
import socket
import time

import pytest

from django_moe_personalize import signals
from django_moe_personalize.fetching import flight, upstream
from django_moe_personalize.fetching.cache import ExperienceCache
from django_moe_personalize.fetching.flights import get_flights
from django_moe_personalize.moengage import client
from django_moe_personalize.moengage.http1 import HTTPExchange
from django_moe_personalize.resilience import PoolBusy
from django_moe_personalize.testing import override_personalize
from tests.conftest import settle
from tests.fetching.asking import Asked
from tests.fetching.warm_vendor import KEYS, SOON, VISITOR
from tests.loopback import Exchange, build_head
from tests.wire import LONG, break_off, wait_until


def join(asked, seconds=LONG):
    """Read in a thread."""
    return asked.join(seconds)


def ajoin(asked, seconds=LONG):
    """Read in an event loop."""
    return asyncio.run(asked.ajoin(seconds))


both_ways = pytest.mark.parametrize("read", [join, ajoin], ids=["thread", "task"])


@pytest.fixture
def brief(vendor):
    """Give a vendor to pages with a short deadline."""
    with override_personalize(DEADLINE=SOON):
        vendor.warm()
        yield vendor


# In time


@both_ways
def test_late_page_does_not_wait_for_a_late_vendor(brief, heard, read):
    """A vendor that hasn't answered by the deadline fails as soon as a late page reads."""
    with brief.hold():
        asked = Asked(VISITOR, KEYS)
        time.sleep(SOON)
        start = time.monotonic()
        assert read(asked) == {}
        assert time.monotonic() - start < LONG / 2
    settle()
    assert heard == ["failure"]


def test_stopped_clock_stops_no_flight(brief, heard, monkeypatch):
    """A flight ends at its deadline, also in a test that has stopped Python's clocks."""
    with brief.hold():
        monkeypatch.setattr(time, "monotonic", lambda: 0.0)
        asked = Asked(VISITOR, KEYS)
        assert asked.join(SOON) == {}
        assert asked.flight.result(LONG) == {}
    settle()
    assert heard == ["failure"]


@pytest.mark.parametrize("way", ["thread", "task", "released", "late-thread"])
def test_long_response_that_no_page_reads_in_time(brief, heard, monkeypatch, way):
    """The system buffers only the beginning of a long response. A late page, or a thread, reads the rest."""
    # The vendor is a thread of this process, and may be slow.
    monkeypatch.setattr(flight, "EXTRA_SECONDS", LONG)
    entry = {"payload": {"Title": {"value": "x" * 250_000, "data_type": "string"}}, "experience_context": {}}
    body = json.dumps({"experiences": {"hero-banner": entry}}).encode()

    def behave(exchange):
        exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        exchange.reply(body)

    def wait_past_the_deadline(seconds=1.5 * SOON):
        time.sleep(seconds)
        wait_until(lambda: select.select([asked.flight._exchange.fileno()], [], [], 0)[0])

    def offer_late(fn, *args):
        wait_past_the_deadline()
        return offer(fn, *args)

    brief.behave = behave
    asked = Asked(VISITOR, KEYS)
    if way == "late-thread":
        pool = upstream.get_pool()
        offer = pool.offer
        monkeypatch.setattr(pool, "offer", offer_late)
        # On a slow machine the deadline may pass before release().
        wait_past_the_deadline(0.0)
    else:
        wait_past_the_deadline()
    if way in ("released", "late-thread"):
        asked.release()
        wait_until(lambda: asked.done)
    answer = ajoin(asked) if way == "task" else join(asked)
    assert answer.keys() == {"hero-banner"}
    assert heard == ["success"]
    assert brief.has_idle_connection()


def test_long_response_that_stops_in_the_middle(brief, heard):
    """A late page waits only EXTRA_SECONDS for the rest of a response. After that, the call has failed."""
    brief.behave = lambda exchange: (exchange.send(build_head("200 OK", {"Content-Length": "9"})), exchange.hang())
    asked = Asked(VISITOR, KEYS)
    time.sleep(1.5 * SOON)
    start = time.monotonic()
    assert asked.join(LONG) == {}
    assert time.monotonic() - start < LONG / 2
    settle()
    assert heard == ["failure"]
    assert not brief.has_idle_connection()


# Dead connections


@both_ways
def test_idle_connection_that_the_server_closed(vendor, heard, read, submitted):
    """A thread asks again on a new connection. The breaker is told only about the response."""
    vendor.behave = lambda exchange: exchange.close() if exchange.turn > 1 else vendor.reply(exchange)
    asked = Asked(VISITOR, KEYS)
    wait_until(lambda: len(vendor.fetches) == 1)
    assert read(asked).keys() == {"hero-banner"}
    assert (len(vendor.fetches), vendor.server.connections) == (2, 2)
    assert (heard, submitted) == (["success"], ["_run"])


def test_idle_connection_found_closed_after_the_deadline(brief, heard, submitted):
    """After the deadline, the flight doesn't ask again, and the breaker isn't told."""
    brief.behave = Exchange.close
    asked = Asked(VISITOR, KEYS)
    time.sleep(SOON)
    assert asked.join(LONG) == {}
    assert (len(brief.fetches), heard, submitted) == (1, [], [])


@pytest.mark.parametrize("behave", [Exchange.close, Exchange.hang])
def test_known_experiences_show_when_no_answer_comes(vendor, heard, fill_pool, behave):
    """The page shows a stale experience, and the default for a key without a stale experience."""
    with override_personalize(CACHE_TTL=0, DEADLINE=1.0):
        vendor.warm()
        Asked(VISITOR, KEYS).join(LONG)
        settle()
        if behave is Exchange.close:
            fill_pool()
        vendor.behave = behave
        assert Asked(VISITOR, (*KEYS, "promo-strip")).join(LONG).keys() == {"hero-banner"}
    assert heard == (["success"] if behave is Exchange.close else ["success", "failure"])


# Responses that can't be used, and bugs


def test_full_pool_gives_up_no_answer_that_another_page_read(vendor, monkeypatch):
    """A page that finds no thread keeps the answer that another page has read in the meantime."""
    with vendor.hold():
        leaving, reading = Asked(VISITOR, KEYS), Asked(VISITOR, KEYS)

    def submit(*args):
        assert reading.join(LONG)
        raise PoolBusy("busy")

    monkeypatch.setattr(upstream.get_pool(), "submit", submit)
    leaving.release()
    assert leaving.join(0.0).keys() == {"hero-banner"}
    assert vendor.has_idle_connection()


@both_ways
@pytest.mark.parametrize("is_full", [False, True], ids=["thread-reports", "page-reports"])
@pytest.mark.parametrize(
    ("behave", "told", "kind"),
    [
        (lambda exchange: exchange.reply(b"{}", status="400 Bad"), "success", "ResponseError"),
        (lambda exchange: exchange.reply(status="401 No"), "failure", "AuthenticationError"),
        (lambda exchange: exchange.reply(status="429 Slow", headers={"Retry-After": "9"}), "close_gate", "RateLimited"),
        (lambda exchange: exchange.reply(b"oops", status="500 Oops"), "failure", "ServerError"),
        (lambda exchange: exchange.reply(b"<html>"), "failure", "InvalidResponseError"),
        (break_off(build_head("200 OK", {"Content-Length": "9"}) + b"{}", Exchange.close), "failure", "TransportError"),
        (break_off(b"SSH-2.0\r\n\r\n", Exchange.hang), "failure", "TransportError"),
    ],
    ids=["400", "401", "429", "500", "html", "half", "ssh"],
)
def test_bad_response_is_reported_once(vendor, heard, fill_pool, behave, told, kind, is_full, read):
    """A failed flight tells the breaker and the signal's sync and async receivers once, however many pages share it."""
    errors = []

    def listen(sender, error, experience_keys, **kwargs):
        errors.append((type(error).__name__.startswith(kind), experience_keys))

    async def alisten(sender, error, **kwargs):
        errors.append("async")

    vendor.behave = behave
    if is_full:
        fill_pool()
    signals.fetch_failed.connect(listen)
    signals.fetch_failed.connect(alisten)
    try:
        asked = [Asked(VISITOR, KEYS) for _ in range(3)]
        assert [read(one) for one in asked] == [{}] * 3
        settle()
    finally:
        signals.fetch_failed.disconnect(listen)
        signals.fetch_failed.disconnect(alisten)
    assert heard == [told]
    # An async receiver can't be called from the event loop of a page.
    assert errors == ([(True, KEYS)] if is_full and read is ajoin else [(True, KEYS), "async"])
    assert len(vendor.fetches) == 1


@both_ways
@pytest.mark.parametrize("place", ["read_fetch", "receive", "keep"])
def test_bug_after_the_response(vendor, heard, monkeypatch, caplog, read, place):
    """An unexpected error costs the pages their experiences at most. The log doesn't quote it."""

    def fail(*args, **kwargs):
        raise KeyError("ada@example.com")

    owner = {"read_fetch": client, "receive": HTTPExchange, "keep": ExperienceCache}[place]
    expected = {"hero-banner"} if place == "keep" else set()
    with monkeypatch.context() as broken:
        broken.setattr(owner, place, fail)
        asked = [Asked(VISITOR, KEYS) for _ in range(2)]
        assert [read(one).keys() for one in asked] == [expected] * 2
        settle()
    assert "failed unexpectedly (KeyError)" in caplog.text
    assert "ada@example.com" not in caplog.text
    assert heard == (["success"] if place == "keep" else ["failure"])
    assert vendor.has_idle_connection() == (place != "receive")
    assert len(get_flights()._flights) == 0

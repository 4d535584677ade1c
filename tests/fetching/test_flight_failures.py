"""Questions in two steps that go wrong: on time, told once, and nothing left behind."""

import asyncio
import json
import socket
import time

import pytest

from django_moe_personalize import signals
from django_moe_personalize.fetching import flight, upstream
from django_moe_personalize.moengage import client
from django_moe_personalize.resilience import PoolBusy
from django_moe_personalize.testing import override_personalize
from tests.conftest import settle
from tests.fetching.asking import Asked
from tests.fetching.warm_vendor import build_visitor
from tests.loopback import Exchange, build_head
from tests.wire import LONG, break_off, wait_until

KEYS = ("hero-banner",)
VISITOR = build_visitor()
SOON = 0.2
MARGIN = 0.75


def aresult(question, seconds=LONG):
    """Read a question in an event loop of its own."""

    async def read():
        return await question.ajoin(seconds)

    return asyncio.run(read())


def result(question, seconds=LONG):
    """Read a question in a thread."""
    return question.join(seconds)


both_ways = pytest.mark.parametrize("read", [result, aresult], ids=["thread", "task"])


# -- on time


def test_answer_that_came_in_time_is_shown_however_late_it_is_read(vendor, heard):
    """The deadline is the vendor's, not the view's."""
    with override_personalize(DEADLINE=SOON):
        vendor.warm()
        question = Asked(VISITOR, KEYS)
        vendor.wait_for_answers(1)
        time.sleep(SOON)
        assert question.join(SOON).keys() == {"hero-banner"}


def test_vendor_that_hangs_costs_the_deadline_once(vendor, heard, submitted):
    """At the deadline the default shows, and the breaker learns of one failure."""
    with override_personalize(DEADLINE=SOON), vendor.hold():
        vendor.warm()
        start = time.monotonic()
        questions = [Asked(VISITOR, KEYS) for _ in range(2)]
        assert [question.join(SOON) for question in questions] == [{}, {}]
        assert SOON <= time.monotonic() - start < SOON + MARGIN
        settle()
        assert heard == ["failure"]
        assert not vendor.is_kept()


@both_ways
def test_what_a_slow_view_does_not_wait_for(vendor, heard, read):
    """A vendor that has not answered by the deadline is given up the moment a late page reads."""
    with override_personalize(DEADLINE=SOON), vendor.hold():
        vendor.warm()
        question = Asked(VISITOR, KEYS)
        time.sleep(SOON)
        start = time.monotonic()
        question.release()
        assert read(question) == {}
        assert time.monotonic() - start < MARGIN
    assert heard == ["failure"]


@pytest.mark.parametrize("who", ["thread", "task", "nobody"])
def test_long_answer_that_nobody_reads_in_time(vendor, heard, who, monkeypatch):
    """A system takes in only the beginning of it by itself; the rest comes when a late page reads, or has left."""
    # The vendor is a thread of this process, and may be slow.
    monkeypatch.setattr(flight, "EXTRA_SECONDS", LONG)
    variable = {"value": "x" * 900_000, "data_type": "string"}
    entry = {"payload": {"Title": variable}, "experience_context": {}}
    body = json.dumps({"experiences": {"hero-banner": entry}}).encode()

    def behave(exchange):
        exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        exchange.reply(body)

    vendor.behave = behave
    with override_personalize(DEADLINE=SOON):
        vendor.warm()
        question = Asked(VISITOR, KEYS)
        time.sleep(SOON * 1.5)
        if who == "nobody":
            question.release()
            settle()
            assert question.done
        answer = aresult(question, SOON) if who == "task" else question.join(SOON)
    assert answer.keys() == {"hero-banner"}
    assert heard == ["success"]
    assert vendor.is_kept()


def test_long_answer_that_stops_in_the_middle(vendor, heard):
    """The rest is waited for a moment, not for ever, and then the vendor has failed."""
    vendor.behave = lambda exchange: (exchange.send(build_head("200 OK", {"Content-Length": "9"})), exchange.hang())
    with override_personalize(DEADLINE=SOON):
        vendor.warm()
        question = Asked(VISITOR, KEYS)
        time.sleep(SOON * 1.5)
        start = time.monotonic()
        assert question.join(LONG) == {}
        assert time.monotonic() - start < MARGIN
    settle()
    assert heard == ["failure"]
    assert not vendor.is_kept()


# -- failures


@both_ways
def test_connection_that_died_idle(vendor, heard, read, submitted):
    """Asked again in one step, and shown; the breaker learns of the answer alone."""
    vendor.behave = lambda exchange: exchange.close() if exchange.turn > 1 else vendor.reply(exchange)
    question = Asked(VISITOR, KEYS)
    wait_until(lambda: len(vendor.fetches) == 1)
    assert read(question).keys() == {"hero-banner"}
    assert (len(vendor.fetches), vendor.server.connections) == (2, 2)
    assert (heard, submitted) == (["success"], ["_run"])


def test_connection_that_died_idle_and_the_pool_is_busy(vendor, heard, monkeypatch):
    """Without a thread nobody asks again, and the default shows at once."""
    monkeypatch.setattr(upstream.get_pool(), "submit", busy)
    vendor.behave = Exchange.close
    assert Asked(VISITOR, KEYS).join(LONG) == {}
    assert (len(vendor.fetches), heard) == (1, [])


@pytest.mark.parametrize("is_busy", [False, True], ids=["hangs", "died-idle"])
def test_what_was_known_shows_when_no_answer_comes(vendor, heard, monkeypatch, is_busy):
    """One key's stale experience is better than the default; the other's default shows."""
    with override_personalize(CACHE_TTL=0, DEADLINE=1.0):
        vendor.warm()
        Asked(VISITOR, KEYS).join(LONG)
        settle()
        if is_busy:
            monkeypatch.setattr(upstream.get_pool(), "submit", busy)
        vendor.behave = Exchange.close if is_busy else Exchange.hang
        assert Asked(VISITOR, (*KEYS, "promo-strip")).join(LONG).keys() == {"hero-banner"}
    assert heard == (["success"] if is_busy else ["success", "failure"])


def test_connection_that_died_idle_is_found_out_too_late(vendor, heard, submitted):
    """Past the deadline nobody waits for a second try, and nothing was learned of the vendor."""
    vendor.behave = Exchange.close
    with override_personalize(DEADLINE=SOON):
        vendor.warm()
        question = Asked(VISITOR, KEYS)
        time.sleep(SOON)
        assert question.join(LONG) == {}
    assert (len(vendor.fetches), heard, submitted) == (1, [], [])


def busy(*args):
    """Refuse as a pool does whose threads are all busy."""
    raise PoolBusy("busy")


def test_pool_is_busy_and_another_was_faster(vendor, monkeypatch):
    """What was read meanwhile is not given up."""
    with vendor.hold():
        leaving, reading = Asked(VISITOR, KEYS), Asked(VISITOR, KEYS)

    def submit(*args):
        assert reading.join(LONG)
        raise PoolBusy("busy")

    monkeypatch.setattr(upstream.get_pool(), "submit", submit)
    leaving.release()
    assert leaving.join(0.0).keys() == {"hero-banner"}
    assert vendor.is_kept()


@both_ways
@pytest.mark.parametrize("is_busy", [False, True], ids=["thread-tells", "page-tells"])
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
def test_bad_answer_is_told_once(vendor, heard, monkeypatch, behave, told, kind, is_busy, read):
    """The default shows; breaker, signal and log learn of it once, however many pages share it."""
    errors = []

    def listen(sender, error, experience_keys, **kwargs):
        errors.append((type(error).__name__.startswith(kind), experience_keys))

    vendor.behave = behave
    if is_busy:
        monkeypatch.setattr(upstream.get_pool(), "submit", busy)
    signals.fetch_failed.connect(listen)
    try:
        questions = [Asked(VISITOR, KEYS) for _ in range(3)]
        assert [read(question) for question in questions] == [{}] * 3
        settle()
    finally:
        signals.fetch_failed.disconnect(listen)
    assert heard == [told]
    assert errors == [(True, KEYS)]
    assert len(vendor.fetches) == 1


@both_ways
@pytest.mark.parametrize("place", ["read_fetch", "receive"])
def test_bug_in_reading(vendor, heard, monkeypatch, caplog, read, place):
    """Whatever nobody foresaw ends with the default, for all who wait, and the connection is not left open."""

    def fail(*args):
        raise KeyError("ada@example.com")

    if place == "receive":
        monkeypatch.setattr(client.PersonalizeClient, "finish_fetch", fail)
    else:
        monkeypatch.setattr(client, "read_fetch", fail)
    questions = [Asked(VISITOR, KEYS) for _ in range(2)]
    assert [read(question) for question in questions] == [{}, {}]
    assert "failed unexpectedly (KeyError)" in caplog.text
    assert "ada@example.com" not in caplog.text
    assert heard == ["failure"]
    assert vendor.is_kept() == (place == "read_fetch")

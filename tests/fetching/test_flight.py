"""Flights over a real connection: the thread that sends the request, and the thread that reads the response."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from asgiref.sync import async_to_sync

from benchmarks import hostile
from django_moe_personalize import client, runtime
from django_moe_personalize.fetching import flight, upstream
from django_moe_personalize.fetching.flights import get_flights
from django_moe_personalize.fetching.metadata import get_metadata_store
from django_moe_personalize.moengage.client import PersonalizeClient
from django_moe_personalize.runtime import reset_runtimes
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.visitor import Visitor
from tests.conftest import settle
from tests.fetching.asking import Asked
from tests.fetching.warm_vendor import KEYS, SOON, VISITOR, build_visitor
from tests.wire import LONG, wait_until


@pytest.fixture
def threads():
    """Give threads that the test can wait in."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def held(vendor):
    """Give a vendor that answers no fetch until ``go_on`` is set."""
    with vendor.hold():
        yield vendor


def start_reading(threads, asked, seconds=LONG):
    """Join in another thread, and return the future once the other thread reads."""
    future = threads.submit(asked.join, seconds)
    wait_until(asked.flight._turn.locked)
    return future


# Sending


def test_page_sends_at_once_and_reads_itself(vendor, submitted, heard):
    """The request is on the wire before the page waits. No other thread takes part, and the connection stays."""
    for number in range(3):
        asked = Asked(build_visitor(number), KEYS)
        vendor.wait_for_answers(number + 1)
        assert not asked.done
        assert asked.join(LONG).keys() == {"hero-banner"}
        assert asked.done
    assert (submitted, heard) == ([], ["success"] * 3)
    assert vendor.server.connections == 1


def test_answer_is_remembered(vendor, submitted):
    """The next page with this question finds the answer in memory."""
    Asked(VISITOR, KEYS).join(LONG)
    asked = Asked(VISITOR, KEYS)
    assert asked.done
    assert asked.join(0.0).keys() == {"hero-banner"}
    assert (len(vendor.fetches), submitted) == (1, [])


def test_keys_without_an_experience_are_not_sent(vendor, submitted):
    """Once the metadata is known, a page doesn't ask for keys that no visitor can get."""
    assert Asked(VISITOR, ["no-such-key"]).join(LONG) == {}
    settle()
    assert get_metadata_store().find_unavailable(["no-such-key"])
    asked = Asked(build_visitor(2), ["no-such-key"])
    assert asked.done
    assert asked.join(0.0) == {}
    assert Asked(build_visitor(3), ["no-such-key", *KEYS]).join(LONG).keys() == {"hero-banner"}
    assert [body["experience_key"] for body in vendor.fetches] == [["no-such-key"], ["hero-banner"]]
    assert submitted == []


def test_flight_that_lands_while_a_page_looks(vendor, monkeypatch, submitted):
    """A page that looked into memory a moment too early looks again before it asks."""
    flights = get_flights()
    join = flights.join

    def join_late(question, known):
        monkeypatch.setattr(flights, "join", join)
        Asked(VISITOR, KEYS).join(LONG)
        return join(question, known)

    monkeypatch.setattr(flights, "join", join_late)
    asked = Asked(VISITOR, KEYS)
    assert asked.done
    assert asked.join(0.0).keys() == {"hero-banner"}
    assert len(vendor.fetches) == 1


@pytest.mark.parametrize("why", ["cold", "many-keys", "shared-cache", "no-cache", "bug", "dead"])
def test_threads_do_what_could_block(vendor, submitted, monkeypatch, settings, why):
    """A thread makes new connections, several calls, and round trips to a cache. Bugs show up in the thread too."""
    keys = KEYS
    if why == "cold":
        vendor.transport.close()
    elif why == "many-keys":
        keys = (*KEYS, *(f"key-{number}" for number in range(25)))
    elif why == "shared-cache":
        settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    elif why == "no-cache":
        settings.CACHES = {"default": {"BACKEND": "no.such.Cache"}}
        vendor.transport.close()
    elif why == "bug":
        monkeypatch.setattr(PersonalizeClient, "start_fetch", {}.__getitem__)
    else:
        monkeypatch.setattr(PersonalizeClient, "start_fetch", lambda self, *args, **kwargs: None)
    assert Asked(VISITOR, keys).join(LONG).keys() == {"hero-banner"}
    assert submitted[0] == "_run"


def test_bug_before_the_flight(vendor, monkeypatch, caplog):
    """If not even the visitor's digest can be built, the page shows its default and the log says so."""
    monkeypatch.setattr(Visitor, "digest", property(lambda visitor: 1 / 0))
    assert Asked(VISITOR, KEYS).join(LONG) == {}
    assert "failed unexpectedly (ZeroDivisionError)" in caplog.text


def test_client_is_built_by_a_thread(vendor, monkeypatch, submitted):
    """A thread loads the CA bundle, because that would block a page or an event loop."""
    builders = []
    real = client.build_client
    monkeypatch.setattr(client.get_client, "_build", lambda of: builders.append(threading.current_thread()) or real(of))
    workspace = vendor.engine.workspace
    credentials = {"WORKSPACE_ID": workspace.workspace_id, "API_KEY": workspace.api_key}
    with override_personalize(BASE_URL=vendor.server.url, **credentials), monkeypatch.context() as alone:
        alone.setattr(runtime, "_overrides", [])
        reset_runtimes()
        for number in range(2):
            assert Asked(build_visitor(number), KEYS).join(LONG).keys() == {"hero-banner"}
        settle()
    assert ["fetch" in thread.name for thread in builders] == [True]
    assert submitted == ["_run"]


@pytest.mark.parametrize("read", [Asked.join, async_to_sync(Asked.ajoin)], ids=["thread", "task"])
@pytest.mark.parametrize("is_full", [False, True], ids=["free", "busy"])
def test_thread_reads_a_large_response(vendor, submitted, heard, caplog, fill_pool, read, is_full):
    """A page never builds many values. An experience that is too large is absent, and the log says so once."""
    vendor.behave = lambda exchange: exchange.reply(hostile.build("just small enough", "hero-banner"))
    for number in range(2):
        asked = Asked(build_visitor(number), (*KEYS, "other"))
        if is_full:
            fill_pool()
        assert read(asked, LONG).keys() == (set() if is_full else {*KEYS})
        settle()
    assert submitted == ([] if is_full else ["_open"] * 2)
    assert heard == ([] if is_full else ["success"] * 2)
    assert vendor.has_idle_connection()
    line = "find no free thread" if is_full else "'other' can't be read: the response has more than 3000 values. Pages"
    assert caplog.text.count(line) == 1


def test_large_response_that_is_too_late_waits_for_the_pages(vendor, monkeypatch):
    """If the deadline is near, the thread builds the values after the pages have left, and the next page finds them."""
    vendor.behave = lambda exchange: exchange.reply(hostile.build("just small enough", "hero-banner"))
    pauses = []
    monkeypatch.setattr(flight, "HEAVY_SECONDS", LONG)
    monkeypatch.setattr(flight, "time", SimpleNamespace(sleep=pauses.append))
    Asked(VISITOR, KEYS).join(LONG)
    settle()
    assert pauses == [LONG]
    assert "hero-banner" in Asked(VISITOR, KEYS).found


def test_open_breaker_sends_nothing(vendor):
    """While the breaker is open, pages show their defaults, and the connection stays."""
    for _ in range(5):
        upstream.get_breaker().failure()
    assert Asked(VISITOR, KEYS).join(LONG) == {}
    settle()
    assert vendor.fetches == []
    assert vendor.has_idle_connection()


# Reading


def test_threads_share_one_call(held, threads, submitted):
    """Eight threads wait for one response. One of them reads it."""
    answers = [threads.submit(Asked(VISITOR, KEYS).join, LONG) for _ in range(8)]
    wait_until(lambda: len(held.fetches) == 1)
    held.go_on.set()
    assert [answer.result().keys() for answer in answers] == [{"hero-banner"}] * 8
    assert (len(held.fetches), submitted) == (1, [])


@pytest.mark.parametrize("way", ["thread", "task"])
def test_page_that_joins_before_the_request_is_sent(vendor, threads, monkeypatch, submitted, way):
    """A follower waits without reading, so a thread reads. The leader may not need the response for a long time."""
    start_call = upstream.start_call
    waiting = threading.Event()
    answers = []

    def start_late(question, keys):
        follower = Asked(VISITOR, KEYS)
        answers.append(threads.submit(take, follower))
        wait_until(waiting.is_set)
        return start_call(question, keys)

    def take(follower):
        waiting.set()
        return follower.join(LONG) if way == "thread" else asyncio.run(follower.ajoin(LONG))

    monkeypatch.setattr(upstream, "start_call", start_late)
    leader = Asked(VISITOR, KEYS)
    assert answers[0].result().keys() == {"hero-banner"}
    assert leader.done
    assert (len(vendor.fetches), submitted) == (1, ["_read_on"])


def test_thread_waits_for_its_turn(held, threads, submitted):
    """A page that only polls holds the turn for a moment. A thread that waits reads afterwards."""
    asked = Asked(VISITOR, KEYS)
    with asked.flight._turn:
        waiting = threads.submit(asked.join, LONG)
        held.go_on.set()
        held.wait_for_answers(1)
    assert waiting.result().keys() == {"hero-banner"}
    assert submitted == []


def test_task_does_not_wait_for_its_turn(held, submitted):
    """A task that finds the turn taken by a page that polls gets the answer from a thread."""

    async def read():
        leader, follower = Asked(VISITOR, KEYS), Asked(VISITOR, KEYS)
        with leader.flight._turn:
            task = asyncio.create_task(follower.ajoin(LONG))
            await asyncio.sleep(0)
        assert not leader.poll()
        held.go_on.set()
        return await task

    assert asyncio.run(read()).keys() == {"hero-banner"}
    assert submitted == ["_read_on"]


@pytest.mark.parametrize("first", ["thread", "task"])
def test_thread_and_tasks_share_one_call(held, submitted, first):
    """Pages over WSGI and ASGI share a call, whichever reads first."""

    async def read():
        asked = [Asked(VISITOR, KEYS) for _ in range(4)]
        turn = asked[0].flight._turn
        thread = None
        if first == "thread":
            thread = asyncio.create_task(asyncio.to_thread(asked[0].join, LONG))
            await asyncio.to_thread(wait_until, turn.locked)
        tasks = [asyncio.create_task(one.ajoin(LONG)) for one in asked[1:]]
        await asyncio.sleep(0)
        assert turn.locked()
        held.go_on.set()
        return await asyncio.gather(thread or asyncio.to_thread(asked[0].join, LONG), *tasks)

    assert [answer.keys() for answer in asyncio.run(read())] == [{"hero-banner"}] * 4
    assert (len(held.fetches), submitted) == (1, [])


def test_page_without_time_leaves_the_response_to_the_next(held, threads, submitted):
    """A page whose time is over doesn't take the answer from the others."""
    hurried, patient, late = (Asked(VISITOR, KEYS) for _ in range(3))
    first = start_reading(threads, hurried, SOON)
    second = threads.submit(patient.join, LONG)
    assert first.result() == {}
    assert not second.done()
    held.go_on.set()
    assert second.result().keys() == {"hero-banner"}
    assert late.join(LONG).keys() == {"hero-banner"}
    assert (len(held.fetches), submitted) == (1, ["_read_on"])


def test_task_without_time_leaves_the_response_to_a_thread(held, submitted):
    """When a page stops reading, a thread reads the response for later pages."""
    asked = [Asked(VISITOR, KEYS) for _ in range(3)]
    for one in asked[:2]:
        assert asyncio.run(one.ajoin(0.01)) == {}
    held.go_on.set()
    assert asked[2].join(LONG).keys() == {"hero-banner"}
    assert (len(held.fetches), submitted) == (1, ["_read_on"])


@pytest.mark.parametrize("way", ["thread", "task"])
def test_page_without_time_takes_an_answer_that_is_there(vendor, way):
    """A page that spent its deadline on other keys still shows a response that has arrived."""
    asked = Asked(VISITOR, KEYS)
    vendor.wait_for_answers(1)
    answer = asked.join(0.0) if way == "thread" else asyncio.run(asked.ajoin(0.0))
    assert answer.keys() == {"hero-banner"}


def test_released_response_is_read_by_one_thread(vendor, heard, submitted):
    """If no page reads a response, a thread does: the connection is used again, and the answer is remembered."""
    with vendor.hold():
        asked = Asked(VISITOR, KEYS)
        for _ in range(3):
            asked.release()
    settle()
    asked.release()
    assert vendor.has_idle_connection()
    assert Asked(VISITOR, KEYS).done
    assert (heard, submitted) == (["success"], ["_read_on"])


@pytest.mark.parametrize("is_full", [False, True], ids=["thread-waits", "full-pool"])
@pytest.mark.parametrize("seconds", [SOON, LONG], ids=["reader-stops", "reader-finishes"])
def test_another_page_leaves_while_a_page_reads(held, threads, heard, submitted, monkeypatch, seconds, is_full):
    """A thread takes over when the page stops reading, even if no thread was free before."""
    reading, leaving, later = (Asked(VISITOR, KEYS) for _ in range(3))
    answer = start_reading(threads, reading, seconds)
    with monkeypatch.context() as patch:
        if is_full:
            patch.setattr(upstream.get_pool(), "offer", lambda *args: False)
        leaving.release()
    if seconds == SOON:
        assert answer.result() == {}
    held.go_on.set()
    if seconds == LONG:
        assert answer.result().keys() == {"hero-banner"}
    assert later.join(LONG).keys() == {"hero-banner"}
    settle()
    assert (heard, submitted) == (["success"], [] if is_full and seconds == LONG else ["_read_on"])


@pytest.mark.parametrize("way", ["released", "thread", "task"])
def test_full_pool_ends_a_flight_that_no_page_reads(held, heard, fill_pool, way):
    """Without a free thread, the flight ends without an answer. The breaker isn't told; the connection is closed."""
    fill_pool()
    asked, other = Asked(VISITOR, KEYS), Asked(VISITOR, KEYS)
    if way == "released":
        asked.release()
    else:
        assert (asked.join(0.01) if way == "thread" else asyncio.run(asked.ajoin(0.01))) == {}
    assert other.done
    assert other.join(0.0) == {}
    assert heard == []
    assert not held.has_idle_connection()

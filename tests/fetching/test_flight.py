"""Questions in two steps: sent at once on a kept connection, and read by whoever wants the answer first."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from django_moe_personalize import client
from django_moe_personalize.fetching import flight, upstream
from django_moe_personalize.fetching.flight import get_flights
from django_moe_personalize.fetching.metadata import get_metadata_store
from django_moe_personalize.moengage.client import PersonalizeClient
from django_moe_personalize.resilience import PoolBusy
from django_moe_personalize.testing import override_personalize
from tests.conftest import settle
from tests.fetching.asking import Asked
from tests.fetching.warm_vendor import build_visitor
from tests.wire import LONG, wait_until

KEYS = ("hero-banner",)
VISITOR = build_visitor()
SOON = 0.2
MARGIN = 0.75


def busy(*args):
    """Refuse as a pool does whose threads are all busy."""
    raise PoolBusy("busy")


# -- who sends


def test_question_is_sent_at_once_and_read_by_who_asks(vendor, submitted, heard):
    """It is on the wire before anyone waits, no thread has to do with it, and the connection is used again."""
    for number in range(3):
        question = Asked(build_visitor(number), KEYS)
        vendor.wait_for_answers(number + 1)
        assert not question.done
        assert question.join(LONG).keys() == {"hero-banner"}
        assert question.done
    assert submitted == []
    assert heard == ["success"] * 3
    assert vendor.server.connections == 1


def test_answer_is_remembered(vendor, submitted):
    """Who asks the same afterwards finds it in memory."""
    Asked(VISITOR, KEYS).join(LONG)
    question = Asked(VISITOR, KEYS)
    assert question.done
    assert question.join(0.0).keys() == {"hero-banner"}
    assert (len(vendor.fetches), submitted) == (1, [])


def test_keys_that_nobody_can_get_are_not_sent(vendor, submitted):
    """Once the workspace's experiences are known, a question about others alone is answered at once."""
    assert Asked(VISITOR, ["no-such-key"]).join(LONG) == {}
    settle()
    assert get_metadata_store().find_unavailable(["no-such-key"])
    question = Asked(build_visitor(2), ["no-such-key"])
    assert question.done
    assert question.join(0.0) == {}
    assert Asked(build_visitor(3), ["no-such-key", *KEYS]).join(LONG).keys() == {"hero-banner"}
    assert [body["experience_key"] for body in vendor.fetches] == [["no-such-key"], ["hero-banner"]]
    assert submitted == []


def test_flight_that_was_just_missed(vendor, monkeypatch, submitted):
    """Whoever looks into memory a moment too early looks again before it asks."""
    flights = get_flights()
    join = flights.join

    def join_late(question, known):
        monkeypatch.setattr(flights, "join", join)
        Asked(VISITOR, KEYS).join(LONG)
        return join(question, known)

    monkeypatch.setattr(flights, "join", join_late)
    question = Asked(VISITOR, KEYS)
    assert question.done
    assert question.join(0.0).keys() == {"hero-banner"}
    assert len(vendor.fetches) == 1


@pytest.mark.parametrize("why", ["cold", "many-keys", "shared-cache", "broken-reserve", "dead"])
def test_what_may_block_is_a_threads(vendor, submitted, monkeypatch, settings, why):
    """A new connection, several calls, the site's cache, or what nobody foresaw: one step on the pool."""
    keys = KEYS
    if why == "cold":
        vendor.transport.close()
    elif why == "many-keys":
        keys = (*KEYS, *(f"key-{number}" for number in range(25)))
    elif why == "shared-cache":
        settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    elif why == "broken-reserve":
        monkeypatch.setattr(PersonalizeClient, "start_fetch", {}.__getitem__)
    else:
        monkeypatch.setattr(PersonalizeClient, "start_fetch", lambda self, *args, **kwargs: None)
    assert Asked(VISITOR, keys).join(LONG).keys() == {"hero-banner"}
    assert submitted[0] == "_run"


def test_client_is_made_by_a_thread(vendor, monkeypatch, submitted):
    """To load the CA bundle takes a page's whole processor for a while, and an event loop's."""
    makers = []
    real = client.build_client
    monkeypatch.setattr(client, "build_client", lambda of: makers.append(threading.current_thread()) or real(of))
    workspace = vendor.engine.workspace
    credentials = {"WORKSPACE_ID": workspace.workspace_id, "API_KEY": workspace.api_key}
    with override_personalize(BASE_URL=vendor.server.url, **credentials), monkeypatch.context() as alone:
        alone.setattr(client.get_client, "_overrides", [])
        for number in range(2):
            assert Asked(build_visitor(number), KEYS).join(LONG).keys() == {"hero-banner"}
        settle()
    assert ["fetch" in thread.name for thread in makers] == [True]
    assert submitted == ["_run"]


def test_open_breaker_sends_nothing(vendor):
    """While it is open the default shows, and the connection is kept."""
    for _ in range(5):
        upstream.get_breaker().failure()
    assert Asked(VISITOR, KEYS).join(LONG) == {}
    settle()
    assert vendor.fetches == []
    assert vendor.is_kept()


# -- who reads


def test_those_who_ask_the_same_share_one_exchange(vendor, submitted):
    """Eight threads wait for one answer, whoever reads it."""
    with vendor.hold():
        questions = [Asked(VISITOR, KEYS) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(question.join, LONG) for question in questions]
            time.sleep(SOON / 4)
            vendor._go_on.set()
            assert [answer.result().keys() for answer in answers] == [{"hero-banner"}] * 8
    assert (len(vendor.fetches), submitted) == (1, [])


@pytest.mark.parametrize("who", ["thread", "task"])
def test_who_comes_while_it_is_sent(vendor, monkeypatch, submitted, who):
    """Found without a reader, the answer is read by a thread: who asked first may be long in wanting it."""
    start_call = upstream.start_call
    followers = []

    def start_late(question, keys):
        call = start_call(question, keys)
        followers.append(Asked(VISITOR, KEYS))
        pool.submit(take, followers[0])
        wait_until(waiting.is_set)
        return call

    def take(follower):
        waiting.set()
        read = follower.join if who == "thread" else lambda seconds: asyncio.run(follower.ajoin(seconds))
        answers.append(read(LONG))

    monkeypatch.setattr(flight, "start_call", start_late)
    waiting, answers = threading.Event(), []
    with ThreadPoolExecutor(1) as pool:
        leader = Asked(VISITOR, KEYS)
        wait_until(lambda: answers)
    assert leader.done
    assert answers[0].keys() == {"hero-banner"}
    assert (len(vendor.fetches), submitted) == (1, ["_read_on"])


def test_who_finds_another_at_it_for_a_moment_reads_afterwards(vendor, submitted):
    """A page that only looks whether the answer is there keeps nobody from waiting for it."""
    with ThreadPoolExecutor(1) as pool:
        with vendor.hold():
            question = Asked(VISITOR, KEYS)
            with question.flight._turn:
                waiting = pool.submit(question.join, LONG)
                time.sleep(SOON / 4)
        assert waiting.result().keys() == {"hero-banner"}
    assert submitted == []


@pytest.mark.parametrize("first", ["thread", "task"])
def test_thread_and_tasks_share_one_exchange(vendor, submitted, first):
    """Over WSGI and ASGI alike, and both at once."""

    async def wait():
        questions = [Asked(VISITOR, KEYS) for _ in range(4)]
        tasks = [asyncio.create_task(question.ajoin(LONG)) for question in questions[1:]]
        if first == "task":
            await asyncio.sleep(SOON / 4)
        thread = asyncio.create_task(asyncio.to_thread(questions[0].join, LONG))
        await asyncio.sleep(SOON / 4)
        vendor._go_on.set()
        return await asyncio.gather(thread, *tasks)

    with vendor.hold():
        answers = asyncio.run(wait())
    assert [answer.keys() for answer in answers] == [{"hero-banner"}] * 4
    assert (len(vendor.fetches), submitted) == (1, [])


def test_who_is_in_a_hurry_leaves_the_answer_to_others(vendor, submitted):
    """One page's time is over before the answer comes; the other's is not."""
    with vendor.hold():
        hurried, patient, late = (Asked(VISITOR, KEYS) for _ in range(3))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(hurried.join, SOON)
            time.sleep(SOON / 4)
            start = time.monotonic()
            with ThreadPoolExecutor(1) as other:
                answer = other.submit(patient.join, LONG)
                assert waiting.result() == {}
                assert time.monotonic() - start < SOON + MARGIN
                vendor._go_on.set()
                assert answer.result().keys() == {"hero-banner"}
    assert late.join(LONG).keys() == {"hero-banner"}
    assert (len(vendor.fetches), submitted) == (1, ["_read_on"])


def test_task_in_a_hurry_leaves_the_answer_to_others(vendor, submitted):
    """A thread reads on for whoever comes later."""

    async def wait(question):
        return await question.ajoin(SOON / 4)

    with vendor.hold():
        questions = [Asked(VISITOR, KEYS) for _ in range(3)]
        for question in questions[:2]:
            assert asyncio.run(wait(question)) == {}
    assert questions[2].join(LONG).keys() == {"hero-banner"}
    assert (len(vendor.fetches), submitted) == (1, ["_read_on"])


def test_nobody_reads_and_nobody_wants_to(vendor, heard, submitted):
    """Released, it is read by a thread: the connection comes back and the answer is remembered."""
    with vendor.hold():
        question = Asked(VISITOR, KEYS)
        for _ in range(3):
            question.release()
    settle()
    question.release()
    assert vendor.is_kept()
    assert Asked(VISITOR, KEYS).done
    assert (heard, submitted) == (["success"], ["_read_on"])


def test_thread_reads_after_who_is_at_it(vendor, submitted):
    """Whoever is released while another reads leaves it to them, and takes over when they give up."""
    with vendor.hold():
        reading, leaving, later = (Asked(VISITOR, KEYS) for _ in range(3))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(reading.join, SOON)
            wait_until(reading.flight._turn.locked)
            leaving.release()
            assert waiting.result() == {}
    assert later.join(LONG).keys() == {"hero-banner"}
    assert submitted == ["_read_on"]


@pytest.mark.parametrize("who", ["released", "hurried", "task"])
def test_nobody_reads_and_the_pool_is_busy(vendor, heard, monkeypatch, who):
    """The question ends without an answer, which says nothing of the vendor; the connection is not used again."""
    monkeypatch.setattr(upstream.get_pool(), "submit", busy)
    with vendor.hold():
        question, other = Asked(VISITOR, KEYS), Asked(VISITOR, KEYS)
        if who == "released":
            question.release()
        elif who == "hurried":
            assert question.join(0.01) == {}
        else:

            async def wait():
                return await question.ajoin(0.01)

            assert asyncio.run(wait()) == {}
        assert other.done
        assert other.join(0.0) == {}
    assert heard == []
    assert not vendor.is_kept()


def test_thread_that_takes_over_too_late(vendor, heard, submitted):
    """When whoever was at it got the answer after all, there is nothing left to do."""
    with vendor.hold():
        reading, leaving = Asked(VISITOR, KEYS), Asked(VISITOR, KEYS)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(reading.join, LONG)
            wait_until(reading.flight._turn.locked)
            leaving.release()
            time.sleep(SOON / 4)
            vendor._go_on.set()
            assert waiting.result().keys() == {"hero-banner"}
    settle()
    assert (heard, submitted) == (["success"], ["_read_on"])


def test_pool_that_was_busy_for_a_moment(vendor, submitted, monkeypatch):
    """Whoever leaves last finds a thread, though one who left before found none."""
    with vendor.hold():
        reading, leaving, later = (Asked(VISITOR, KEYS) for _ in range(3))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(reading.join, SOON)
            wait_until(reading.flight._turn.locked)
            with monkeypatch.context() as patch:
                patch.setattr(upstream.get_pool(), "submit", busy)
                leaving.release()
            assert waiting.result() == {}
    settle()
    assert later.done
    assert later.join(0.0).keys() == {"hero-banner"}
    assert submitted == ["_read_on"]


def test_pool_is_busy_while_another_reads(vendor, monkeypatch):
    """Who reads goes on; leaving takes nothing from them."""
    monkeypatch.setattr(upstream.get_pool(), "submit", busy)
    with vendor.hold():
        reading, leaving = Asked(VISITOR, KEYS), Asked(VISITOR, KEYS)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(reading.join, LONG)
            wait_until(reading.flight._turn.locked)
            leaving.release()
            vendor._go_on.set()
            assert waiting.result().keys() == {"hero-banner"}

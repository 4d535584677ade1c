"""The visitor of request.personalization: gathered once, when the page first needs it."""

import asyncio
import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import AsyncRequestFactory, RequestFactory

from django_moe_personalize.fetching import Flight
from django_moe_personalize.moengage.types import Experience
from django_moe_personalize.receivers import start_new_identity
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.visitor import Identity
from tests.conftest import build_request
from tests.pages import BROWSER
from tests.wire import LONG

KEYS = ("hero-banner", "promo-strip")


def test_visitor_of_the_page(upstream):
    """A page can show the visitor's identity and attributes without a call to MoEngage."""
    request = build_request()
    personalization = request.personalization
    assert personalization.identity.anonymous
    assert personalization.consent.track
    assert personalization.attributes.keys() == {"DAY_OF_THE_WEEK", "TIME_OF_THE_DAY"}
    assert upstream.requests == []


def test_another_moment(upstream):
    """A preview sets ``now``. MoEngage gets the day and hour of this moment, in TIME_ZONE."""
    with override_personalize(TIME_ZONE="Europe/Berlin"):
        request = build_request()
        request.personalization.now = datetime(2026, 12, 31, 23, 30, tzinfo=UTC)
        assert request.personalization.now.hour == 23
        request.personalization.get("hero-banner")
    assert (upstream.fetches[0]["DAY_OF_THE_WEEK"], upstream.fetches[0]["TIME_OF_THE_DAY"]) == ("Friday", "00")


def failing_identify(request):
    return 1 / 0


def test_disabled_gathers_nothing():
    """With ENABLED off the page doesn't even call the site's functions."""
    with override_personalize(ENABLED=False, IDENTIFY="tests.test_context_visitor.failing_identify"):
        request = build_request()
        assert request.personalization.identity.customer_id is None
        assert request.personalization.get("hero-banner") is None
        assert not request.personalization._page.is_read
        assert request.personalization._page.tracker.sign_click(Experience("x", {}, {"cid": "1"}), "/a/") is None


async def slow_attributes(request):
    """Return an attribute after a moment."""
    await asyncio.sleep(0.01)
    return {"cart_value": "5"}


def test_tasks_of_one_page_gather_once(upstream):
    """Tasks that read at the same time share one visitor, and ask for each key once."""

    async def view():
        mapping = request.personalization
        return await asyncio.gather(*(mapping.aget(key) for key in (*KEYS, *KEYS)), mapping.aload(*KEYS))

    with override_personalize(ATTRIBUTES=["tests.test_context_visitor.slow_attributes"]):
        request = build_request(AsyncRequestFactory)
        hero, promo, *_ = async_to_sync(view)()
    assert (hero.experience_key, promo.experience_key) == KEYS
    assert sorted(body["experience_key"] for body in upstream.fetches) == [["hero-banner"], ["promo-strip"]]
    assert all(body["cart_value"] == "5" for body in upstream.fetches)


@pytest.mark.parametrize("is_waiting", [False, True])
def test_reading_after_a_read_that_was_cancelled(upstream, is_waiting):
    """After a cancelled read, the next task or a waiting task gathers the visitor again."""

    async def view():
        first = asyncio.create_task(request.personalization.aget(KEYS[0]))
        await asyncio.sleep(0)
        second = asyncio.create_task(request.personalization.aget(KEYS[1]))
        if is_waiting:
            await asyncio.sleep(0)
        first.cancel()
        return await second

    with override_personalize(ATTRIBUTES=["tests.test_context_visitor.slow_attributes"]):
        request = build_request(AsyncRequestFactory)
        assert async_to_sync(view)().experience_key == KEYS[1]


def test_page_that_is_sealed_while_a_task_gathers(upstream):
    """A task that gathers after the response starts no fetch, because no page would read the answer."""

    async def view():
        task = asyncio.create_task(request.personalization.aprefetch(*KEYS))
        await asyncio.sleep(0)
        request.personalization._page.seal(HttpResponse())
        await task

    with override_personalize(ATTRIBUTES=["tests.test_context_visitor.slow_attributes"]):
        request = build_request(AsyncRequestFactory)
        async_to_sync(view)()
    assert upstream.requests == []


def reading_attributes(request):
    """Read an experience while the page gathers its visitor."""
    return {"has_hero": str(request.personalization.get("hero-banner") is not None)}


async def areading_attributes(request):
    """See reading_attributes()."""
    return {"has_hero": str(await request.personalization.aget("hero-banner") is not None)}


async def reading_attributes_in_tasks(request):
    """Read in another task, and in a thread."""
    read = asyncio.gather(request.personalization.aget("hero-banner"), asyncio.to_thread(reading_attributes, request))
    hero, attributes = await read
    return {"has_hero": str(hero is not None or attributes["has_hero"] == "True")}


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("provider", ["reading_attributes", "areading_attributes", "reading_attributes_in_tasks"])
def test_provider_that_reads_an_experience(upstream, provider, is_async):
    """The provider gets the default, because the visitor isn't known yet. Later reads get the experience."""
    with override_personalize(ATTRIBUTES=[f"tests.test_context_visitor.{provider}"]):
        request = build_request(AsyncRequestFactory if is_async else RequestFactory)
        mapping = request.personalization
        read = async_to_sync(mapping.aget) if is_async else mapping.get
        assert [read(key).experience_key for key in KEYS] == list(KEYS)
    assert all(body["has_hero"] == "False" for body in upstream.fetches)


async def slow_identify(request):
    """Return the id of the moment when the function starts."""
    found, gate = request.known, request.gates.pop()
    gate[0].set()
    await gate[1].wait()
    return Identity(found)


def test_sign_in_while_a_task_finds_the_visitor(upstream):
    """The outdated visitor is never asked for."""
    upstream.echo()

    async def view():
        gates = [(asyncio.Event(), asyncio.Event()) for _ in range(2)]
        request.known, request.gates = "10", list(gates)
        task = asyncio.create_task(request.personalization.aget("hero-banner"))
        await gates[1][0].wait()
        request.known = "20"
        start_new_identity(request=request)
        gates[0][1].set()
        gates[1][1].set()
        return await task

    with override_personalize(IDENTIFY=f"{__name__}.slow_identify"):
        request = build_request(AsyncRequestFactory)
        assert async_to_sync(view)()["Title"] == "20"
    assert upstream.asked == ["20"]


def test_answer_for_the_visitor_before_comes_late(upstream):
    """A task still waits for the answer. The answer is for other pages, and never for this one."""
    upstream.echo()
    echo, go_on, asked, loop = upstream.answer, threading.Event(), asyncio.Event(), None

    def answer(request):
        if json.loads(request.body)["identifiers"] == {"customer_id": "10"}:
            loop.call_soon_threadsafe(asked.set)
            go_on.wait(LONG)
        return echo(request)

    async def view():
        nonlocal loop
        loop = asyncio.get_running_loop()
        mapping, request.user = request.personalization, User(pk=10)
        task = asyncio.create_task(mapping.aload("hero-banner", "promo-strip"))
        await asked.wait()
        request.user = User(pk=20)
        assert (await mapping.aget("hero-banner"))["Title"] == "20"
        go_on.set()
        await task
        return [mapping.get(key)["Title"] for key in KEYS]

    upstream.answer = answer
    request = build_request(AsyncRequestFactory)
    assert async_to_sync(view)() == ["20", "20"]
    calls = [(body["identifiers"]["customer_id"], *sorted(body["experience_key"])) for body in upstream.fetches]
    assert sorted(calls) == [("10", *KEYS), ("20", *KEYS)]


def test_change_has_the_same_deadline(upstream, monkeypatch):
    """The fetch for the right visitor has only the time that is left. Here no time is left."""
    waited, join = [], Flight.join
    monkeypatch.setattr(Flight, "join", lambda flight, seconds: (waited.append(seconds), join(flight, seconds))[1])
    upstream.hold()
    with override_personalize(DEADLINE=0.05):
        request = build_request()
        request.personalization.get("hero-banner")
        request.user = User(pk=20)
        request.personalization.get("hero-banner")
    assert waited == [0.05, pytest.approx(0.0, abs=0.01)]


def test_two_threads_of_a_view_find_the_visitor(upstream, monkeypatch):
    """They find the same visitor, and no thread drops what the other thread has shown."""
    upstream.echo()
    request, both = build_request(), threading.Barrier(2)
    request.META["HTTP_USER_AGENT"] = BROWSER
    meet = SimpleNamespace(UUID=uuid.UUID, uuid4=lambda: both.wait(LONG) * 0 or uuid.uuid4())
    monkeypatch.setattr("django_moe_personalize.visitor.identity.uuid", meet)

    def show_one(key):
        request.personalization.track_impression(key)
        return request.personalization.get(key)["Title"]

    with ThreadPoolExecutor(2) as pool:
        shown = set(pool.map(show_one, KEYS))
    visitor = request.personalization.identity.customer_id
    events = request.personalization._page.seal(HttpResponse())
    assert (shown, {event.customer_id for event in events}, len(events)) == ({visitor}, {visitor}, 2)

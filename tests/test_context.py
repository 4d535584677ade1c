"""request.personalization as a mapping: how it starts fetches, waits for answers, and reads."""

import asyncio
import gc
import time
import weakref

import pytest
from asgiref.sync import async_to_sync
from django.http import HttpResponse
from django.template import Template
from django.test import AsyncRequestFactory, RequestFactory
from hypothesis import given, settings
from hypothesis import strategies as st

from django_moe_personalize.context import Personalization
from django_moe_personalize.moengage.types import Experience
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.testing import override_experiences, override_personalize
from tests.conftest import build_request, settle
from tests.pages import BROWSER
from tests.wire import LONG, wait_until

KEYS = ("hero-banner", "promo-strip")
NAMES = sorted(name for name in dir(Personalization) if not name.startswith("_"))


@pytest.fixture
def personalization(upstream):
    """Give the mapping of a request."""
    request = build_request()
    yield request.personalization  # noqa: PT022 - the fixture keeps the request


# A mapping


@settings(deadline=None)
@given(
    payloads=st.dictionaries(
        st.sampled_from(NAMES) | st.text("abc-", min_size=1, max_size=8),
        st.none() | st.fixed_dictionaries({"Title": st.text(max_size=3)}),
        max_size=12,
    ),
    is_async=st.booleans(),
)
def test_laws_of_mappings(payloads, is_async):
    """All ways of reading agree for every key, also for keys that are names of attributes."""
    present = {key: payload for key, payload in payloads.items() if payload is not None}
    with override_experiences(present):
        request = build_request(AsyncRequestFactory if is_async else RequestFactory)
        mapping = request.personalization

        async def aread():
            return {key: found for key in payloads if (found := await mapping.aget(key)) is not None}

        if is_async:
            read = async_to_sync(aread)()
        else:
            mapping.load(*payloads)
            read = {key: mapping.get(key) for key in payloads if key in mapping}
        assert {key: dict(experience) for key, experience in read.items()} == present
        assert dict(mapping) == dict(mapping.items()) == dict(zip(mapping, mapping.values(), strict=True)) == read
        assert set(mapping) == mapping.keys() == present.keys()
        assert len(mapping) == len(present)
        for key in payloads:
            assert (key in mapping) == (key in present)
            assert mapping.get(key) is read.get(key)
            assert mapping.get(key, "default") is read.get(key, "default")
            if key in present:
                assert mapping[key] is read[key]
            else:
                with pytest.raises(KeyError):
                    mapping[key]
        assert async_to_sync(aread)() == read
        # The threads of this example may not ask the MoEngage of the next one.
        settle()


def test_defaults(personalization):
    """get() and aget() take a default as a dict does. A key of another type is absent, and the mapping is true."""
    assert personalization
    assert personalization.get("nope", "default") == "default"
    assert 7 not in personalization
    assert async_to_sync(personalization.aget)("nope", default="default") == "default"
    assert personalization["hero-banner"]
    assert repr(personalization) == "<Personalization of nope, hero-banner>"


def test_error_reports_fetch_nothing(personalization, upstream):
    """An error reporter that prints the mapping gets experience keys, and starts no fetch."""
    personalization.prefetch()
    assert personalization.__sentry_repr__() == repr(personalization) == "<Personalization of no experiences yet>"
    assert not personalization._page.is_read
    assert upstream.requests == []


# Starting and waiting


def test_each_key_is_asked_for_once(personalization, upstream):
    """Each key is asked for once, whatever the order of the calls. Keys that aren't non-empty strings are ignored."""
    personalization.prefetch("hero-banner")
    personalization.prefetch("hero-banner", "promo-strip", "promo-strip", "", None)
    assert personalization._page.experience_keys == KEYS
    assert [personalization[key].experience_key for key in KEYS] == list(KEYS)
    assert sorted(body["experience_key"] for body in upstream.fetches) == [["hero-banner"], ["promo-strip"]]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("keys", [KEYS, ()], ids=["keys", "no-keys"])
def test_prefetch_returns_at_once_and_load_waits(upstream, is_async, keys):
    """prefetch() starts the call. load() waits for its keys, or without keys for all fetches of the page."""
    request = build_request(AsyncRequestFactory if is_async else RequestFactory)
    mapping = request.personalization

    release = upstream.hold()

    async def arun():
        await mapping.aprefetch(*KEYS)
        assert not any(key in mapping._page._answers for key in KEYS)
        release()
        await mapping.aload(*keys)
        return [mapping[key].experience_key for key in KEYS]

    def run():
        mapping.prefetch(*KEYS)
        wait_until(lambda: upstream.fetches)
        assert mapping._page._answers == {}
        release()
        mapping.load(*keys)
        return [mapping._page._answers[key].experience_key for key in KEYS]

    assert (async_to_sync(arun) if is_async else run)() == list(KEYS)
    assert [body["experience_key"] for body in upstream.fetches] == [list(KEYS)]


def test_async_read_waits_for_its_own_key_alone(upstream):
    """aget() doesn't wait for the page's other call."""
    release = upstream.hold(only=b"promo-strip")

    async def view():
        mapping = request.personalization
        await mapping.aprefetch("promo-strip")
        hero = await mapping.aget("hero-banner")
        assert "promo-strip" not in mapping._page._answers
        release()
        return hero, await mapping.aget("promo-strip")

    with override_personalize(EXPERIENCES={"*": ["promo-strip"]}):
        request = build_request(AsyncRequestFactory)
        hero, promo = async_to_sync(view)()
    assert (hero.experience_key, promo.experience_key) == KEYS


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_all_reads_together_wait_for_one_deadline(upstream, is_async):
    """After the deadline, later reads don't wait. A key that didn't arrive is absent for the whole page."""
    upstream.hold()
    with override_personalize(DEADLINE=0.5):
        request = build_request(AsyncRequestFactory if is_async else RequestFactory)
        mapping = request.personalization
        read = async_to_sync(mapping.aget) if is_async else mapping.get
        started = time.monotonic()
        assert [read(f"key-{number}") for number in range(100)] == [None] * 100
        # 100 deadlines would be 50 seconds. A busy machine needs some seconds.
        assert time.monotonic() - started < 2 * LONG
        assert mapping._page._get_budget() == 0.0


def test_tasks_that_wait_at_the_same_time(upstream):
    """If several tasks wait at the same time, the page's deadline is charged once."""

    def answer(sent):
        time.sleep(0.5)
        return upstream._sandbox.send(sent, deadline=Deadline(None))

    upstream.answer = answer

    async def view():
        return await asyncio.gather(*(request.personalization.aget(key) for key in (*KEYS, "a", "b")))

    with override_personalize(DEADLINE=LONG):
        request = build_request(AsyncRequestFactory)
        started = time.monotonic()
        hero, promo, *_ = async_to_sync(view)()
        passed = time.monotonic() - started
    assert (hero.experience_key, promo.experience_key) == KEYS
    # Four tasks that are each charged would be charged more than the time that passed.
    assert 0.4 < LONG - request.personalization._page._get_budget() <= passed


def test_sync_use_in_the_event_loop(upstream, caplog):
    """Sync calls never block the event loop. The log names the calls to await."""
    request = build_request(AsyncRequestFactory)
    mapping = request.personalization

    async def view():
        mapping.prefetch("hero-banner")
        mapping.load("hero-banner")
        assert mapping.identity.customer_id is None
        assert mapping.get("hero-banner") is None
        await mapping.aload("promo-strip")
        assert mapping.identity.customer_id
        assert mapping["promo-strip"]

    async_to_sync(view)()
    assert "Await request.personalization.aload() or aget() first" in caplog.text
    assert [body["experience_key"] for body in upstream.fetches] == [["promo-strip"]]


# After the end


def test_tracking_an_absent_experience(personalization):
    """Tracking an absent experience reports no event."""
    personalization.track_impression("nope")
    personalization.track_click("nope")
    assert personalization._page.seal(HttpResponse()) == ()


def test_tracker_before_the_visitor_is_known(upstream):
    """A tracker that is used too early counts nothing. Later the page counts as usual."""
    request = build_request(AsyncRequestFactory)
    request.META["HTTP_USER_AGENT"] = BROWSER

    async def view():
        page = request.personalization._page
        page.tracker.show(Experience("early", {}, {"cid": "1"}))
        await request.personalization.aload("hero-banner")
        request.personalization.track_impression("hero-banner")
        return page.seal(HttpResponse())

    events = async_to_sync(view)()
    assert [event.attributes["experience"] for event in events] == ["Hero banner"]


def test_reading_after_the_response(personalization, upstream):
    """After a public response, the page returns no experience and starts no fetch."""
    personalization._page.seal(HttpResponse())
    assert personalization.get("hero-banner") is None
    personalization.prefetch("hero-banner")
    assert upstream.requests == []


def test_mapping_that_outlives_its_request(upstream):
    """A mapping without its request returns no experience and starts no fetch."""
    personalization = build_request().personalization
    page = personalization._page
    personalization.prefetch(*KEYS)
    assert page.experience_keys == ()
    assert page.find("hero-banner", Template("")) is None
    assert personalization.get("hero-banner") is None
    assert list(personalization) == []
    assert personalization.attributes == {}
    assert page.seal(HttpResponse()) == ()
    async_to_sync(personalization.aprefetch)("hero-banner")
    assert async_to_sync(personalization.aget)("hero-banner") is None
    async_to_sync(page._agather)()
    assert page.visitor.attributes == {}
    assert upstream.requests == []


def test_request_is_freed_at_once(upstream):
    """A request and its experiences are freed without the garbage collector."""
    request = build_request()
    assert request.personalization.get("hero-banner")
    gone = weakref.ref(request)
    gc.disable()
    try:
        del request
        assert gone() is None
    finally:
        gc.enable()

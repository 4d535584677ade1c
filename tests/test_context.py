"""request.personalization on its own: what it does when used too early, too late, or where nobody may wait."""

import asyncio
import gc
import logging
import time
import weakref

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import AnonymousUser
from django.http import HttpResponse
from django.template import Template
from django.test import AsyncRequestFactory, RequestFactory

from django_moe_personalize.context import Personalization
from django_moe_personalize.middleware import PersonalizeMiddleware
from django_moe_personalize.moengage.types import Experience
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.testing import override_personalize
from tests.conftest import settle

KEYS = ("hero-banner", "promo-strip")


def build_request():
    """Return a request as the middleware leaves it."""
    request = RequestFactory().get("/")
    request.user = AnonymousUser()
    request.personalization = Personalization(request)
    return request


@pytest.fixture
def request_():
    """Give a request as the middleware leaves it."""
    return build_request()


def test_outliving_the_request():
    """A view may keep the mapping; after its request is gone it reads nothing and asks nobody."""
    personalization = build_request().personalization
    page = personalization._page
    personalization.prefetch(*KEYS)
    assert not page.is_asked("hero-banner")
    assert page.find("hero-banner", Template("")) is None
    assert personalization.get("hero-banner") is None
    assert list(personalization) == []
    assert personalization.attributes == {}
    assert async_to_sync(personalization.aget)("hero-banner") is None
    async_to_sync(personalization.aprefetch)("hero-banner")
    assert async_to_sync(page._aget_visitor)().attributes == {}


def test_requests_are_freed_at_once():
    """A request and its experiences are no garbage cycle: they go when the last reference goes."""
    request = build_request()
    assert request.personalization.get("hero-banner")
    gone = weakref.ref(request)
    gc.disable()
    try:
        del request
        assert gone() is None
    finally:
        gc.enable()


def test_error_reporters_ask_nothing(request_, upstream):
    """Who looks through the mappings in a failing page's frames is given names, and asks nobody for them."""
    personalization = request_.personalization
    personalization.prefetch()
    assert personalization.__sentry_repr__() == repr(personalization)
    assert not personalization._page.is_read
    assert upstream.fetches == []


def test_prefetch_asks_once(request_, upstream):
    """Keys that were asked for are not asked for again, however often and in whatever order."""
    personalization = request_.personalization
    personalization.prefetch("hero-banner")
    personalization.prefetch("hero-banner", "promo-strip", "promo-strip", "", None)
    assert personalization._page.experience_keys == KEYS
    assert personalization["hero-banner"].experience_key == "hero-banner"
    assert personalization["promo-strip"].experience_key == "promo-strip"
    assert sorted(body["experience_key"] for body in upstream.fetches) == [["hero-banner"], ["promo-strip"]]


def test_views_default(request_, upstream):
    """get() and aget() take a default as a dict does; the mapping is always true."""
    personalization = request_.personalization
    assert personalization
    assert personalization.get("nope", "default") == "default"
    assert 7 not in personalization
    assert async_to_sync(personalization.aget)("nope", default="default") == "default"


def test_what_was_sent(request_, upstream):
    """A page can show who asked with what, for a panel like the demo's."""
    personalization = request_.personalization
    assert personalization.identity.anonymous
    assert personalization.consent.track
    assert personalization.attributes.keys() == {"DAY_OF_THE_WEEK", "TIME_OF_THE_DAY"}
    assert upstream.requests == []


def test_another_moment(request_, upstream):
    """A preview sets the page's moment; day and hour follow, in TIME_ZONE."""
    from datetime import UTC, datetime

    with override_personalize(TIME_ZONE="Europe/Berlin"):
        request = build_request()
        request.personalization.now = datetime(2026, 12, 31, 23, 30, tzinfo=UTC)
        request.personalization.get("hero-banner")
    assert (upstream.fetches[0]["DAY_OF_THE_WEEK"], upstream.fetches[0]["TIME_OF_THE_DAY"]) == ("Friday", "00")


def test_tracking_what_is_absent(request_, upstream):
    """Reporting an experience the visitor does not have does nothing."""
    request_.personalization.track_impression("nope")
    request_.personalization.track_click("nope")
    assert request_.personalization._page.seal(HttpResponse()) == ()


def test_reading_after_the_response(request_, upstream):
    """Once a response went out unsealed nothing may be read for it."""
    request_.personalization._page.seal(HttpResponse())
    assert request_.personalization.get("hero-banner") is None
    request_.personalization.prefetch("hero-banner")
    assert upstream.requests == []


def test_failing_identify_asks_nothing(request_, upstream, caplog):
    """A known customer is never taken for an anonymous visitor: nothing is asked, and the log says why."""
    with override_personalize(IDENTIFY="tests.test_context.failing_identify"):
        request = build_request()
        assert request.personalization.get("hero-banner") is None
        assert request.personalization.get("hero-banner") is None
    assert upstream.requests == []
    assert caplog.text.count("tests.test_context.failing_identify raised ZeroDivisionError") == 1


def failing_identify(request):
    """Fail, as a site's own code may."""
    return 1 / 0


def test_sync_use_in_the_event_loop(upstream, caplog):
    """Whatever would block the event loop is not done, and the log names what to await."""
    request = AsyncRequestFactory().get("/")
    personalization = request.personalization = Personalization(request)

    async def view():
        personalization.prefetch("hero-banner")
        assert personalization.identity.customer_id is None
        assert personalization.get("hero-banner") is None
        await personalization.aload("promo-strip")
        assert personalization.identity.customer_id
        assert personalization["promo-strip"]

    async_to_sync(view)()
    assert "Await request.personalization.aload() or aget() first" in caplog.text
    assert [body["experience_key"] for body in upstream.fetches] == [["promo-strip"]]


def test_async_prefetch_overlaps(upstream):
    """As a task, aload() overlaps with the view's other awaits."""
    request = AsyncRequestFactory().get("/")
    personalization = request.personalization = Personalization(request)
    order = []

    async def view():
        task = asyncio.create_task(personalization.aload(*KEYS))
        await asyncio.sleep(0)
        order.append("view")
        await task
        order.append("joined")
        return personalization.get("hero-banner")

    assert async_to_sync(view)().experience_key == "hero-banner"
    assert order == ["view", "joined"]


def test_async_deadline(upstream):
    """An await ends at the page's deadline, and what did not come is absent for the whole page."""
    import threading

    released = threading.Event()
    upstream.answer = lambda request: released.wait(20)
    with override_personalize(DEADLINE=0.05):
        request = AsyncRequestFactory().get("/")
        personalization = request.personalization = Personalization(request)
        assert async_to_sync(personalization.aget)("hero-banner") is None
        released.set()
        settle()


def test_waiting_is_bounded_for_the_page(request_, upstream):
    """All reads of a page together wait for one deadline, not each for its own."""
    import threading
    import time

    released = threading.Event()
    upstream.answer = lambda request: released.wait(20)
    with override_personalize(DEADLINE=0.2):
        request = build_request()
        started = time.monotonic()
        for number in range(10):
            assert request.personalization.get(f"key-{number}") is None
        waited = time.monotonic() - started
        released.set()
        settle()
    assert waited < 10 * 0.2


def test_middleware_refuses_wrong_settings_at_start_up():
    """A server that runs no system checks does not start with settings that cannot be."""
    from django_moe_personalize.conf import ConfigurationError

    with override_personalize(DEADLINE="soon"), pytest.raises(ConfigurationError, match="DEADLINE"):
        PersonalizeMiddleware(lambda request: HttpResponse())


def test_without_credentials_pages_show_defaults(request_, caplog):
    """A site without credentials serves its pages, and says in the log which are missing."""
    with override_personalize(SANDBOX=False):
        request = build_request()
        assert request.personalization.get("hero-banner") is None
    assert "MoEngage is not asked" in caplog.text
    assert "WORKSPACE_ID" in caplog.text


def test_bug_in_a_transport_never_reaches_the_page(request_, upstream, caplog):
    """Even what nobody foresaw shows the default; the log has its kind and not its text."""

    def answer(request):
        raise KeyError("ada@example.com")

    upstream.answer = answer
    with caplog.at_level(logging.DEBUG):
        assert request_.personalization.get("hero-banner") is None
    assert "failed unexpectedly (KeyError)" in caplog.text
    assert "ada@example.com" not in caplog.text


def test_tasks_of_one_request_gather_once(upstream):
    """Reads that run beside one another have one visitor, and each its experience."""

    async def view():
        request = AsyncRequestFactory().get("/")
        personalization = request.personalization = Personalization(request)
        return await asyncio.gather(*(personalization.aget(key) for key in KEYS))

    with override_personalize(ATTRIBUTES=["tests.test_context.slow_attributes"]):
        hero, promo = async_to_sync(view)()
    assert (hero.experience_key, promo.experience_key) == KEYS
    assert all(body["cart_value"] == "5" for body in upstream.fetches)


async def slow_attributes(request):
    """Take a moment."""
    await asyncio.sleep(0.01)
    return {"cart_value": "5"}


def reading_attributes(request):
    """Read an experience while the attributes for it are gathered."""
    return {"has_hero": str(request.personalization.get("hero-banner") is not None)}


async def areading_attributes(request):
    """See reading_attributes()."""
    return {"has_hero": str(await request.personalization.aget("hero-banner") is not None)}


@pytest.mark.parametrize("provider", ["reading_attributes", "areading_attributes"])
def test_provider_that_reads_an_experience(upstream, provider):
    """A site's own provider cannot wait for itself: what it reads is absent, and nothing hangs."""
    for factory in (RequestFactory, AsyncRequestFactory):
        with override_personalize(ATTRIBUTES=[f"tests.test_context.{provider}"]):
            request = factory().get("/")
            personalization = request.personalization = Personalization(request)
            async_to_sync(personalization.aget)("promo-strip")
        assert upstream.fetches[-1]["has_hero"] == "False"


def test_sync_provider_that_reads_an_experience(request_, upstream):
    """See test_provider_that_reads_an_experience()."""
    with override_personalize(ATTRIBUTES=["tests.test_context.reading_attributes"]):
        request = build_request()
        request.personalization.get("promo-strip")
    assert upstream.fetches[-1]["has_hero"] == "False"


def test_tracker_before_the_visitor_is_known(upstream):
    """A tracker looked at too early counts nothing then, and what is known later all the same."""
    request = AsyncRequestFactory().get("/")
    personalization = request.personalization = Personalization(request)

    async def view():
        personalization._page.tracker.show(Experience("early", {}, {"cid": "1"}))
        await personalization.aload("hero-banner")
        personalization.track_impression("hero-banner")
        return personalization._page.seal(HttpResponse())

    events = async_to_sync(view)()
    assert [event.attributes["experience"] for event in events] == ["Hero banner"]


def test_disabled_gathers_nothing(request_):
    """With ENABLED off not even the visitor is asked about."""
    with override_personalize(ENABLED=False, IDENTIFY="tests.test_context.failing_identify"):
        request = build_request()
        assert request.personalization.identity.customer_id is None
        assert request.personalization._page.tracker.sign_click(Experience("x", {}, {"cid": "1"}), "/a/") is None


def test_what_tasks_wait_for_at_the_same_time_is_waited_for_once(upstream):
    """Four reads beside one another that last a quarter of the deadline leave three quarters of it."""
    sandbox = upstream._sandbox

    def answer_late(sent):
        time.sleep(0.5)
        return sandbox.send(sent, deadline=Deadline(None))

    upstream.answer = answer_late
    request = AsyncRequestFactory().get("/")

    async def view():
        personalization = request.personalization = Personalization(request)
        found = await asyncio.gather(*(personalization.aget(key) for key in (*KEYS, "a", "b")))
        return found[:2], await personalization.aget("flash-sale")

    with override_personalize(DEADLINE=2.0):
        (hero, promo), _ = async_to_sync(view)()
    assert (hero.experience_key, promo.experience_key) == KEYS
    assert 0.5 < request.personalization._page._get_budget() < 1.2


@pytest.mark.parametrize("how", ["alone", "beside"])
def test_reading_after_a_read_that_was_cancelled(upstream, how):
    """Who it is was not found out by then, so it is found out again: for who asks later, and for who waited."""
    request = AsyncRequestFactory().get("/")

    async def view():
        personalization = request.personalization = Personalization(request)
        first = asyncio.create_task(personalization.aget(KEYS[0]))
        await asyncio.sleep(0)
        second = asyncio.create_task(personalization.aget(KEYS[1]))
        if how == "beside":
            await asyncio.sleep(0)
        first.cancel()
        return await second

    with override_personalize(ATTRIBUTES=["tests.test_context.slow_attributes"]):
        assert async_to_sync(view)().experience_key == KEYS[1]

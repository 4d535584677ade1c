"""Whole pages whose question goes out on a kept connection, over WSGI and ASGI."""

import asyncio
import contextlib
import time
from types import ModuleType

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncRequestFactory, RequestFactory
from django.urls import path

from django_moe_personalize.decorators import personalize
from django_moe_personalize.fetching import upstream
from django_moe_personalize.middleware import PersonalizeMiddleware
from django_moe_personalize.resilience import PoolBusy
from django_moe_personalize.testing import override_personalize
from tests import site
from tests.conftest import settle
from tests.pages import text, title
from tests.wire import LONG, wait_until

SOON = 0.2
MARGIN = 0.75


@pytest.fixture
def serve(settings):
    """Return a function that makes a view the page ``/page/``."""

    def install(view):
        module = ModuleType("split_page")
        module.urlpatterns = [path("page/", view, name="page")]
        settings.ROOT_URLCONF = module

    return install


@pytest.mark.urls("tests.site")
@pytest.mark.parametrize("path", ["/tags/", "/atags/", "/read/", "/aread/", "/class/", "/atemplate-response/"])
def test_second_page_of_a_process_needs_no_thread(visit, vendor, submitted, path):
    """With a connection that is kept, a page is one call and no work for the pool."""
    for number in range(1, 4):
        visit.forget_cookies()
        page = text(visit(path))
        assert "Welcome" not in page
        assert page != "default"
        assert len(vendor.fetches) == number
    assert submitted == []
    assert vendor.server.connections == 1


@pytest.mark.parametrize("is_async", [False, True], ids=["view", "async-view"])
def test_question_is_out_before_the_view_runs(visit, vendor, serve, is_async):
    """What is declared for a page was asked for by the time its view begins."""

    def view(request):
        vendor.wait_for_answers(1)
        return site.show(request, site.TAGS)

    async def aview(request):
        return view(request)

    serve(personalize("hero-banner", "promo-strip")(aview if is_async else view))
    assert title(visit("/page/")) != "Welcome"


def test_view_that_takes_longer_than_the_deadline(visit, vendor, serve):
    """An answer that came meanwhile is shown."""

    @personalize("hero-banner")
    def view(request):
        vendor.wait_for_answers(1)
        time.sleep(2 * SOON)
        return site.show(request, site.TAGS)

    serve(view)
    with override_personalize(DEADLINE=SOON):
        vendor.warm()
        assert title(visit("/page/")) != "Welcome"


def test_tag_in_async_code_takes_what_has_come(visit, vendor, serve, submitted):
    """A template in the event loop shows an answer that is there, though nobody awaited it."""

    async def view(request):
        await request.personalization.aprefetch("hero-banner", "promo-strip")
        await asyncio.to_thread(vendor.wait_for_answers, 1)
        await asyncio.sleep(SOON / 4)
        return site.show(request, site.TAGS)

    serve(view)
    assert title(visit("/page/")) != "Welcome"
    assert submitted == []


def test_tag_in_async_code_waits_for_nothing(visit, vendor, serve):
    """What has not come shows its default at once."""

    async def view(request):
        await request.personalization.aprefetch("hero-banner", "promo-strip")
        start = time.monotonic()
        response = site.show(request, site.TAGS)
        assert time.monotonic() - start < MARGIN
        return response

    serve(view)
    with vendor.hold():
        assert title(visit("/page/")) == "Welcome"


def test_async_view_that_awaits_does_not_block_the_loop(vendor, submitted):
    """While the vendor takes 300 ms other tasks run on."""
    beats = []

    async def beat():
        while True:
            beats.append(time.monotonic())
            await asyncio.sleep(0.005)

    async def view(request):
        heart = asyncio.create_task(beat())
        hero = await request.personalization.aget("hero-banner")
        heart.cancel()
        return HttpResponse(hero["Title"])

    vendor.behave = lambda exchange: (time.sleep(0.3), vendor.reply(exchange))
    response = asyncio.run(PersonalizeMiddleware(view)(AsyncRequestFactory().get("/")))
    assert response.content
    assert len(beats) > 10
    assert submitted == []


@pytest.mark.parametrize("ending", ["ignores", "raises", "fails"])
def test_page_that_never_reads(visit, vendor, serve, submitted, ending):
    """A thread reads on: the connection comes back, and the visitor's next page has the answer."""

    @personalize("hero-banner", "promo-strip")
    def view(request):
        if "again" in request.GET:
            return site.show(request, site.TAGS)
        if ending == "raises":
            raise ValueError("the view's own")
        return HttpResponse(status=500 if ending == "fails" else 200)

    serve(view)
    visit.client.raise_request_exception = False
    with vendor.hold():
        status = visit("/page/").status_code
        # No cookie says who that was.
        assert status == (200 if ending == "ignores" else 500)
    settle()
    assert vendor.is_kept()
    assert (len(vendor.fetches), submitted) == (1, ["_read_on"])


def test_page_that_never_reads_and_the_pool_is_busy(visit, vendor, serve, monkeypatch):
    """The connection is closed, and the page goes out."""

    def busy(*args):
        raise PoolBusy("busy")

    monkeypatch.setattr(upstream.get_pool(), "submit", busy)
    serve(personalize("hero-banner")(lambda request: HttpResponse("ok")))
    with vendor.hold():
        assert visit("/page/").content == b"ok"
    assert not vendor.is_kept()


def test_hanging_vendor_costs_a_page_its_deadline(visit, vendor, serve, heard):
    """The default shows, late by the deadline once, and the breaker learns of one failure."""
    serve(personalize("hero-banner", "promo-strip")(lambda request: site.show(request, site.TAGS)))
    with override_personalize(DEADLINE=SOON), vendor.hold():
        vendor.warm()
        start = time.monotonic()
        assert title(visit("/page/")) == "Welcome"
        assert SOON <= time.monotonic() - start < SOON + 2 * MARGIN
        settle()
        assert heard == ["failure"]


def test_streaming_page_reads_while_it_is_sent(visit, vendor, serve):
    """What is declared and read only once the response streams is shown."""

    @personalize("hero-banner", "promo-strip")
    def view(request):
        def parts():
            yield "<html>"
            vendor._go_on.set()
            yield site.show(request, site.TAGS).content

        async def aparts():
            yield "<html>"
            vendor._go_on.set()
            settle()
            yield site.show(request, site.TAGS).content

        return StreamingHttpResponse(aparts() if hasattr(request, "scope") else parts())

    serve(view)
    with vendor.hold():
        assert title(visit("/page/")) != "Welcome"
    assert len(vendor.fetches) == 1


@pytest.mark.parametrize("place", ["reading", "elsewhere"])
def test_visitor_who_leaves(vendor, serve, submitted, place):
    """A page that is cancelled leaves nothing behind: the connection comes back, the answer is remembered."""
    begun = asyncio.Event()

    async def view(request):
        await request.personalization.aprefetch("hero-banner")
        begun.set()
        if place == "reading":
            await request.personalization.aget("hero-banner")
        await asyncio.sleep(LONG)

    serve(view)
    request = AsyncRequestFactory().get("/page/")

    async def leave():
        left = asyncio.Event()
        body = [{"type": "http.request", "body": b""}]

        async def receive():
            if body:
                return body.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            raise AssertionError("nobody is there to be sent anything")

        page = asyncio.create_task(ASGIHandler()(request.scope, receive, send))
        await begun.wait()
        await asyncio.sleep(SOON / 4)
        left.set()
        await asyncio.wait_for(page, LONG)

    with vendor.hold():
        asyncio.run(leave())
    wait_until(vendor.is_kept)
    settle()
    assert submitted == ["_read_on"]


def test_worker_that_is_told_to_end(vendor, submitted):
    """What is no page any more leaves its question to a thread."""

    def view(request):
        request.personalization.prefetch("hero-banner")
        raise SystemExit(1)

    with vendor.hold(), contextlib.suppress(SystemExit):
        PersonalizeMiddleware(view)(RequestFactory().get("/"))
    settle()
    assert vendor.is_kept()
    assert submitted == ["_read_on"]

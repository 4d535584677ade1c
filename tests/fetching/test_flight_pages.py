"""Whole pages over a real connection, by WSGI and ASGI."""

import asyncio
import contextlib
import time

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncRequestFactory, RequestFactory

from django_moe_personalize.decorators import personalize
from django_moe_personalize.middleware import PersonalizeMiddleware
from django_moe_personalize.testing import override_personalize
from tests import site
from tests.conftest import settle
from tests.fetching.warm_vendor import SOON
from tests.pages import text, title
from tests.wire import LONG, wait_until

personalized = personalize("hero-banner", "promo-strip")


@pytest.mark.urls("tests.site")
@pytest.mark.parametrize("path", ["/tags/", "/atags/", "/read/", "/aread/", "/class/", "/atemplate-response/"])
def test_pages_of_a_warm_process_need_no_thread(visit, vendor, submitted, path):
    """With an idle connection, a page makes one call and gives the pool no work."""
    for number in range(1, 4):
        visit.forget_cookies()
        page = text(visit(path))
        assert "Welcome" not in page
        assert page != "default"
        assert len(vendor.fetches) == number
    assert submitted == []
    assert vendor.server.connections == 1


@pytest.mark.parametrize("is_async", [False, True], ids=["view", "async-view"])
def test_view_that_takes_longer_than_the_deadline(visit, vendor, serve, heard, is_async):
    """The request is sent before the view runs, and the page shows an answer that came in the meantime."""

    def view(request):
        vendor.wait_for_answers(1)
        time.sleep(2 * SOON)
        return site.show(request, site.TAGS)

    async def aview(request):
        return view(request)

    serve(personalized(aview if is_async else view))
    with override_personalize(DEADLINE=SOON):
        vendor.warm()
        assert title(visit("/page/")) != "Welcome"
    assert heard == ["success"]


@pytest.mark.parametrize("is_held", [False, True])
def test_tag_in_async_code(visit, vendor, serve, submitted, is_held):
    """A tag in an event loop shows an answer that has arrived, even if no task awaited it. The tag never waits."""

    async def view(request):
        page = request.personalization._page
        await request.personalization.aprefetch("hero-banner", "promo-strip")
        if not is_held:
            await asyncio.to_thread(wait_until, lambda: page._flights[0].poll())
        return site.show(request, site.TAGS)

    serve(view)
    with vendor.hold() if is_held else contextlib.nullcontext():
        assert (title(visit("/page/")) == "Welcome") == is_held
    assert submitted == (["_read_on"] if is_held else [])


@pytest.mark.parametrize("ending", ["ignores", "raises", "fails"])
def test_page_that_never_reads(visit, vendor, serve, submitted, ending):
    """A thread reads the response for the page: the connection is used again, and the answer is remembered."""

    def view(request):
        if ending == "raises":
            raise ValueError("the view's own")
        return HttpResponse(status=500 if ending == "fails" else 200)

    serve(personalized(view))
    visit.client.raise_request_exception = False
    with vendor.hold():
        assert visit("/page/").status_code == (200 if ending == "ignores" else 500)
    settle()
    assert vendor.has_idle_connection()
    assert (len(vendor.fetches), submitted) == (1, ["_read_on"])


def test_hanging_vendor_delays_a_page_by_one_deadline(visit, vendor, serve, heard):
    """The page shows its defaults, and the breaker hears of one failure."""
    serve(personalized(lambda request: site.show(request, site.TAGS)))
    with override_personalize(DEADLINE=SOON), vendor.hold():
        vendor.warm()
        start = time.monotonic()
        assert title(visit("/page/")) == "Welcome"
        assert SOON <= time.monotonic() - start < LONG / 2
        settle()
        assert heard == ["failure"]
        assert not vendor.has_idle_connection()


def test_streamed_page_reads_while_it_is_sent(visit, vendor, serve):
    """A streamed response shows declared experiences that are read only during the stream."""

    def view(request):
        def parts():
            yield site.show(request, site.TAGS).content

        async def aparts():
            for part in parts():
                yield part

        return StreamingHttpResponse(aparts() if hasattr(request, "scope") else parts())

    serve(personalized(view))
    with vendor.hold():
        response = visit("/page/")
        vendor.go_on.set()
        assert title(response) != "Welcome"
    assert len(vendor.fetches) == 1


def test_streamed_page_that_starts_a_fetch_and_does_not_read_it(vendor, submitted):
    """Once the page is sent a thread reads the response, as after any other page."""

    def view(request):
        def parts():
            request.personalization.prefetch("promo-strip")
            yield "<html>"

        request.personalization.get("hero-banner")
        return StreamingHttpResponse(parts())

    response = PersonalizeMiddleware(view)(RequestFactory().get("/"))
    with vendor.hold():
        assert list(response) == [b"<html>"]
    settle()
    assert vendor.has_idle_connection()
    assert submitted == ["_read_on"]


def leave_page(begun):
    """Return a coroutine that requests ``/page/``, and closes the connection once ``begun`` is set."""

    async def leave():
        left, body = asyncio.Event(), [{"type": "http.request", "body": b""}]

        async def receive():
            if body:
                return body.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            raise AssertionError("the visitor has left")

        page = asyncio.create_task(ASGIHandler()(AsyncRequestFactory().get("/page/").scope, receive, send))
        await begun.wait()
        await asyncio.sleep(0)
        left.set()
        await asyncio.wait_for(page, LONG)

    return leave()


@pytest.mark.parametrize("place", ["reading", "elsewhere"])
def test_visitor_who_leaves(vendor, serve, submitted, place):
    """The server cancels the page. A thread reads the response, so the connection is used again."""
    begun = asyncio.Event()

    async def view(request):
        await request.personalization.aprefetch("hero-banner")
        begun.set()
        if place == "reading":
            await request.personalization.aget("hero-banner")
        await asyncio.sleep(LONG)

    serve(view)
    with vendor.hold():
        asyncio.run(leave_page(begun))
    settle()
    assert vendor.has_idle_connection()
    assert submitted == ["_read_on"]


def test_worker_that_must_end(vendor, submitted):
    """A page that its server ends leaves the response to a thread."""

    def view(request):
        request.personalization.prefetch("hero-banner")
        raise SystemExit(1)

    with vendor.hold(), contextlib.suppress(SystemExit):
        PersonalizeMiddleware(view)(RequestFactory().get("/"))
    settle()
    assert vendor.has_idle_connection()
    assert submitted == ["_read_on"]

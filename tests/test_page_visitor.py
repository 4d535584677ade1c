"""A fetch before the view is a guess about the visitor: each read compares the visitor with the request."""

from functools import partial
from unittest.mock import AsyncMock

import pytest
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.contrib.auth import alogin, alogout, login, logout
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.utils.functional import SimpleLazyObject

from tests.conftest import settle
from tests.pages import title
from tests.site import TAGS, RestRequest, show, streaming

pytestmark = pytest.mark.django_db


def build_view(*steps):
    """Return a view that takes these steps, and then shows the page."""

    def view(request):
        for step in steps:
            step(request)
        return show(request, TAGS)

    return view


def build_async_view(*steps):
    """See build_view()."""

    async def view(request):
        for step in steps:
            await step(request)
        return show(request, TAGS)

    return view


def sign_in(request, pk=10):
    login(request, User.objects.get(pk=pk))


def replace(request):
    """Replace the user, as a decorator does that reads a token."""
    request.user = User.objects.get(pk=20)


def wrap(request):
    """Set the user of a wrapped request, as Django REST framework does."""
    RestRequest(request)._request.user = User(pk=20)


def reload(request):
    """Replace the user by an equal one. The page's visitor stays the same."""
    request.user = User.objects.get(pk=request.user.pk)


def read(request):
    show(request, TAGS)
    request.personalization.load()


CHANGES = [
    (None, [sign_in], "10"),
    (10, [logout], "anon"),
    (10, [partial(sign_in, pk=20)], "20"),
    (10, [replace], "20"),
    (None, [wrap], "20"),
    (10, [reload], "10"),
    (None, [read, sign_in], "10"),
    (10, [read, logout], "anon"),
    (None, [sign_in, read, logout], "anon"),
    (10, [read, partial(sign_in, pk=20), read, logout, read, partial(sign_in, pk=30)], "30"),
    (None, [replace, read, wrap], "20"),
]


@pytest.mark.parametrize(("user", "steps", "expected"), CHANGES)
def test_user_changes_in_the_view(ask, upstream, user, steps, expected):
    """The page asks for the right visitor, shows this visitor's content, and counts for this visitor alone."""
    response, visitor = ask(build_view(*steps), user)
    assert visitor.startswith(expected)
    assert visitor in upstream.asked
    assert all(sorted(body["experience_key"]) == ["hero-banner", "promo-strip"] for body in upstream.fetches)
    assert upstream.booked == [visitor] * 2
    assert ("moe_id" in response.cookies) is visitor.startswith("anon")


async def enter_async(request):
    await alogin(request, await User.objects.aget(pk=10))


areplace = sync_to_async(replace)


async def areplace_lazily(request):
    """Replace the user, as a middleware does that reads a token when a view needs the user."""
    request.user = SimpleLazyObject(lambda: User.objects.get(pk=20))


async def areplace_async_user(request):
    request.auser = AsyncMock(return_value=await User.objects.aget(pk=20))


async def aread(request):
    await request.personalization.aget("hero-banner")
    request.personalization.track_impression("hero-banner")


async def apass(request):
    """Set the user that the page has already."""
    request.user = await request.auser()


ACHANGES = [
    (None, [enter_async], "10"),
    (10, [alogout], "anon"),
    (10, [areplace], "20"),
    (10, [areplace_lazily], "20"),
    (10, [areplace_async_user], "20"),
    (None, [aread, enter_async], "10"),
    (10, [aread, areplace, aread, alogout], "anon"),
    (10, [apass], "10"),
]


@pytest.mark.parametrize("way", ["aget", "aload", "response"])
@pytest.mark.parametrize(("user", "steps", "expected"), ACHANGES)
def test_user_changes_in_an_async_view(ask, upstream, user, steps, expected, way, visit):
    """See test_user_changes_in_the_view()."""
    if way == "response" and visit.mode == "sync":
        pytest.skip("under WSGI a tag in an event loop can't wait")

    async def view(request):
        for step in steps:
            await step(request)
        if way == "response":
            return TemplateResponse(request, engines["django"].from_string(TAGS))
        await (request.personalization.aload() if way == "aload" else request.personalization.aget("hero-banner"))
        return show(request, TAGS)

    response, visitor = ask(view, user)
    assert visitor.startswith(expected)
    assert visitor in upstream.asked
    assert upstream.booked == [visitor] * 2
    assert ("moe_id" in response.cookies) is visitor.startswith("anon")


@pytest.mark.parametrize(("step", "expected"), [(enter_async, "Welcome"), (apass, "10"), (areplace, "Welcome")])
def test_tags_of_an_async_view_after_a_change(ask, upstream, caplog, step, expected):
    """A tag in an event loop can't ask for the new visitor. It never shows the content of the visitor before."""

    async def acheck(request):
        assert request.personalization.identity.customer_id in (None, "10")

    _, shown = ask(build_async_view(step, acheck), 10 if step is not enter_async else None)
    assert shown == expected
    assert upstream.booked == ([] if shown == "Welcome" else ["10"] * 2)
    assert ("after the user or the consent of the request had changed" in caplog.text) is (shown == "Welcome")


@pytest.mark.parametrize(
    ("step", "booked"),
    [(sign_in, []), (replace, []), (logout, ["10"]), (enter_async, []), (areplace, []), (apass, ["10"] * 2)],
)
def test_user_changes_after_the_last_read(ask, upstream, caplog, step, booked):
    """For the visitor before, only clicks count. A known customer gets no cookie, and the log no advice."""

    def view(request):
        if step is logout:
            request.personalization.track_click("hero-banner")
        response = show(request, TAGS)
        step(request)
        return response

    async def aview(request):
        response = show(request, TAGS)
        await step(request)
        return response

    response, _ = ask(aview if iscoroutinefunction(step) else view, 10 if step in (logout, apass) else None)
    assert upstream.booked == booked
    assert "moe_id" not in response.cookies
    assert "had changed" not in caplog.text


def test_click_before_the_id_of_the_browser_is_known(ask, upstream):
    """A click counts for the visitor who clicked, but not for an anonymous id that no browser will ever have."""
    ask(build_view(lambda request: request.personalization.track_click("hero-banner"), sign_in))
    assert upstream.booked == ["10"] * 2


@pytest.mark.parametrize("is_async", [False, True])
def test_experience_of_the_visitor_before(ask, upstream, is_async):
    """A link of the old experience leads to its destination, but counts no click for the new visitor."""

    def show_link(request, hero):
        request.personalization._page.tracker.show(hero)
        return show(request, "{% load moe_personalize %}<h1>{% click_url hero '/sale/' %}</h1>", hero=hero)

    def view(request):
        hero = request.personalization.get("hero-banner")
        sign_in(request)
        return show_link(request, hero)

    async def aview(request):
        hero = await request.personalization.aget("hero-banner")
        await enter_async(request)
        return show_link(request, hero)

    assert ask(aview if is_async else view)[1] == "/sale/"
    assert upstream.booked == []


def test_streamed_page_of_another_visitor(ask, upstream):
    """The page is private although it reads only while it is sent, and it shows and counts the right visitor."""

    def view(request):
        sign_in(request)
        request.personalization.prefetch("hero-banner")
        return streaming(request)

    response, visitor = ask(view)
    assert (visitor, upstream.booked) == ("10", ["10"] * 2)
    assert response.headers["Cache-Control"] == "private, no-store"


def test_unread_fetch_of_another_visitor(ask, upstream):
    """A page that reads nothing after the change is public, and no visitor gets a cookie."""

    def view(request):
        replace(request)
        return HttpResponse("<h1>plain</h1>")

    response, _ = ask(view)
    assert (response.headers.get("Cache-Control"), dict(response.cookies)) == (None, {})
    settle()
    assert len(upstream.asked) == 1


def test_wrong_guess_about_a_token(ask, upstream, visit):
    """The next request with a token asks only for the right visitor. Here the cache has the answer for this visitor."""
    ask(build_view(replace))
    calls = []
    for headers in ({}, {"authorization": "Token x"}, {"authorization": "Token x"}, {}):
        upstream.forget()
        assert title(visit("/page/", headers=headers)) == "20"
        settle()
        calls.append(len(upstream.asked))
    assert calls == [1, 1, 0, 1]


def describe(request):
    """Return attributes of the user."""
    return {"plan": request.user.username or "none"}


@pytest.mark.parametrize("is_async", [False, True])
def test_attributes_of_a_visitor_without_id(ask, upstream, settings, visit, is_async):
    """Without an id, only the attributes tell that the view has found another visitor."""
    options = {"ATTRIBUTES": [f"{__name__}.describe"], "CACHE_TTL": 0, "CACHE_STALE_TTL": 0}
    settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | options

    async def aview(request):
        await areplace(request)
        await request.personalization.aload()
        return show(request, TAGS)

    def view(request):
        replace(request)
        return show(request, TAGS)

    ask(aview if is_async else view)
    for _ in range(2):
        upstream.forget()
        visit("/page/", headers={"Sec-GPC": "1"})
        settle()
        # The call for the first visitor can be under way when the page makes the call for the second visitor.
        assert sorted(body["plan"] for body in upstream.fetches) == ["bob", "none"]

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

from django_moe_personalize.visitor import Consent, Identity, delete_anonymous_cookie
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


@pytest.fixture
def ask(upstream, visit, serve):
    """Return a function that opens a page whose route is known, and returns the response and the page's visitor."""
    User.objects.bulk_create([User(pk=10, username="ada"), User(pk=20, username="bob"), User(pk=30, username="cy")])
    upstream.echo()

    def ask(view, user=None, query=""):
        serve(lambda request: show(request, TAGS))
        visit("/page/")
        visit.forget_cookies()
        serve(view)
        if user is not None:
            visit.log_in(User.objects.get(pk=user))
        upstream.requests.clear()
        response = visit("/page/" + query)
        return response, title(response)

    return ask


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
        upstream.requests.clear()
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
        upstream.requests.clear()
        visit("/page/", headers={"Sec-GPC": "1"})
        settle()
        assert [body["plan"] for body in upstream.fetches] == ["none", "bob"]


# Functions of the site: CONSENT and IDENTIFY may use anything.

OUTSIDE = {}


def identify(request):
    """Find the visitor in the session, or where a test has put the id."""
    known = [OUTSIDE.get("id"), getattr(request, "auth", None), getattr(request, "customer", None)]
    found = [*filter(None, known), getattr(request, "session", {}).get("customer")]
    OUTSIDE["calls"] = OUTSIDE.get("calls", 0) + 1
    if "step" in OUTSIDE:
        OUTSIDE["step"](request)
    return Identity(found[0])


def consent(request):
    """Find the consent where a test has put it."""
    return OUTSIDE.get("consent", Consent())


def attributes(request):
    OUTSIDE["attributes"] = OUTSIDE.get("attributes", 0) + 1
    return {"plan": "gold"}


@pytest.fixture
def functions(settings):
    OUTSIDE.clear()
    paths = {"IDENTIFY": f"{__name__}.identify", "CONSENT": f"{__name__}.consent"}
    settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | paths | {"ATTRIBUTES": [f"{__name__}.attributes"]}
    return OUTSIDE


def put_attribute(request):
    """Set an attribute, as authentication in django-ninja does."""
    request.auth = "20"


def put_elsewhere(request):
    """Change what only the function knows."""
    OUTSIDE["id"] = "30"


def put_session(request):
    request.session["customer"] = "40"


def put_and_read_again(request):
    """Replace an attribute. Only load() finds this."""
    request.customer = "50"
    request.personalization.load()
    request.customer = "60"
    request.personalization.load()


def remove_attribute(request):
    request.customer = "70"
    request.personalization.get("hero-banner")
    del request.customer


def do_nothing(request):
    """Change only attributes that Django keeps for itself."""
    assert request.headers
    request._cached = 1


@pytest.mark.parametrize(
    ("steps", "expected", "calls"),
    [
        ([do_nothing], "anon", 2),
        ([do_nothing, read, do_nothing, read], "anon", 4),
        ([put_attribute], "20", 2),
        ([read, put_attribute], "20", 4),
        ([put_elsewhere], "30", 2),
        ([put_session], "40", 2),
        ([read, put_session], "40", 4),
        ([read, put_and_read_again], "60", 5),
        ([remove_attribute], "anon", 3),
        ([read, put_session, logout], "anon", 4),
    ],
)
def test_functions_of_the_site(ask, upstream, functions, steps, expected, calls):
    """They are called before the view, at the first read, by load(), and when the request or its session changes."""
    _, visitor = ask(build_view(lambda request: OUTSIDE.update(calls=1, attributes=1), *steps))
    assert visitor.startswith(expected)
    assert upstream.booked == [visitor] * 2
    assert functions["calls"] == calls
    assert functions["attributes"] <= 2 + len(steps)


@pytest.mark.parametrize(
    ("granted", "shown"),
    [(Consent(fetch=False), "Welcome"), (Consent(track=False), "anon"), (Consent(identify=False), "nobody")],
)
def test_consent_changes_in_the_view(ask, upstream, functions, granted, shown):
    """The page fetches, identifies and counts only with the consent at its first read."""
    view = build_view(lambda request: OUTSIDE.update(consent=granted))
    response, found = ask(view, query="?utm_source=mail")
    assert found.startswith(shown)
    assert upstream.booked == []
    assert ("moe_query" in response.cookies) is (granted.identify and granted.fetch)
    assert ("moe_id" in response.cookies) is (granted.identify and granted.fetch)


def withdraw(request):
    """Withdraw the consent in the session."""
    OUTSIDE["consent"] = Consent(identify=False, track=False)
    request.session["consent"] = "no"


def test_view_that_withdraws_the_consent(ask):
    """A browser without cookies gets none from the view that deletes them, although the view reads the visitor."""

    def view(request):
        assert request.personalization.identity.customer_id
        response = show(request, TAGS)
        delete_anonymous_cookie(response)
        return response

    response, _ = ask(view, query="?utm_source=mail")
    assert {name for name, cookie in response.cookies.items() if cookie.value} == set()


def put_message(request):
    """Write into the session what the functions don't use."""
    request.session["message"] = "Saved"


@pytest.mark.parametrize(("step", "number"), [(put_session, 0), (withdraw, 0), (put_message, 2)])
def test_functions_of_the_site_after_the_last_read(ask, upstream, functions, step, number):
    """If the session has another visitor or consent, nothing counts for the visitor before, and no cookie is set."""

    def view(request):
        response = show(request, TAGS)
        step(request)
        return response

    response, visitor = ask(view)
    assert upstream.booked == [visitor] * number
    assert ("moe_id" in response.cookies) is (number > 0)


@pytest.mark.parametrize("step", [sign_in, logout, read])
def test_function_that_changes_the_visitor(ask, upstream, functions, step):
    """IDENTIFY may sign a user in or out, or read an experience, each time. The page still ends."""
    assert ask(build_view(lambda request: OUTSIDE.update(id="30", step=step)))[1] == "30"


@pytest.mark.parametrize(("step", "expected"), [(do_nothing, "anon"), (put_session, "Welcome"), (replace, "Welcome")])
def test_functions_and_tags_of_an_async_view(ask, functions, step, expected):
    """A tag in an event loop can't call the functions. It trusts the guess unless user or session have changed."""
    assert ask(build_async_view(sync_to_async(step)))[1].startswith(expected)

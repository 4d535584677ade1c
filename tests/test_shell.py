"""A page that has no experience of its own, and loads personalized parts at the same time."""

import pytest
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.urls import include, path
from django.views.decorators.cache import cache_page

from django_moe_personalize.decorators import personalize
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.visitor import Consent, Identity
from tests.pages import text
from tests.site import show, stream

KEYS = ("hero-banner", "promo-strip", "recommendations")
SCRIPTS = "{% load moe_personalize %}<main></main>{% personalize_scripts %}"
PART = '{{% load moe_personalize %}}{{% experience "{}" as e %}}<b>{{{{ e.Title }}}}</b>{{% endexperience %}}'
PUBLIC = {"Cache-Control": "public, max-age=60"}


def shell(request):
    response = show(request, SCRIPTS)
    response.headers["Cache-Control"] = PUBLIC["Cache-Control"]
    return response


async def ashell(request):
    return shell(request)


def reading(request):
    """Read the session, as a page with the number of articles in the cart does."""
    request.session.get("cart")
    return shell(request)


def streamed(request):
    return stream(request, lambda: shell(request).content)


def plain(request):
    return HttpResponse("<main></main>", headers=PUBLIC)


def part(request, key):
    return show(request, PART.format(key))


def identify(request):
    name = request.headers.get("X-Customer")
    return Identity(name) if name else None


async def consent(request):
    return Consent(identify=False)


urlpatterns = [
    path("shell/", shell),
    path("ashell/", ashell),
    path("reading/", reading),
    path("declared/", personalize(*KEYS)(shell)),
    path("adeclared/", personalize(*KEYS)(ashell)),
    path("cached/", cache_page(60)(shell)),
    path("streamed/", streamed),
    path("plain/", plain),
    path("part/<str:key>/", part),
    path("moe/", include("django_moe_personalize.urls")),
]
pytestmark = pytest.mark.urls(__name__)
SHELLS = ["/shell/", "/ashell/", "/reading/", "/declared/", "/adeclared/", "/cached/"]


@pytest.mark.parametrize("address", SHELLS)
@pytest.mark.parametrize("options", [{}, {"IDENTIFY": f"{__name__}.identify"}], ids=["default", "function"])
def test_parts_agree_on_one_id(visit, upstream, address, options):
    """The page gives a new browser its id and is private. So all parts that load together count for one visitor."""
    with override_personalize(**options):
        first = visit(address)
        assert (list(first.cookies), first.headers["Cache-Control"]) == (["moe_id"], "private, no-store")
        assert "Cookie" in first.headers["Vary"]
        for key in KEYS:
            # The parts start together, so each of them sends the cookies that the page has set.
            visit.client.cookies.clear()
            visit.client.cookies.update(first.cookies)
            assert not visit(f"/part/{key}/").cookies
    entries = upstream.engine.ledger.entries()
    assert (len(entries), len({entry.customer_id for entry in entries})) == (3, 1)
    second = visit(address)
    assert (dict(second.cookies), second.headers["Cache-Control"]) == ({}, PUBLIC["Cache-Control"])


@pytest.mark.parametrize("address", ["/shell/", "/ashell/", "/plain/", "/streamed/"])
@pytest.mark.parametrize(
    ("options", "headers"),
    [
        ({"ANONYMOUS_ID": False}, {}),
        ({"ENABLED": False}, {}),
        ({}, {"Sec-GPC": "1"}),
        ({"CONSENT": f"{__name__}.consent"}, {}),
        ({"IDENTIFY": f"{__name__}.identify"}, {"X-Customer": "user-1"}),
    ],
    ids=["no-ids", "off", "gpc", "consent", "customer"],
)
def test_pages_that_give_no_id(visit, upstream, address, options, headers):
    """A visitor who needs no id, or doesn't allow one, gets the page as the view returned it."""
    with override_personalize(**options):
        response = visit(address, headers=headers)
    expected = {} if address == "/streamed/" else PUBLIC
    assert {name: value for name, value in response.headers.items() if name != "Content-Type"} == expected
    assert not response.cookies


@pytest.mark.parametrize("address", ["/plain/", "/streamed/"])
def test_pages_that_cannot_give_an_id(visit, upstream, address):
    """A page without the tag stays as it is. A streamed page has sent its headers before it renders the tag."""
    response = visit(address)
    text(response)
    assert not response.cookies
    assert "private" not in response.headers.get("Cache-Control", "")


@pytest.mark.django_db
@pytest.mark.parametrize("address", ["/shell/", "/ashell/"])
def test_signed_in_user(visit, upstream, address, django_assert_num_queries):
    """The page doesn't read a session that its view doesn't read, and stays as the view returned it."""
    visit.log_in(User.objects.create(pk=42, username="ada"))
    with django_assert_num_queries(0):
        response = visit(address)
    assert (dict(response.cookies), "Vary" in response.headers) == ({}, False)
    assert response.headers["Cache-Control"] == PUBLIC["Cache-Control"]


def test_cached_page(visit, upstream):
    """Django's cache stores no page that sets a cookie. It stores the page of a browser that has the cookie."""
    first = visit("/cached/").cookies["moe_id"].value
    visit.forget_cookies()
    assert visit("/cached/").cookies["moe_id"].value != first
    visit("/cached/")
    visit.forget_cookies()
    assert not visit("/cached/").cookies

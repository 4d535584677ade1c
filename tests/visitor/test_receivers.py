"""Who signs in or out leaves nothing of themselves to whoever asks next from the browser."""

from types import ModuleType, SimpleNamespace

import pytest
from django.contrib.auth import alogin, alogout, login, logout
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import RequestFactory
from django.urls import include, path

from django_moe_personalize.visitor.attributes import SESSION_KEY
from django_moe_personalize.visitor.consent import Consent
from django_moe_personalize.visitor.identity import Identity, get_identity, set_anonymous_cookie
from django_moe_personalize.receivers import start_new_identity
from tests import site
from tests.pages import title


def enter(request):
    """Sign a visitor in."""
    login(request, User.objects.get(pk=1))
    return HttpResponse("in")


async def aenter(request):
    """Sign a visitor in, in the event loop."""
    await alogin(request, await User.objects.aget(pk=1))
    return HttpResponse("in")


def leave(request):
    """Sign a visitor out, and show them a page."""
    logout(request)
    if "quiet" in request.GET:
        return HttpResponse("out")
    request.personalization.get("hero-banner")
    return HttpResponse(request.personalization.identity.customer_id)


async def aleave(request):
    """Sign a visitor out in the event loop, and show them a page."""
    await alogout(request)
    if "quiet" in request.GET:
        return HttpResponse("out")
    await request.personalization.aget("hero-banner")
    return HttpResponse(request.personalization.identity.customer_id)


def enter_through_a_wrapper(request):
    """Sign in by a request around Django's, as REST framework has it."""
    start_new_identity(request=SimpleNamespace(_request=request))
    start_new_identity(request=None)
    return HttpResponse("in")


pytestmark = pytest.mark.django_db


@pytest.fixture
def browse(upstream, visit, settings):
    """Return a visitor of pages that sign in and out, sync and async ones."""
    module, asynchronous = ModuleType("routes"), visit.mode == "async"
    module.urlpatterns = [
        path("enter/", aenter if asynchronous else enter),
        path("leave/", aleave if asynchronous else leave),
        path("wrapped/", enter_through_a_wrapper),
        path("", include(site)),
    ]
    settings.ROOT_URLCONF = module
    User.objects.create(pk=1, username="ada")
    return visit


def ask(upstream, browse, url="/read/"):
    """Return whom MoEngage was asked for by a page."""
    upstream.engine.ledger.clear()
    before = len(upstream.fetches)
    browse(url)
    return [body["identifiers"]["customer_id"] for body in upstream.fetches[before:]]


def test_anonymous_id_ends_with_the_sign_in(upstream, browse):
    """Signing in takes the cookie away; after signing out the browser has another id."""
    [before] = ask(upstream, browse)
    response = browse("/enter/")
    assert response.cookies["moe_id"]["max-age"] == 0
    assert response.headers["Cache-Control"] == "private, no-store"
    del browse.client.cookies["moe_id"]
    assert ask(upstream, browse) == ["1"]
    assert browse("/leave/?quiet").content == b"out"
    [after] = ask(upstream, browse)
    assert before.startswith("anon-")
    assert after.startswith("anon-")
    assert before != after


@pytest.mark.parametrize("url", ["/leave/", "/leave/?quiet"])
def test_anonymous_id_ends_with_the_sign_out(upstream, browse, url):
    """A cookie that outlived the customer's visit is not the next visitor's; the page itself has a new id."""
    [before] = ask(upstream, browse)
    browse.log_in(User.objects.get(pk=1))
    response = browse(url)
    cookie = response.cookies["moe_id"]
    if "quiet" in url:
        assert cookie["max-age"] == 0
    else:
        assert response.content.startswith(b"anon-")
        assert response.content != before.encode()
        assert cookie["max-age"]
        assert response.content.decode() in cookie.value


def test_sign_in_without_an_id_sets_no_cookie(browse):
    """Where there is nothing to take away, the response of the site's own view stays as it is."""
    response = browse("/enter/")
    assert "moe_id" not in response.cookies
    assert response.headers.get("Cache-Control") is None


def test_id_minted_for_the_page_that_signs_in():
    """An id that the request was given before its view signed in is not set either."""
    request, response = RequestFactory().get("/"), HttpResponse()
    before = get_identity(request, Consent())
    start_new_identity(request=request)
    set_anonymous_cookie(request, response)
    assert not response.cookies
    assert get_identity(request, Consent()) != before


def test_remembered_parameters_end_with_the_sign_in(upstream, browse):
    """The campaign that brought the one is not sent with the other."""
    browse("/read/?utm_source=canary")
    assert upstream.fetches[-1]["utm_source"] == "canary"
    browse("/enter/")
    browse("/read/")
    assert upstream.fetches[-1]["identifiers"] == {"customer_id": "1"}
    assert "utm_source" not in upstream.fetches[-1]
    assert SESSION_KEY not in browse.client.session


def test_request_around_djangos(upstream, browse):
    """What REST framework hands over is looked through; no request at all is no error."""
    ask(upstream, browse)
    assert browse("/wrapped/").cookies["moe_id"]["max-age"] == 0


def test_without_session_and_middleware():
    """A request that has neither is let through, and its id is another from there on."""
    request = RequestFactory().get("/")
    request.COOKIES["moe_id"] = "x"
    start_new_identity(request=request)
    assert get_identity(request, Consent()).anonymous


def test_identified_visitor_never_gets_an_anonymous_entry(upstream, browse, settings):
    """What the browser was shown before the sign-in is not shown after it, also when MoEngage fails."""
    settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | {"IDENTIFY": f"{__name__}.identify_by_mail"}
    identify_by_mail.anonymous = True
    assert browse("/read/").content != b"default"
    upstream.refuse()
    identify_by_mail.anonymous = False
    assert browse("/read/").content == b"default"
    identify_by_mail.anonymous = True
    assert browse("/read/").content != b"default"


def identify_by_mail(request):
    """Give one id to the browser and to the customer, which a site should not."""
    return Identity("same", anonymous=identify_by_mail.anonymous)


def test_page_of_the_one_and_the_page_of_the_other(upstream, browse):
    """The customer's content is gone with the customer."""
    anonymous = title(browse("/tags/"))
    browse("/enter/")
    assert title(browse("/tags/")) != anonymous
    browse("/leave/?quiet")
    upstream.refuse()
    assert title(browse("/tags/")) == "Welcome"

"""A login or logout starts a new anonymous identity, so that the browser's next user starts without a history."""

from types import ModuleType, SimpleNamespace

import pytest
from django.contrib.auth import alogin, alogout, login, logout
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import RequestFactory
from django.urls import include, path

from django_moe_personalize.receivers import start_new_identity
from django_moe_personalize.visitor.identity import GRANTED, Identity, get_identity, set_anonymous_cookie
from tests import site
from tests.pages import title

pytestmark = pytest.mark.django_db


def sign_in(request):
    login(request, User.objects.get(pk=1))
    return HttpResponse("in")


async def sign_in_async(request):
    await alogin(request, await User.objects.aget(pk=1))
    return HttpResponse("in")


def sign_out(request):
    logout(request)
    return HttpResponse("out")


async def sign_out_async(request):
    await alogout(request)
    return HttpResponse("out")


def sign_out_and_read(request):
    logout(request)
    request.personalization.get("hero-banner")
    return HttpResponse(request.personalization.identity.customer_id)


def sign_in_through_rest_framework(request):
    """Send the signal with a wrapped request, as Django REST framework does, and without a request."""
    start_new_identity(request=SimpleNamespace(_request=request))
    start_new_identity(request=None)
    return HttpResponse("in")


@pytest.fixture
def browse(upstream, visit, settings):
    """Return a visitor of pages that log in and out."""
    module, is_async = ModuleType("routes"), visit.mode == "async"
    module.urlpatterns = [
        path("sign-in/", sign_in_async if is_async else sign_in),
        path("sign-out/", sign_out_async if is_async else sign_out),
        path("sign-out-and-read/", sign_out_and_read),
        path("rest-framework/", sign_in_through_rest_framework),
        path("", include(site)),
    ]
    settings.ROOT_URLCONF = module
    User.objects.create(pk=1, username="ada")
    return visit


def find_customer(upstream, browse):
    """Return the customer id in the fetch of a page."""
    before = len(upstream.fetches)
    browse("/read/")
    [body] = upstream.fetches[before:]
    return body["identifiers"]["customer_id"]


def test_anonymous_id_ends_with_the_sign_in(upstream, browse):
    """The login deletes the cookie. After the logout the browser has another id."""
    before = find_customer(upstream, browse)
    response = browse("/sign-in/")
    assert response.cookies["moe_id"]["max-age"] == 0
    assert response.headers["Cache-Control"] == "private, no-store"
    del browse.client.cookies["moe_id"]
    assert find_customer(upstream, browse) == "1"
    assert browse("/sign-out/").content == b"out"
    after = find_customer(upstream, browse)
    assert (before[:5], after[:5]) == ("anon-", "anon-")
    assert before != after


def test_anonymous_id_ends_with_the_sign_out(upstream, browse):
    """A cookie that is older than the login is deleted, or replaced by the new id of the page."""
    before = find_customer(upstream, browse)
    browse.log_in(User.objects.get(pk=1))
    assert browse("/sign-out/").cookies["moe_id"]["max-age"] == 0
    browse.log_in(User.objects.get(pk=1))
    response = browse("/sign-out-and-read/")
    new = response.content.decode()
    assert new.startswith("anon-")
    assert new != before
    assert new in response.cookies["moe_id"].value


def test_sign_in_without_an_id_sets_no_cookie(browse):
    """If there is no cookie to delete, the response stays as it is."""
    response = browse("/sign-in/")
    assert "moe_id" not in response.cookies
    assert response.headers.get("Cache-Control") is None


def test_id_minted_before_the_sign_in():
    """An id that this request got before its view logged in is forgotten, also without a session and middleware."""
    request, response = RequestFactory().get("/"), HttpResponse()
    before = get_identity(request, GRANTED)
    start_new_identity(request=request)
    set_anonymous_cookie(request, response)
    assert not response.cookies
    assert get_identity(request, GRANTED) != before


def test_remembered_parameters_end_with_the_sign_in(upstream, browse):
    """The campaign of the anonymous visitor is not sent with the customer."""
    browse("/read/?utm_source=canary")
    assert upstream.fetches[-1]["utm_source"] == "canary"
    browse("/sign-in/")
    browse("/read/")
    assert upstream.fetches[-1]["identifiers"] == {"customer_id": "1"}
    assert "utm_source" not in upstream.fetches[-1]
    assert not browse.client.cookies["moe_query"].value


def test_request_of_rest_framework(upstream, browse):
    """The receiver finds Django's request inside. A signal without a request is not an error."""
    find_customer(upstream, browse)
    assert browse("/rest-framework/").cookies["moe_id"]["max-age"] == 0


def identify_same(request):
    """Return one id for the browser and for the customer, a mistake of the site."""
    return Identity("same", anonymous=identify_same.anonymous)


def test_identified_visitor_never_gets_an_anonymous_entry(upstream, browse, settings):
    """After the login no cached content of the browser is shown, even if MoEngage fails and the ids are equal."""
    settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | {"IDENTIFY": f"{__name__}.identify_same"}
    identify_same.anonymous = True
    assert browse("/read/").content != b"default"
    upstream.refuse()
    identify_same.anonymous = False
    assert browse("/read/").content == b"default"
    identify_same.anonymous = True
    assert browse("/read/").content != b"default"


def test_content_of_the_customer_ends_with_the_sign_out(upstream, browse):
    """The next user of the browser doesn't see it, even if MoEngage fails."""
    anonymous = title(browse("/tags/"))
    browse("/sign-in/")
    assert title(browse("/tags/")) != anonymous
    browse("/sign-out/")
    upstream.refuse()
    assert title(browse("/tags/")) == "Welcome"

"""CONSENT and IDENTIFY may use anything, so each page calls them again after the view has changed something."""

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import logout

from django_moe_personalize.visitor import Consent, Identity, delete_anonymous_cookie
from tests.site import TAGS, show
from tests.test_page_visitor import build_async_view, build_view, read, replace, sign_in

pytestmark = pytest.mark.django_db

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

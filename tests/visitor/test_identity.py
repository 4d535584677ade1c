"""Who the visitor is: the signed-in user, or the answer of IDENTIFY."""

import uuid
from types import SimpleNamespace

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.middleware import SessionMiddleware
from django.db import connection
from django.http import HttpResponse

from django_moe_personalize.moengage.data_api import FORBIDDEN_IDS
from django_moe_personalize.visitor.identity import (
    GRANTED,
    Consent,
    Identity,
    aget_identity,
    get_identity,
    set_anonymous_cookie,
)
from tests.visitor.conftest import FUNCTIONS

UNKNOWN = "The visitor can't be identified ({}), so the page shows its fallbacks and counts nothing."
MAIL = {"u_em": "ada@example.com"}


@pytest.fixture
def identify(twin):
    """Return a function that returns the identity of a request and the names of the cookies that the page sets."""

    def identify(request=None, *, consent=GRANTED, **attributes):
        request = request or twin.build_request(**attributes)
        identity = twin.call(get_identity, aget_identity, request, consent)
        response = HttpResponse()
        set_anonymous_cookie(request, response)
        return identity, list(response.cookies)

    return identify


@pytest.fixture
def signed_in(twin, client):
    """Return a request with the session and the user of Django's middlewares."""
    user = get_user_model().objects.create_user("ada")
    client.force_login(user)
    request = twin.build_request()
    request.COOKIES["sessionid"] = client.cookies["sessionid"].value
    SessionMiddleware(lambda _: HttpResponse()).process_request(request)
    AuthenticationMiddleware(lambda _: HttpResponse()).process_request(request)
    return request


@pytest.mark.django_db
def test_signed_in_user_is_the_customer(identify, signed_in):
    """The primary key is the customer id, and no cookie is set."""
    assert identify(signed_in) == (Identity(str(User.objects.get().pk)), [])


@pytest.mark.django_db
def test_a_database_that_fails_makes_the_visitor_unknown(identify, signed_in, caplog):
    """A customer whose user can't be read is not treated as an anonymous visitor."""

    def refuse(*args):
        raise ConnectionError("ada@example.com")

    with connection.execute_wrapper(refuse):
        assert identify(signed_in) == (None, [])
    assert caplog.messages == [UNKNOWN.format("request.user raised ConnectionError")]


@pytest.mark.parametrize(
    "attributes",
    [{}, {"user": None}, {"user": AnonymousUser()}, {"user": SimpleNamespace(is_authenticated=True, pk=None)}],
    ids=["no authentication", "none", "anonymous", "unsaved"],
)
def test_visitor_without_a_user_is_anonymous(identify, configure, attributes):
    """The visitor gets an anonymous id and a cookie. With ANONYMOUS_ID off, there is no id and no cookie."""
    identity, cookies = identify(**attributes)
    assert (identity.anonymous, identity.customer_id[:5], identity.user_identifiers) == (True, "anon-", {})
    assert cookies == ["moe_id"]
    configure(ANONYMOUS_ID=False)
    assert identify(**attributes) == (Identity(), [])


@pytest.mark.parametrize(("pk", "warnings"), [(uuid.UUID(int=7), 0), (1, 1)])
def test_user_set_by_another_middleware(identify, caplog, pk, warnings):
    """It needs no ``auser``, and any primary key becomes text. The log names a key that MoEngage forbids."""
    assert identify(user=SimpleNamespace(is_authenticated=True, pk=pk)) == (Identity(str(pk)), [])
    assert len(caplog.messages) == warnings
    assert all("MoEngage forbids a customer id that comes from request.user.pk:" in text for text in caplog.messages)


class Impersonation:
    """A middleware that replaces the user of the session, as token authentication does."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        request.user = User(pk=2)
        return self.get_response(request)


@pytest.mark.django_db
@pytest.mark.urls("tests.site")
def test_user_of_another_middleware_wins_over_the_session(visit, upstream, settings):
    """WSGI and ASGI pages agree on the customer."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE[:-1], f"{__name__}.Impersonation", settings.MIDDLEWARE[-1]]
    visit.log_in(User.objects.create(pk=1, username="ada"))
    visit("/tags/")
    assert upstream.fetches[0]["identifiers"] == {"customer_id": "2"}


def test_nothing_is_read_without_consent(twin, identify, configure):
    """The page touches neither the user nor the cookie, and doesn't call IDENTIFY."""
    configure(IDENTIFY=f"{FUNCTIONS}.fail")
    request = twin.build_request(user=SimpleNamespace())
    assert identify(request, consent=Consent(identify=False)) == (Identity(), [])
    assert not {"_cookies", "COOKIES"} & vars(request).keys()


@pytest.mark.parametrize("name", ["answer", "aanswer"])
@pytest.mark.parametrize("found", [Identity("42", MAIL), Identity("device-7", anonymous=True)], ids=["user", "browser"])
def test_identify_of_the_site(identify, configure, name, found):
    """A sync or async IDENTIFY returns a customer, or an anonymous id of its own."""
    configure(IDENTIFY=f"{FUNCTIONS}.{name}")
    assert identify(answer=found) == (found, [])


@pytest.mark.parametrize(("found", "identifiers"), [(None, {}), (Identity(user_identifiers=MAIL), MAIL)])
def test_identify_without_a_customer_id(identify, configure, found, identifiers):
    """The visitor gets an anonymous id. MoEngage uses identifiers when it doesn't know an id (contract §2)."""
    configure(IDENTIFY=f"{FUNCTIONS}.answer")
    identity, cookies = identify(answer=found)
    assert (identity.anonymous, identity.user_identifiers, cookies) == (True, identifiers, ["moe_id"])


@pytest.mark.parametrize(
    ("customer_id", "expected"),
    [(42, "42"), (uuid.UUID(int=1), str(uuid.UUID(int=1))), ("x" * 256, "x" * 256), ("Zoë 1", "Zoë 1"), ("", None)],
)
def test_customer_id_becomes_text(identify, configure, customer_id, expected):
    """Integers and UUIDs are ids too. An empty string is not an id."""
    configure(IDENTIFY=f"{FUNCTIONS}.answer", ANONYMOUS_ID=False)
    assert identify(answer=Identity(customer_id)) == (Identity(expected), [])


@pytest.mark.parametrize(
    "customer_id", ["x" * 257, "4\n2", "4\x002", "\ud800", " ", True, 4.2, b"42", ["42"]], ids=ascii
)
def test_bad_customer_id_makes_the_visitor_unknown(identify, configure, caplog, customer_id):
    """A bad id is never changed, because two customers could become one."""
    configure(IDENTIFY=f"{FUNCTIONS}.answer")
    assert identify(answer=Identity(customer_id)) == (None, [])
    assert caplog.messages == [UNKNOWN.format("a customer id must have 1 to 256 printable characters")]


@pytest.mark.parametrize(
    ("customer_id", "warned"),
    [
        *[(text, True) for text in ("0", "7", "x", " 1 ", "None", "NULL", "Guest")],
        *[(text, True) for text in sorted(FORBIDDEN_IDS)],
        *[(text, False) for text in ("10", "user-1", "nullable", "guest7", "anon-1")],
    ],
)
def test_id_that_moengage_forbids(identify, configure, caplog, customer_id, warned):
    """The log says so once, without the id. The package sends the id nevertheless, because the site chose it."""
    configure(IDENTIFY=f"{FUNCTIONS}.answer")
    for _ in range(2):
        assert identify(answer=Identity(customer_id)) == (Identity(customer_id), [])
    assert len(caplog.messages) == warned
    assert all(f"forbids a customer id that comes from {FUNCTIONS}.answer:" in text for text in caplog.messages)


def test_bad_identifiers_are_left_out(identify, configure, caplog):
    """The good ones are sent, and the log says so once."""
    configure(IDENTIFY=f"{FUNCTIONS}.answer")
    bad = {"u_mb": 4670, "a": "x" * 257, "b": "\ud800", "c": "", "d": "a\nb", 5: "e", "f" * 300: "f"}
    for _ in range(2):
        assert identify(answer=Identity("42", MAIL | bad)) == (Identity("42", MAIL), [])
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("name", "answer", "failure"),
    [
        ("fail", None, "raised LookupError"),
        ("absent", None, "raised ImportError"),
        ("answer", "42", "returned a value of type str"),
        ("answer", Identity("42", None), "raised AttributeError"),
    ],
)
def test_failing_identify_makes_the_visitor_unknown(identify, configure, caplog, name, answer, failure):
    """The page sets no cookie, and the log gives the reason once, without the text of the exception."""
    configure(IDENTIFY=f"{FUNCTIONS}.{name}")
    assert [identify(answer=answer) for _ in range(2)] == [(None, []), (None, [])]
    assert caplog.messages == [UNKNOWN.format(f"{FUNCTIONS}.{name} {failure}")]
    assert caplog.records[0].exc_info is None

"""Who is asking."""

from __future__ import annotations

import re
import time
import uuid
from types import SimpleNamespace
from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.middleware import SessionMiddleware
from django.db import connection
from django.http import HttpResponse
from django.test import AsyncRequestFactory, RequestFactory

from django_moe_personalize.visitor.consent import Consent
from django_moe_personalize.visitor.identity import (
    Identity,
    aget_identity,
    delete_anonymous_cookie,
    get_identity,
    set_anonymous_cookie,
)

HERE = "tests.test_identity"
ANONYMOUS = re.compile(r"anon-[0-9a-f]{32}")
UNKNOWN = "The visitor is unknown, so nothing is fetched: "


def identify_ada(request):
    """Know the visitor and an e-mail address."""
    return Identity("42", {"u_em": "ada@example.com"})


async def identify_ada_later(request):
    """Know the same from a coroutine."""
    return identify_ada(request)


def identify_nobody(request):
    """Know of nobody."""


def identify_browser(request):
    """Know the browser by an id of the site's own."""
    return Identity("device-7", anonymous=True)


def identify_by_mail(request):
    """Know an e-mail address alone."""
    return Identity(user_identifiers={"u_em": "ada@example.com"})


def answer_as_asked(request):
    """Answer what the test put on the request."""
    return request.answer


def fail(request):
    """Raise an error that quotes the visitor."""
    raise LookupError("ada@example.com")


class Visit:
    """A browser that keeps its cookies, and pages that ask who it is."""

    def __init__(self, mode):
        self.mode = mode
        self.cookies = {}

    def build_request(self, *, secure=False, **attributes):
        factory = RequestFactory() if self.mode == "sync" else AsyncRequestFactory()
        factory.cookies.load(self.cookies)
        request = factory.get("/", secure=secure)
        for name, value in attributes.items():
            setattr(request, name, value)
        return request

    def identify(self, request, *, consent=None):
        ask = get_identity if self.mode == "sync" else async_to_sync(aget_identity)
        return ask(request, consent or Consent())

    def get(self, *, secure=False, **attributes):
        """Return the identity and the cookies that the page set."""
        request = self.build_request(secure=secure, **attributes)
        identity = self.identify(request)
        response = HttpResponse()
        set_anonymous_cookie(request, response)
        self.cookies.update({name: morsel.value for name, morsel in response.cookies.items()})
        return identity, response.cookies


@pytest.fixture(params=["sync", "async"])
def visit(request):
    """A browser, served both ways."""
    return Visit(request.param)


@pytest.fixture
def configure(settings):
    """Set options of MOE_PERSONALIZE."""

    def set_options(**options):
        settings.MOE_PERSONALIZE = {"SANDBOX": True, **options}

    set_options()
    return set_options


@pytest.fixture
def log_in(client):
    """Return a function that gives a request the session and the user of Django's middlewares."""

    def authenticate(request, user):
        client.force_login(user)
        request.COOKIES["sessionid"] = client.cookies["sessionid"].value
        SessionMiddleware(lambda _: HttpResponse()).process_request(request)
        AuthenticationMiddleware(lambda _: HttpResponse()).process_request(request)
        return request

    return authenticate


@pytest.mark.django_db
def test_a_user_who_is_signed_in_is_the_customer(visit, configure, log_in):
    """The primary key is the customer id, and no cookie is minted."""
    user = get_user_model().objects.create_user("ada")
    request = log_in(visit.build_request(), user)
    response = HttpResponse()
    assert visit.identify(request) == Identity(str(user.pk))
    set_anonymous_cookie(request, response)
    assert not response.cookies


@pytest.mark.django_db
def test_a_database_that_fails_makes_the_visitor_unknown(visit, configure, log_in, caplog):
    """A customer is not taken for an anonymous visitor because the user cannot be read."""
    request = log_in(visit.build_request(), get_user_model().objects.create_user("ada"))

    def refuse(*args):
        raise ConnectionError("ada@example.com")

    with connection.execute_wrapper(refuse):
        assert visit.identify(request) is None
    assert [record.getMessage() for record in caplog.records] == [f"{UNKNOWN}request.user raised ConnectionError."]


@pytest.mark.parametrize(
    "user",
    [None, AnonymousUser(), SimpleNamespace(is_authenticated=True, pk=None)],
    ids=["none", "anonymous", "unsaved"],
)
def test_a_user_who_is_nobody_gets_an_anonymous_id(visit, configure, user):
    """A site's own middleware may set the user alone."""
    identity, cookies = visit.get(user=user)
    assert identity.anonymous
    assert ANONYMOUS.fullmatch(identity.customer_id)
    assert list(cookies) == ["moe_id"]


def test_a_user_set_by_another_middleware_is_read(visit, configure):
    """Any primary key becomes text; there need be no ``auser``."""
    pk = uuid.uuid4()
    assert visit.get(user=SimpleNamespace(is_authenticated=True, pk=pk))[0] == Identity(str(pk))


def test_without_a_user_the_visitor_is_anonymous(visit, configure):
    """A site without authentication has anonymous visitors."""
    identity, _ = visit.get()
    assert ANONYMOUS.fullmatch(identity.customer_id)
    assert identity.anonymous
    assert identity.user_identifiers == {}


def test_an_anonymous_id_stays(visit, configure):
    """The cookie brings the id back, and is set once."""
    first, cookies = visit.get()
    second, cookies_again = visit.get()
    assert first == second
    assert list(cookies) == ["moe_id"]
    assert not cookies_again


def test_a_page_asks_twice_and_has_one_id(visit, configure):
    """The id minted for a request is the request's."""
    request = visit.build_request()
    assert visit.identify(request) == visit.identify(request)
    assert visit.identify(visit.build_request()) != visit.identify(request)


@pytest.mark.parametrize(("secure", "name"), [(False, "moe_id"), (True, "__Host-moe_id")])
def test_the_cookie_is_as_closed_as_can_be(visit, configure, secure, name):
    """HttpOnly, Lax, of the whole site, a year; over https Secure and bound to the host."""
    _, cookies = visit.get(secure=secure)
    morsel = cookies[name]
    assert morsel["httponly"] is True
    assert morsel["samesite"] == "Lax"
    assert morsel["path"] == "/"
    assert morsel["domain"] == ""
    assert morsel["max-age"] == 365 * 24 * 60 * 60
    assert bool(morsel["secure"]) is secure


def test_a_cookie_of_plain_http_is_nothing_over_https(visit, configure):
    """Who can write a plain cookie cannot choose the id of a secure page, under either name."""
    plain, _ = visit.get()
    visit.cookies["__Host-moe_id"] = visit.cookies["moe_id"]
    secure, cookies = visit.get(secure=True)
    assert secure.customer_id != plain.customer_id
    assert list(cookies) == ["__Host-moe_id"]


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value[:-1] + ("A" if value[-1] != "A" else "B"),
        lambda value: "anon-" + "0" * 32 + value[37:],
        lambda value: value.split(":")[0],
        lambda value: "",
        lambda value: ":::",
        lambda value: value + "\udcff",
        lambda value: value + "x" * 300,
    ],
    ids=["signature", "id", "unsigned", "empty", "colons", "not-ascii", "oversized"],
)
def test_a_changed_cookie_gives_a_new_id(visit, configure, change):
    """What is not ours is replaced, never an error."""
    first, cookies = visit.get()
    request = visit.build_request()
    request.COOKIES["moe_id"] = change(cookies["moe_id"].value)
    response = HttpResponse()
    second = visit.identify(request)
    set_anonymous_cookie(request, response)
    assert ANONYMOUS.fullmatch(second.customer_id)
    assert second.customer_id != first.customer_id
    assert list(response.cookies) == ["moe_id"]


def test_an_old_cookie_gives_a_new_id(visit, configure):
    """A year counts from the signature, whatever the browser kept."""
    with mock.patch("time.time", return_value=time.time() - 366 * 24 * 60 * 60):
        first, _ = visit.get()
    assert visit.get()[0] != first


def test_a_rotated_secret_key_keeps_the_id(visit, configure, settings):
    """SECRET_KEY_FALLBACKS are honoured."""
    first, _ = visit.get()
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another"
    assert visit.get()[0] == first
    settings.SECRET_KEY_FALLBACKS = []
    assert visit.get()[0] != first


def test_without_consent_nothing_is_read_or_minted(visit, configure):
    """The user, the cookie and the site's own callable stay untouched."""
    visit.get()
    configure(IDENTIFY=f"{HERE}.fail")
    request = visit.build_request(user=SimpleNamespace())
    response = HttpResponse()
    assert visit.identify(request, consent=Consent(identify=False)) == Identity()
    set_anonymous_cookie(request, response)
    assert not response.cookies
    assert "_cookies" not in vars(request)
    assert "COOKIES" not in vars(request)


def test_a_site_may_do_without_anonymous_ids(visit, configure):
    """With ANONYMOUS_ID off, nobody has no id and no cookie."""
    configure(ANONYMOUS_ID=False)
    assert visit.get() == (Identity(), HttpResponse().cookies)


@pytest.mark.parametrize("name", ["identify_ada", "identify_ada_later"])
def test_the_site_says_who_asks(visit, configure, name):
    """An IDENTIFY of either kind gives the id and the identifiers."""
    configure(IDENTIFY=f"{HERE}.{name}")
    identity, cookies = visit.get()
    assert identity == Identity("42", {"u_em": "ada@example.com"})
    assert not cookies


def test_the_site_may_know_of_nobody(visit, configure):
    """None is an anonymous visitor."""
    configure(IDENTIFY=f"{HERE}.identify_nobody")
    assert visit.get()[0].anonymous


def test_the_site_may_have_anonymous_ids_of_its_own(visit, configure):
    """An id given as anonymous is kept, and no other is minted."""
    configure(IDENTIFY=f"{HERE}.identify_browser")
    identity, cookies = visit.get()
    assert identity == Identity("device-7", anonymous=True)
    assert not cookies


def test_identifiers_alone_go_with_an_anonymous_id(visit, configure):
    """MoEngage falls back to identifiers when it does not know the id (contract §2)."""
    configure(IDENTIFY=f"{HERE}.identify_by_mail")
    identity, _ = visit.get()
    assert identity.user_identifiers == {"u_em": "ada@example.com"}
    assert ANONYMOUS.fullmatch(identity.customer_id)


@pytest.mark.parametrize(
    ("customer_id", "expected"),
    [(42, "42"), (uuid.UUID(int=1), str(uuid.UUID(int=1))), ("x" * 256, "x" * 256), ("Zoë 1", "Zoë 1"), ("", None)],
)
def test_an_id_becomes_text(visit, configure, customer_id, expected):
    """A number and a UUID are ids; an empty one is none."""
    configure(IDENTIFY=f"{HERE}.answer_as_asked", ANONYMOUS_ID=False)
    assert visit.get(answer=Identity(customer_id))[0] == Identity(expected)


@pytest.mark.parametrize(
    "customer_id", ["x" * 257, "4\n2", "4\x002", "\ud800", " ", True, 4.2, b"42", ["42"]], ids=ascii
)
def test_an_unusable_id_makes_the_visitor_unknown(visit, configure, caplog, customer_id):
    """An id is never mended: two customers could become one."""
    configure(IDENTIFY=f"{HERE}.answer_as_asked")
    identity, cookies = visit.get(answer=Identity(customer_id))
    assert identity is None
    assert not cookies
    assert [record.getMessage() for record in caplog.records] == [
        f"{UNKNOWN}the customer id is not a line of at most 256 characters."
    ]


def test_unusable_identifiers_are_left_out(visit, configure, caplog):
    """Short lines of text are kept, anything else is left out and logged once."""
    configure(IDENTIFY=f"{HERE}.answer_as_asked")
    unusable = {"u_mb": 4670, "a": "x" * 257, "b": "\ud800", "c": "", "d": "a\nb", 5: "e", "f" * 300: "f"}
    for _ in range(2):
        identity, _ = visit.get(answer=Identity("42", {"u_em": "ada@example.com", **unusable}))
        assert identity == Identity("42", {"u_em": "ada@example.com"})
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("path", "answer", "failure"),
    [
        ("fail", None, f"{HERE}.fail raised LookupError"),
        ("absent", None, f"{HERE}.absent raised ImportError"),
        ("answer_as_asked", "42", f"{HERE}.answer_as_asked returned a value of type str"),
        ("answer_as_asked", Identity("42", None), f"{HERE}.answer_as_asked raised AttributeError"),
    ],
)
def test_a_callable_that_fails_makes_the_visitor_unknown(visit, configure, caplog, path, answer, failure):
    """The page fetches nothing, sets no cookie, and the log says why once, without the visitor."""
    configure(IDENTIFY=f"{HERE}.{path}")
    for _ in range(2):
        identity, cookies = visit.get(answer=answer)
        assert identity is None
        assert not cookies
    assert [record.getMessage() for record in caplog.records] == [f"{UNKNOWN}{failure}."]
    assert caplog.records[0].exc_info is None


def test_the_repr_names_nobody():
    """An identity may stand in a traceback."""
    assert repr(Identity("42", {"u_em": "ada@example.com"})) == "Identity(anonymous=False)"


def test_anonymous_id_can_be_forgotten():
    """A site's "forget me" drops the id, whether it was set over https or not."""
    response = HttpResponse()
    delete_anonymous_cookie(response)
    assert {name: cookie["max-age"] for name, cookie in response.cookies.items()} == {"moe_id": 0, "__Host-moe_id": 0}
    assert response.cookies["__Host-moe_id"]["secure"]


class Impersonation:
    """Put another user on the request than the session's, as token authentication does."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        """Set the user."""
        request.user = User(pk=2)
        return self.get_response(request)


@pytest.mark.django_db
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_user_that_another_middleware_chose(mode, settings):
    """Who a middleware says is asking wins over the session, over WSGI and ASGI alike."""
    from tests.conftest import Visit

    settings.ROOT_URLCONF = "tests.site"
    settings.MIDDLEWARE = [*settings.MIDDLEWARE[:-1], f"{HERE}.Impersonation", settings.MIDDLEWARE[-1]]
    visit = Visit(mode)
    visit.log_in(User.objects.create(pk=1, username="ada"))
    assert "Grace" in visit("/tags/").content.decode()

"""The anonymous id of a browser, in a signed cookie."""

import json
import re
import time
from types import SimpleNamespace
from unittest import mock

import pytest
from django.core.signing import Signer, TimestampSigner
from django.http import HttpResponse
from django.test import RequestFactory

from django_moe_personalize.visitor.identity import (
    ANONYMOUS_COOKIE_AGE,
    GRANTED,
    SALT,
    delete_anonymous_cookie,
    get_identity,
    set_anonymous_cookie,
)
from django_moe_personalize.visitor.newcomers import SAMPLE_SIZE, Newcomers, count_lost

ANONYMOUS = re.compile(r"anon-[0-9a-f]{32}")
HOUR = 60 * 60


def sign(value, method=TimestampSigner.sign):
    """Return a signed cookie with ``value``; Signer.sign leaves out the time. The salt depends on Django's version."""
    response = HttpResponse()
    with mock.patch.object(TimestampSigner, "sign", method):
        response.set_signed_cookie("moe_id", value, salt=SALT)
    return response.cookies["moe_id"].value


class Browser:
    def __init__(self):
        self.cookies = {}

    def build_request(self, *, secure=False):
        factory = RequestFactory()
        factory.cookies.load(self.cookies)
        return factory.get("/", secure=secure)

    def get(self, *, secure=False, **cookies):
        """Return the anonymous id for a request, and the cookies that the page sets."""
        request = self.build_request(secure=secure)
        request.COOKIES.update(cookies)
        response = HttpResponse()
        customer_id = get_identity(request, GRANTED).customer_id
        set_anonymous_cookie(request, response)
        self.cookies.update({name: morsel.value for name, morsel in response.cookies.items()})
        return customer_id, response.cookies


@pytest.fixture
def browser():
    return Browser()


def test_id_stays_the_same(browser):
    """The cookie brings the id back, and is set once."""
    first, cookies = browser.get()
    assert ANONYMOUS.fullmatch(first)
    assert list(cookies) == ["moe_id"]
    assert browser.get() == (first, {})


def test_request_has_one_id(browser):
    """A page that asks twice gets the same id twice. Another browser gets another id."""
    request = browser.build_request()
    known = get_identity(request, GRANTED)
    assert get_identity(request, GRANTED) == known
    assert get_identity(browser.build_request(), GRANTED) != known


@pytest.mark.parametrize(("secure", "name"), [(False, "moe_id"), (True, "__Host-moe_id")])
def test_the_cookie_is_as_closed_as_can_be(browser, secure, name):
    """The cookie is HttpOnly, Lax, and valid for a year on the whole site. Over https it is Secure too."""
    _, cookies = browser.get(secure=secure)
    morsel = SimpleNamespace(**{key.replace("-", "_"): value for key, value in cookies[name].items()})
    assert (morsel.httponly, morsel.samesite, morsel.path, morsel.domain) == (True, "Lax", "/", "")
    assert (morsel.max_age, bool(morsel.secure)) == (365 * 24 * HOUR, secure)


def test_a_cookie_of_plain_http_is_nothing_over_https(browser):
    """An attacker who can write a plain cookie can't choose the id of a secure page, under either name."""
    plain, _ = browser.get()
    browser.cookies["__Host-moe_id"] = browser.cookies["moe_id"]
    secure, cookies = browser.get(secure=True)
    assert secure != plain
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
        # Another version of the package may sign these.
        lambda value: sign(""),
        lambda value: sign('["anon-1"]'),
        lambda value: sign("anon-1", Signer.sign),
        lambda value: sign("anon-1:-", Signer.sign),
    ],
    ids=["sign", "id", "unsigned", "empty", "colons", "not-ascii", "oversized", "no-id", "json", "untimed", "time"],
)
def test_a_changed_cookie_gives_a_new_id(browser, change):
    """A cookie that this site didn't sign is replaced, and is never an error."""
    first, cookies = browser.get()
    second, replaced = browser.get(moe_id=change(cookies["moe_id"].value))
    assert ANONYMOUS.fullmatch(second)
    assert second != first
    assert list(replaced) == ["moe_id"]


def test_old_cookie_gives_a_new_id(browser):
    """The year counts from the signature, even if the browser keeps the cookie longer."""
    with mock.patch("time.time", return_value=time.time() - ANONYMOUS_COOKIE_AGE - 24 * HOUR):
        first, _ = browser.get()
    assert browser.get()[0] != first


def test_secret_key_that_is_replaced(browser, settings):
    """A cookie is valid as long as its key is SECRET_KEY or a fallback."""
    known, _ = browser.get()
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another", [settings.SECRET_KEY]
    assert browser.get() == (known, {})
    settings.SECRET_KEY_FALLBACKS = []
    assert browser.get()[0] != known


def test_anonymous_id_can_be_deleted():
    """A "forget me" view deletes all cookies: the id over http, the id over https, and the query parameters."""
    response = HttpResponse()
    delete_anonymous_cookie(response)
    ages = {name: cookie["max-age"] for name, cookie in response.cookies.items()}
    assert ages == {"moe_id": 0, "__Host-moe_id": 0, "moe_query": 0}
    assert response.cookies["__Host-moe_id"]["secure"]


@pytest.mark.parametrize("number", [0, 50, SAMPLE_SIZE, 20_000])
def test_share_of_new_ids_that_never_come_back(number):
    """The share is right within a few percent, whichever process an id comes back to. The samples are bounded."""
    processes = [Newcomers() for _ in range(4)]
    for index in range(number):
        processes[index % 4].add_given(f"anon-{index}")
        if index % 5 < 2:
            processes[index // 5 % 4].add_returned(f"anon-{index}")
        # Visitors of former processes return too.
        processes[index % 3].add_returned(f"anon-old-{index}")
    samples = [process.describe() for process in processes]
    assert all(len(ids) <= SAMPLE_SIZE for sample in samples for ids in sample.values())
    assert "anon" not in json.dumps(samples)
    count, lost = count_lost(samples)
    assert count == number if number < SAMPLE_SIZE else count > 200
    assert lost == pytest.approx(0.6 * count, abs=0.1 * count)

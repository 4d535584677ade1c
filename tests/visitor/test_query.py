"""Query parameters as attributes, and the cookie that remembers them."""

import json
import tempfile
from http.cookies import SimpleCookie
from urllib.parse import urlencode

import pytest
from django.contrib.sessions.models import Session
from django.http import HttpResponse
from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize.visitor.attributes import (
    MAX_QUERY_LENGTH,
    acollect_attributes,
    collect_attributes,
    read_query,
    set_query_cookie,
)
from django_moe_personalize.visitor.identity import GRANTED, QUERY_COOKIE, Consent
from tests.visitor.conftest import NOW

UTM = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")


BUILT_IN = {"DAY_OF_THE_WEEK", "TIME_OF_THE_DAY", "USER_IP_ADDRESS"}


def keep_parameters(attributes):
    """Return the attributes that come from the query or its cookie."""
    return {name: value for name, value in attributes.items() if name not in BUILT_IN}


def read(raw, names=UTM):
    """Return the parameters in a raw query string."""
    return dict(read_query(raw, tuple(names)))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("utm_source=a&utm_medium=b", {"utm_source": "a", "utm_medium": "b"}),
        ("utm_source=a&utm_source=b", {"utm_source": "b"}),
        ("utm_source=a&utm_source=", {"utm_source": "a"}),
        ("utm%5Fsource=a", {"utm_source": "a"}),
        ("utm_source=a+b%20c", {"utm_source": "a b c"}),
        ("utm_source=%C3%A9", {"utm_source": "é"}),
        ("utm_source=%ff", {"utm_source": "\ufffd"}),
        ("utm_source=%00%0a", {}),
        ("utm_source", {}),
        ("=utm_source&&&", {}),
        ("USER_AGENT=x&experience_key=y&other=z", {}),
        ("utm_source=" + "%C3%A9" * 300, {"utm_source": "é" * 256}),
    ],
    ids=range(12),
)
def test_parameters_of_a_query(collect, query, expected):
    """The last non-empty value of each wanted parameter is sent, decoded, cleaned and cut."""
    assert keep_parameters(collect(f"/?{query}")) == expected


def test_query_parameters_setting(collect, configure):
    """QUERY_PARAMETERS replaces the default list. With an empty list the cookie is not read."""
    configure(QUERY_PARAMETERS=["ref"])
    assert keep_parameters(collect("/?ref=a&utm_source=b")) == {"ref": "a"}
    configure(QUERY_PARAMETERS=[])
    cookie = {"Cookie": f"{QUERY_COOKIE}=utm_source=c"}
    assert keep_parameters(collect("/?ref=a&utm_source=b", headers=cookie)) == {}


@pytest.mark.parametrize("raw", ["utm_source=é".encode().decode("latin-1"), "utm_source=é", "utm_source=€é"])
def test_query_with_unencoded_characters(raw):
    """WSGI servers pass bytes as latin-1, and ASGI servers decode them."""
    assert read(raw)["utm_source"].endswith("é")


def test_long_query_is_cut_between_parameters():
    """The parameter at the cut is left out, because half of its value would be another value."""
    room = MAX_QUERY_LENGTH - len("utm_source=mail&x=&utm_campaign=spring")
    query = f"utm_source=mail&x={'x' * room}&utm_campaign=spring-sale"
    assert read(query) == {"utm_source": "mail"}
    assert read(query[:-5]) == {"utm_source": "mail", "utm_campaign": "spring"}
    assert read("utm_source=" + "x" * 2 * room) == {}


@given(
    st.one_of(
        st.text(), st.text(alphabet="utm_source=&%+c3a9\xe9\udcff"), st.binary().map(lambda b: b.decode("latin-1"))
    )
)
def test_any_query_can_be_read(raw):
    """No query raises an exception, and all values can be sent."""
    found = read(f"{raw}&utm_source={raw}")
    json.dumps(found, ensure_ascii=False).encode()
    assert all(0 < len(value) <= 256 for value in found.values())


# The cookie.


def browse(twin, cookies, path, consent=GRANTED, **options):
    """Return the query parameters that a page sends. ``cookies`` are those of the browser, and change as in one."""
    request, response = twin.build_request(path, **options), HttpResponse()
    request.COOKIES.update({name: morsel.value for name, morsel in cookies.items()})
    found = twin.call(collect_attributes, acollect_attributes, request, now=NOW, consent=consent)
    set_query_cookie(request, response)
    for name, morsel in response.cookies.items():
        cookies.pop(name, None)
        if morsel.value:
            cookies[name] = morsel.value
            cookies[name].update(dict(morsel))
    return keep_parameters(found), bool(response.cookies)


def test_parameters_are_remembered(twin):
    """Later pages send them too. A new campaign replaces all of them, and the same one sets no cookie."""
    cookies = SimpleCookie()
    for query, sent, sets_cookie in (
        ("/?utm_source=a%26&utm_medium=%C3%A9", {"utm_source": "a&", "utm_medium": "é"}, True),
        ("/", {"utm_source": "a&", "utm_medium": "é"}, False),
        ("/?other=1&utm_source=", {"utm_source": "a&", "utm_medium": "é"}, False),
        ("/?utm_source=c", {"utm_source": "c"}, True),
        ("/?utm_source=c", {"utm_source": "c"}, False),
        ("/", {"utm_source": "c"}, False),
    ):
        assert browse(twin, cookies, query) == (sent, sets_cookie)


@pytest.mark.parametrize("secure", [True, False])
def test_cookie_with_parameters(twin, secure):
    """It ends with the browser, scripts can't read it, and over https it isn't sent over http."""
    cookies = SimpleCookie()
    browse(twin, cookies, "/?utm_source=a", secure=secure)
    given = {name: value for name, value in cookies[QUERY_COOKIE].items() if value}
    assert given == {"path": "/", "httponly": True, "samesite": "Lax"} | ({"secure": True} if secure else {})


def test_nothing_is_stored_or_recalled_without_consent(twin):
    """The parameters of the page itself are sent. Those from before the visitor's refusal aren't."""
    cookies, refusal = SimpleCookie(), Consent(identify=False)
    assert browse(twin, cookies, "/?utm_source=a", refusal) == ({"utm_source": "a"}, False)
    browse(twin, cookies, "/?utm_source=a")
    assert browse(twin, cookies, "/", refusal) == ({}, False)


def test_large_parameters_are_sent_but_not_remembered(twin):
    """Headers have little room. The earlier campaign is forgotten, because the visitor has left it."""
    cookies, path = SimpleCookie(), "/?" + urlencode(dict.fromkeys(UTM, "x" * 256))
    browse(twin, cookies, "/?utm_source=a")
    found, _ = browse(twin, cookies, path)
    assert (len(found), cookies) == (5, {})


@pytest.mark.parametrize("text", ["text", "=", "%", "utm_source=" + "x" * 2000, "other=1", "utm_source=%00", "\xff"])
def test_foreign_texts_in_the_cookie_are_ignored(twin, text):
    """Only cleaned values with the wanted names are sent, as from an address."""
    request = twin.build_request()
    request.COOKIES[QUERY_COOKIE] = text
    found = twin.call(collect_attributes, acollect_attributes, request, now=NOW, consent=GRANTED)
    assert all(len(value) <= 256 for name, value in found.items() if name.startswith("utm"))
    assert "other" not in found


@pytest.mark.django_db
@pytest.mark.urls("tests.site")
@pytest.mark.parametrize("backend", ["db", "cache", "cached_db", "file", "signed_cookies"])
def test_campaign_makes_no_session(visit, upstream, settings, backend):
    """With each backend, visits from a campaign make no session, and the next page still has the campaign."""
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{backend}"
    settings.SESSION_FILE_PATH = tempfile.gettempdir()
    for number in range(3):
        visit.client.cookies.clear()
        response = visit(f"/read/?utm_source=mail-{number}")
        assert response.headers["Cache-Control"] == "private, no-store"
    assert set(visit.client.cookies) == {"moe_id", QUERY_COOKIE}
    assert not Session.objects.exists()
    visit("/read/")
    assert upstream.fetches[-1]["utm_source"] == "mail-2"

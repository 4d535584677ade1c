"""Query parameters as attributes, and their memory in the session."""

import json
from urllib.parse import urlencode

import pytest
from django.contrib.sessions.backends import db, signed_cookies
from django.contrib.sessions.models import Session
from django.db import connection
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize.visitor.attributes import (
    MAX_QUERY_LENGTH,
    SESSION_KEY,
    acollect_attributes,
    collect_attributes,
    read_query,
)
from django_moe_personalize.visitor.identity import GRANTED, Consent

UTM = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")


@pytest.fixture
def collect(twin):
    """Return a function that builds a request and returns the attributes from its query and its session."""

    def collect(path="/", *, consent=GRANTED, **options):
        request = twin.build_request(path, **options)
        found = twin.call(collect_attributes, acollect_attributes, request, now=timezone.now(), consent=consent)
        return {name: value for name, value in found.items() if name.startswith(("utm", "ref"))}

    return collect


def read(raw, names=UTM):
    """Return the parameters in a raw query string."""
    return read_query({"QUERY_STRING": raw}, names)


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
    assert collect(f"/?{query}") == expected


def test_query_parameters_setting(collect, configure):
    """QUERY_PARAMETERS replaces the default list. With an empty list the session is not read."""
    configure(QUERY_PARAMETERS=["ref"])
    assert collect("/?ref=a&utm_source=b") == {"ref": "a"}
    configure(QUERY_PARAMETERS=[])
    # Without a database this session can't be read.
    assert collect("/?ref=a&utm_source=b", session=db.SessionStore("k" * 32)) == {}


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


# The session.

STORES = pytest.mark.parametrize("backend", [db, signed_cookies], ids=["db", "signed_cookies"])


@STORES
@pytest.mark.django_db
def test_parameters_are_remembered_for_the_session(collect, backend):
    """Later pages send them too. A new campaign replaces all of them, and the same one writes nothing.

    Django sets the cookie of a modified session: of a new one, and of a changed one in a signed cookie.
    """
    key = None
    for query, sent, is_modified in (
        ("/?utm_source=a&utm_medium=b", {"utm_source": "a", "utm_medium": "b"}, True),
        ("/", {"utm_source": "a", "utm_medium": "b"}, False),
        ("/?utm_source=c", {"utm_source": "c"}, backend is signed_cookies),
        ("/?utm_source=c", {"utm_source": "c"}, False),
        ("/", {"utm_source": "c"}, False),
    ):
        session = backend.SessionStore(key)
        assert collect(query, session=session) == sent
        assert session.modified is is_modified
        key = session.session_key


@pytest.mark.parametrize(
    ("path", "consent"), [("/", GRANTED), ("/?other=1", GRANTED), ("/?utm_source=a", Consent(identify=False))]
)
def test_session_is_not_touched_without_need(collect, path, consent):
    """Without parameters and a session, or without consent, the page doesn't get ``Vary: Cookie``."""
    session = db.SessionStore()
    collect(path, session=session, consent=consent)
    assert (session.accessed, session.modified) == (False, False)


@pytest.mark.django_db
def test_nothing_is_recalled_without_consent(collect):
    """Parameters from before the visitor's refusal are not sent."""
    session = db.SessionStore()
    collect("/?utm_source=a", session=session)
    session = db.SessionStore(session.session_key)
    assert collect(session=session, consent=Consent(identify=False)) == {}
    assert not session.accessed


@pytest.mark.django_db
def test_session_that_the_site_modified_is_saved_by_django(collect):
    """The package doesn't save the changes of a view that is still running."""
    session = db.SessionStore()
    session["cart"] = [1]
    collect("/?utm_source=a", session=session)
    assert session.session_key is None
    assert session[SESSION_KEY] == {"utm_source": "a"}


@pytest.mark.django_db
def test_large_parameters_are_sent_but_not_remembered(collect):
    """A session in a cookie has little room."""
    session = signed_cookies.SessionStore()
    path = "/?" + urlencode(dict.fromkeys(UTM, "x" * 256))
    assert len(collect(path, session=session)) == 5
    assert not session.modified


@pytest.mark.parametrize("stored", ["text", ["utm_source"], {"utm_source": 5, "utm_medium": "b", "ref": "c"}, None])
@pytest.mark.django_db
def test_foreign_values_in_the_session_are_ignored(collect, stored):
    """Only texts with the wanted names are sent."""
    session = db.SessionStore()
    session[SESSION_KEY] = stored
    session.save()
    expected = {"utm_medium": "b"} if isinstance(stored, dict) else {}
    assert collect(session=db.SessionStore(session.session_key)) == expected


def refuse(execute, sql, *args):
    """Refuse any statement."""
    raise ConnectionError("ada@example.com")


def refuse_writing(execute, sql, *args):
    """Refuse statements that a read-only database refuses."""
    return execute(sql, *args) if sql.startswith("SELECT") else refuse(execute, sql)


@pytest.mark.django_db
def test_session_that_cannot_be_read(collect, caplog):
    """The parameters of the query are sent, and the log says so once."""
    with connection.execute_wrapper(refuse):
        for _ in range(2):
            session = db.SessionStore("k" * 32)
            assert collect("/?utm_source=a", session=session) == {"utm_source": "a"}
            assert not session.modified
    assert caplog.messages == ["The session failed (ConnectionError), so query parameters are not remembered."]


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.django_db
def test_session_that_cannot_be_written(collect, caplog, is_known):
    """It stays unmodified, because Django would turn another failure after the view into an error page."""
    session = db.SessionStore()
    if is_known:
        session["cart"] = [1]
        session.save()
        session = db.SessionStore(session.session_key)
    with connection.execute_wrapper(refuse_writing):
        assert collect("/?utm_source=a", session=session) == {"utm_source": "a"}
    assert not session.modified
    assert dict(session.items()) == ({"cart": [1]} if is_known else {})
    assert len(caplog.messages) == 1


@pytest.mark.django_db
def test_session_that_another_request_ended(collect):
    """A logout elsewhere, between reading and saving, doesn't fail this page."""
    session = db.SessionStore()
    session["cart"] = [1]
    session.save()
    session = db.SessionStore(session.session_key)
    assert session["cart"] == [1]
    Session.objects.all().delete()
    assert collect("/?utm_source=a", session=session) == {"utm_source": "a"}
    assert not session.modified
    assert not Session.objects.exists()


def test_session_of_another_type(collect):
    """A plain dict in place of a session does no harm."""
    assert collect("/?utm_source=a", session={}) == {"utm_source": "a"}

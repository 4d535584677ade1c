"""In-session attributes: what is sent, what is left out, what is remembered."""

from __future__ import annotations

import enum
import json
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import parse_qsl, quote, urlencode
from zoneinfo import ZoneInfo

import pytest
from asgiref.sync import async_to_sync
from django.contrib.sessions.backends import db, signed_cookies
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import AsyncRequestFactory, RequestFactory
from django.utils import translation
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe
from hypothesis import example, given
from hypothesis import strategies as st

from django_moe_personalize.visitor import attributes
from django_moe_personalize.visitor.attributes import (
    acollect_attributes,
    apply_limits,
    build_day_and_hour,
    clean_text,
    collect_attributes,
    split_query,
)
from django_moe_personalize.visitor.consent import Consent

HERE = "tests.test_attributes"
NOW = datetime(2026, 11, 22, 23, 30, tzinfo=UTC)
DAY_AND_HOUR = {"DAY_OF_THE_WEEK": "Sunday", "TIME_OF_THE_DAY": "23"}
UTM = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")


class Shade(enum.StrEnum):
    """A text that is not only a text."""

    RED = "red"


def describe_cart(request):
    """Give values of every kind that is sent."""
    return {
        "cart_value": Decimal("500.10"),
        "cart_items": 3,
        "cart_weight": 1.5,
        "member": True,
        "guest": False,
        "shade": Shade.RED,
        "greeting": mark_safe("Hej"),
        "coupon": None,
        "note": " \x00 ",
    }


async def describe_page(request):
    """Give a value from a coroutine."""
    return {"current_page": "home", "cart_items": "4"}


def give_asked(request):
    """Give what the test put on the request."""
    return request.answer


def fail(request):
    """Raise an error that quotes the visitor."""
    raise LookupError("ada@example.com")


class Visit:
    """Requests collected from, sync or async."""

    def __init__(self, mode):
        self.mode = mode

    def build_request(self, path="/", *, session=None, answer=None, meta=(), **headers):
        factory = RequestFactory() if self.mode == "sync" else AsyncRequestFactory()
        request = factory.get(path, headers=headers)
        request.META.update(meta)
        request.answer = answer
        if session is not None:
            request.session = session
        return request

    def collect(self, path="/", *, consent=None, **options):
        """Return all attributes of a request."""
        collect = collect_attributes if self.mode == "sync" else async_to_sync(acollect_attributes)
        return collect(self.build_request(path, **options), now=NOW, consent=consent or Consent())

    def collect_own(self, path="/", **options):
        """Return the attributes besides day, hour and address."""
        ours = {*DAY_AND_HOUR, "USER_IP_ADDRESS"}
        return {name: value for name, value in self.collect(path, **options).items() if name not in ours}


@pytest.fixture(params=["sync", "async"])
def visit(request):
    """Requests of either kind."""
    return Visit(request.param)


@pytest.fixture(autouse=True)
def configure(settings):
    """Set options of MOE_PERSONALIZE."""

    def set_options(**options):
        settings.MOE_PERSONALIZE = {"SANDBOX": True, **options}

    set_options()
    return set_options


def messages(caplog):
    """Return what was logged."""
    return [record.getMessage() for record in caplog.records]


# Built-ins.


def test_the_built_ins(visit):
    """Agent, address, day, hour and the query are there without any setting, in this order."""
    collected = visit.collect("/?utm_source=news&q=shoes", user_agent="Firefox", meta={"REMOTE_ADDR": "8.8.8.8"})
    assert list(collected.items()) == [
        ("USER_AGENT", "Firefox"),
        ("USER_IP_ADDRESS", "8.8.8.8"),
        ("DAY_OF_THE_WEEK", "Sunday"),
        ("TIME_OF_THE_DAY", "23"),
        ("utm_source", "news"),
    ]


def test_what_is_not_there_is_left_out(visit):
    """A request without an agent, a peer and a query has the time alone."""
    assert visit.collect(meta={"REMOTE_ADDR": ""}) == DAY_AND_HOUR


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ("x" * 600, "x" * 512),
        (" Fire\x00fox\r\nX-Evil: 1 ", "FirefoxX-Evil: 1"),
        ("F\xc3\xb6x", "F\xc3\xb6x"),
        ("F\udcc3\udcb6x", "Fx"),
        ("F\u2028x\x85", "Fx"),
    ],
    ids=ascii,
)
def test_a_user_agent_fits_on_a_line_of_utf_8(visit, agent, expected):
    """As it came, but for what would break a line or an encoding, and cut."""
    assert visit.collect_own(meta={"HTTP_USER_AGENT": agent})["USER_AGENT"] == expected


@pytest.mark.parametrize(
    ("precision", "identify", "address"),
    [
        ("full", True, "8.8.4.4"),
        ("full", False, "8.8.4.0"),
        ("truncated", True, "8.8.4.0"),
        ("truncated", False, "8.8.4.0"),
        ("off", True, None),
        ("off", False, None),
    ],
)
def test_the_address_is_as_precise_as_allowed(visit, configure, precision, identify, address):
    """A visitor who is not to be identified is not told by an address either."""
    configure(IP_PRECISION=precision)
    collected = visit.collect(consent=Consent(identify=identify), meta={"REMOTE_ADDR": "8.8.4.4"})
    assert collected.get("USER_IP_ADDRESS") == address


def test_the_address_is_walked_through_trusted_proxies(visit, configure):
    """TRUSTED_PROXIES is taken from the settings."""
    configure(TRUSTED_PROXIES=["127.0.0.0/8"])
    collected = visit.collect(meta={"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "1.2.3.4, 8.8.4.4"})
    assert collected["USER_IP_ADDRESS"] == "8.8.4.4"


def test_day_and_hour_are_of_the_zone_of_the_settings(visit, configure):
    """Both turn at midnight there, and are English in every locale."""
    configure(TIME_ZONE="Asia/Kolkata")
    with translation.override("de"):
        collected = visit.collect()
    assert (collected["DAY_OF_THE_WEEK"], collected["TIME_OF_THE_DAY"]) == ("Monday", "05")


@given(st.datetimes(timezones=st.timezones(), min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1)))
def test_day_and_hour_are_what_the_vendor_takes(moment):
    """A name of a day and two digits, the same for one moment in any zone."""
    built = build_day_and_hour(moment, ZoneInfo("UTC"))
    assert built == build_day_and_hour(moment.astimezone(ZoneInfo("Asia/Tokyo")), ZoneInfo("UTC"))
    assert built["DAY_OF_THE_WEEK"] == moment.astimezone(UTC).strftime("%A")
    assert built["TIME_OF_THE_DAY"] == moment.astimezone(UTC).strftime("%H")


# The query.


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
        ("utm_source=" + "%C3%A9" * 1000, {"utm_source": "é" * 256}),
        ("a&" * 2000 + "utm_source=late", {}),
        ("%41" * 200 + "=a", {}),
    ],
    ids=range(14),
)
def test_the_wanted_parameters_are_taken(visit, query, expected):
    """The last value that is not empty, decoded, clean and cut; nothing that was not asked for."""
    assert visit.collect_own(f"/?{query}") == expected


def test_parameters_of_the_sites_choice(visit, configure):
    """QUERY_PARAMETERS replaces the five."""
    configure(QUERY_PARAMETERS=["ref"])
    assert visit.collect_own("/?ref=a&utm_source=b") == {"ref": "a"}
    configure(QUERY_PARAMETERS=[])
    assert visit.collect_own("/?ref=a&utm_source=b") == {}


@pytest.mark.parametrize("raw", ["utm_source=é".encode().decode("latin-1"), "utm_source=é", "utm_source=€é"])
def test_a_query_that_was_not_encoded_is_read(raw):
    """Bytes come as latin-1 under WSGI and decoded under ASGI."""
    assert split_query(raw, UTM)["utm_source"].endswith("é")


@given(st.lists(st.tuples(st.one_of(st.sampled_from(UTM), st.text(max_size=20)), st.text(max_size=200))))
@example([("utm_source", "&=+%20;")])
def test_a_well_formed_query_is_read_as_the_standard_library_does(pairs):
    """The split by hand gives what ``parse_qsl`` gives."""
    pairs = [(name, value) for name, value in pairs if not any("\ud800" <= c <= "\udfff" for c in name + value)]
    query = urlencode(pairs)
    expected = {name: value for name, value in parse_qsl(query) if name in UTM}
    assert split_query(query, UTM) == expected


def test_query_ends_with_a_whole_parameter():
    """What is beyond the bound is left out; the value that the bound would cut is another's, not a shorter one."""
    room = attributes.MAX_QUERY_LENGTH - len("utm_source=mail&x=&utm_campaign=spring")
    query = f"utm_source=mail&x={'x' * room}&utm_campaign=spring-sale"
    assert attributes.read_query({"QUERY_STRING": query}, UTM) == {"utm_source": "mail"}
    assert attributes.read_query({"QUERY_STRING": query[:-5]}, UTM) == {"utm_source": "mail", "utm_campaign": "spring"}
    assert attributes.read_query({"QUERY_STRING": "utm_source=" + "x" * 2 * room}, UTM) == {}


@given(
    st.one_of(
        st.text(), st.text(alphabet="utm_source=&%+c3a9\xe9\udcff"), st.binary().map(lambda b: b.decode("latin-1"))
    )
)
def test_any_query_is_read(raw):
    """Nothing a visitor writes raises, and what is kept can be sent."""
    read = attributes.read_query({"QUERY_STRING": f"{raw}&utm_source={raw}"}, UTM)
    json.dumps(read, ensure_ascii=False).encode()
    assert all(0 < len(value) <= 256 for value in read.values())


# The session.


STORES = pytest.mark.parametrize("backend", [db, signed_cookies], ids=["db", "signed_cookies"])


@STORES
@pytest.mark.django_db
def test_parameters_are_remembered_for_the_session(visit, backend):
    """A later page without them sends them still; a new campaign replaces the old one whole."""
    session = backend.SessionStore()
    assert visit.collect_own("/?utm_source=a&utm_medium=b", session=session) == {"utm_source": "a", "utm_medium": "b"}
    assert session.modified
    session = backend.SessionStore(session.session_key)
    assert visit.collect_own(session=session) == {"utm_source": "a", "utm_medium": "b"}
    assert not session.modified
    session = backend.SessionStore(session.session_key)
    assert visit.collect_own("/?utm_source=c", session=session) == {"utm_source": "c"}
    session = backend.SessionStore(session.session_key)
    assert visit.collect_own(session=session) == {"utm_source": "c"}


@STORES
@pytest.mark.django_db
def test_what_is_remembered_already_is_not_written_again(visit, backend):
    """A page with the same parameters leaves the session unmodified."""
    session = backend.SessionStore()
    visit.collect("/?utm_source=a", session=session)
    session = backend.SessionStore(session.session_key)
    assert visit.collect_own("/?utm_source=a", session=session) == {"utm_source": "a"}
    assert not session.modified


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/", {}),
        ("/?other=1", {}),
        ("/?utm_source=a", {"consent": Consent(identify=False)}),
    ],
)
def test_a_session_is_not_touched_for_nothing(visit, path, options):
    """No parameters and no session, or no consent to identify: no read, no write, no Vary: Cookie."""
    session = db.SessionStore()
    visit.collect(path, session=session, **options)
    assert (session.accessed, session.modified) == (False, False)


@pytest.mark.django_db
def test_without_consent_nothing_is_recalled(visit):
    """What was remembered before the visitor said no is not sent."""
    session = db.SessionStore()
    visit.collect("/?utm_source=a", session=session)
    session = db.SessionStore(session.session_key)
    assert visit.collect_own(session=session, consent=Consent(identify=False)) == {}
    assert not session.accessed


def test_without_wanted_parameters_the_session_is_not_read(visit, configure):
    """A site that takes no parameters has none to recall; reading would hit the database here."""
    configure(QUERY_PARAMETERS=[])
    assert visit.collect_own("/?utm_source=a", session=db.SessionStore("k" * 32)) == {}


@pytest.mark.django_db
def test_a_session_the_site_modified_is_left_to_django(visit):
    """What the view has changed is not saved before the view is done."""
    session = db.SessionStore()
    session["cart"] = [1]
    visit.collect("/?utm_source=a", session=session)
    assert session.session_key is None
    assert session[attributes.SESSION_KEY] == {"utm_source": "a"}


@pytest.mark.django_db
def test_too_much_is_sent_but_not_remembered(visit):
    """A session in a cookie has little room."""
    session = signed_cookies.SessionStore()
    path = "/?" + urlencode(dict.fromkeys(UTM, "é" * 256))
    assert len(visit.collect_own(path, session=session)) == 5
    assert not session.modified


@pytest.mark.parametrize("stored", ["text", ["utm_source"], {"utm_source": 5, "utm_medium": "b", "ref": "c"}, None])
@pytest.mark.django_db
def test_what_another_wrote_into_the_session_does_no_harm(visit, stored):
    """Only texts under wanted names are recalled."""
    session = db.SessionStore()
    session[attributes.SESSION_KEY] = stored
    session.save()
    expected = {"utm_medium": "b"} if isinstance(stored, dict) else {}
    assert visit.collect_own(session=db.SessionStore(session.session_key)) == expected


def refuse(execute, sql, *args):
    """Refuse any statement."""
    raise ConnectionError("ada@example.com")


def refuse_writing(execute, sql, *args):
    """Refuse what a read-only database refuses."""
    if not sql.startswith("SELECT"):
        raise ConnectionError("ada@example.com")
    return execute(sql, *args)


@pytest.mark.django_db
def test_a_session_that_cannot_be_read_is_a_miss(visit, caplog):
    """The query's own parameters are sent, the log says so once."""
    with connection.execute_wrapper(refuse):
        for _ in range(2):
            session = db.SessionStore("k" * 32)
            assert visit.collect_own("/?utm_source=a", session=session) == {"utm_source": "a"}
            assert not session.modified
    assert messages(caplog) == ["The session failed (ConnectionError), so query parameters are not remembered."]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.django_db
def test_a_session_that_cannot_be_written_is_left_as_it_was(visit, caplog, known):
    """Django is not made to save it after the view, where a failure is the page's."""
    session = db.SessionStore()
    if known:
        session["cart"] = [1]
        session.save()
        session = db.SessionStore(session.session_key)
    with connection.execute_wrapper(refuse_writing):
        assert visit.collect_own("/?utm_source=a", session=session) == {"utm_source": "a"}
    assert not session.modified
    assert dict(session.items()) == ({"cart": [1]} if known else {})
    assert len(messages(caplog)) == 1


@pytest.mark.django_db
def test_a_session_that_another_request_ended_is_left_alone(visit):
    """A log-out elsewhere, between reading and saving, is no error of this page."""
    session = db.SessionStore()
    session["cart"] = [1]
    session.save()
    session = db.SessionStore(session.session_key)
    assert session["cart"] == [1]
    Session.objects.all().delete()
    assert visit.collect_own("/?utm_source=a", session=session) == {"utm_source": "a"}
    assert not session.modified
    assert not Session.objects.exists()


def test_a_session_of_another_make_is_a_miss(visit):
    """A plain dict in place of a session does no harm."""
    assert visit.collect_own("/?utm_source=a", session={}) == {"utm_source": "a"}


# The site's own.


def test_custom_attributes_are_added_as_text(visit, configure):
    """Numbers and booleans become text, what is empty is left out, a later provider wins."""
    configure(ATTRIBUTES=[f"{HERE}.describe_cart", f"{HERE}.describe_page"])
    collected = visit.collect_own("/?utm_source=a")
    assert collected == {
        "utm_source": "a",
        "cart_value": "500.10",
        "cart_items": "4",
        "cart_weight": "1.5",
        "member": "true",
        "guest": "false",
        "shade": "red",
        "greeting": "Hej",
        "current_page": "home",
    }
    assert {type(value) for value in collected.values()} == {str}


@pytest.mark.parametrize(
    "name", ["identifiers", "experience_key", "USER_IP_ADDRESS", "USER_AGENT", "DAY_OF_THE_WEEK", "TIME_OF_THE_DAY"]
)
def test_a_field_of_the_vendors_is_refused(visit, configure, caplog, name):
    """The body is flat, so a custom attribute could pose as a field (contract §2)."""
    configure(ATTRIBUTES=[f"{HERE}.give_asked"])
    expected = visit.collect(answer={"a": "1"})
    for _ in range(2):
        assert visit.collect(answer={name: "x", "a": "1"}) == expected
    assert messages(caplog) == [f"{HERE}.give_asked may not give {name}, a field of MoEngage's own."]


@pytest.mark.parametrize("name", ["", "1a", "a b", "é", "a\n", "a" * 65, "-a", 5, None, ("a",)], ids=ascii)
def test_a_name_out_of_shape_is_refused(visit, configure, caplog, name):
    """The name is not logged: it may be what a visitor wrote."""
    configure(ATTRIBUTES=[f"{HERE}.give_asked"])
    for _ in range(2):
        assert visit.collect_own(answer={name: "x", "a": "1"}) == {"a": "1"}
    (message,) = messages(caplog)
    assert message.startswith(f"{HERE}.give_asked gives an attribute whose name is not like ")


@pytest.mark.parametrize("name", ["a", "_a", "A1.b-c_d", "a" * 64])
def test_a_name_in_shape_is_taken(visit, configure, name):
    """Letters, digits, underscore, dot and hyphen, up to 64."""
    configure(ATTRIBUTES=[f"{HERE}.give_asked"])
    assert visit.collect_own(answer={name: "x"}) == {name: "x"}


@pytest.mark.parametrize("value", [[1], b"x", {"a": 1}, object(), 10**5000, lazystr("x"), NOW], ids=range(7))
def test_a_value_that_is_no_text_is_left_out(visit, configure, caplog, value):
    """Only itself, and logged by type."""
    configure(ATTRIBUTES=[f"{HERE}.give_asked"])
    for _ in range(2):
        assert visit.collect_own(answer={"bad": value, "a": "1"}) == {"a": "1"}
    kind = type(value).__name__
    assert messages(caplog) == [f"{HERE}.give_asked gives an attribute of type {kind}, which is no text."]


@pytest.mark.parametrize(
    ("name", "failure"),
    [
        ("fail", "raised LookupError"),
        ("absent", "raised ImportError"),
        ("give_asked", "returned a value of type NoneType"),
    ],
)
def test_a_provider_that_fails_loses_its_own(visit, configure, caplog, name, failure):
    """The others' attributes are sent, the log says so once without the visitor."""
    configure(ATTRIBUTES=[f"{HERE}.{name}", f"{HERE}.describe_page"])
    for _ in range(2):
        assert visit.collect_own() == {"current_page": "home", "cart_items": "4"}
    assert messages(caplog) == [f"Attributes are left out: {HERE}.{name} {failure}."]
    assert caplog.records[0].exc_info is None


# Limits.


def test_a_value_is_cut(visit, configure):
    """256 characters of a custom attribute are sent."""
    configure(ATTRIBUTES=[f"{HERE}.give_asked"])
    assert visit.collect_own(answer={"a": "é" * 300}) == {"a": "é" * 256}


def test_32_custom_attributes_are_sent(visit, configure, caplog):
    """Query parameters count, MoEngage's own fields do not, the last are left out."""
    configure(ATTRIBUTES=[f"{HERE}.give_asked"])
    for _ in range(2):
        collected = visit.collect_own("/?utm_source=a", answer={f"a{number}": "x" for number in range(40)})
        assert list(collected) == ["utm_source", *(f"a{number}" for number in range(31))]
    assert messages(caplog) == ["More than 32 custom attributes, or 8192 bytes in all: the last ones are left out."]


def test_8_kib_are_sent(visit, configure):
    """Bytes count, not characters."""
    configure(ATTRIBUTES=[f"{HERE}.give_asked"])
    collected = visit.collect_own(answer={f"a{number}": "é" * 256 for number in range(30)})
    assert list(collected) == [f"a{number}" for number in range(15)]


def test_limits_are_reached_and_not_exceeded():
    """As many as are allowed, besides MoEngage's own, and bytes that nearly fill the room, all go."""
    most = {"USER_AGENT": "a", "USER_IP_ADDRESS": "b", **{f"a{n}": "c" for n in range(32)}}
    assert apply_limits(most) == most
    assert apply_limits({**most, "z": "d"}) == most
    largest = {f"a{n}": "d" * 254 for n in range(32)}
    assert apply_limits(largest) == dict(list(largest.items())[:31])
    assert len(apply_limits({name: value[:250] for name, value in largest.items()})) == 32


@given(st.dictionaries(st.sampled_from([f"a{n}" for n in range(50)]), st.text().map(lambda t: clean_text(t, 256))))
def test_limits_hold(asked):
    """What is sent is the beginning of what was there, and never more than allowed."""
    sent = apply_limits(asked)
    assert list(sent.items()) == list(asked.items())[: len(sent)]
    assert len(sent) <= 32
    assert sum(len(name) + len(value.encode()) for name, value in sent.items()) <= 8192


@given(st.text(alphabet=st.characters(codec=None)), st.integers(1, 20))
@example("\ud800\udc00 \x00a\x7f\u2029", 5)
@example("a b", 2)
def test_clean_text_can_be_sent_and_logged(text, limit):
    """One line, UTF-8, no blank at its ends, no longer than asked; clean text stays as it is."""
    cleaned = clean_text(text, limit)
    cleaned.encode()
    assert len(cleaned) <= limit
    assert cleaned == cleaned.strip()
    assert len(cleaned.splitlines()) <= 1
    assert clean_text(cleaned, limit) == cleaned


@given(
    agent=st.text(),
    query=st.text(),
    remote=st.text(),
    answer=st.dictionaries(
        st.one_of(st.text(), st.from_regex(attributes._NAME, fullmatch=True)),
        st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.decimals(), st.binary()),
    ),
)
def test_any_request_gives_a_body(agent, query, remote, answer):
    """Whatever comes in, what goes out is a flat object of short texts in UTF-8."""
    meta = {"HTTP_USER_AGENT": agent, "QUERY_STRING": f"utm_source={quote(query, errors='replace')}&{query}"}
    request = Visit("sync").build_request(meta={**meta, "REMOTE_ADDR": remote}, answer=answer)
    collected = collect_attributes(request, now=NOW, consent=Consent())
    collected.update(attributes.accept_custom("site", answer))
    json.dumps(collected, ensure_ascii=False).encode()
    assert all(type(name) is str and type(value) is str and value for name, value in collected.items())
    assert all(len(value) <= 512 for value in collected.values())
    assert collected["DAY_OF_THE_WEEK"] == "Sunday"

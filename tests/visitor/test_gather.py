"""Visitors: gathered for a request, remembered if they are anonymous, and named in caches by their digest."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from django.http import HttpResponse
from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize.visitor import NO_VISITOR, Identity, Visitor, build_digest, gather, set_anonymous_cookie
from django_moe_personalize.visitor.evidence import Evidence
from django_moe_personalize.visitor.gather import agather_visitor, gather_visitor
from django_moe_personalize.visitor.identity import DENIED, GPC, GRANTED, forget_anonymous_id
from tests.visitor.conftest import FUNCTIONS, Twin

NOW = datetime(2026, 11, 22, 23, 5, tzinfo=UTC)
HEADERS = {"User-Agent": "Firefox", "X-Forwarded-For": "8.8.8.8"}


@pytest.fixture
def cookie():
    """Return the Cookie header of a browser with an anonymous id."""
    request, response = Twin("sync").build_request(), HttpResponse()
    gather_visitor(request, NOW)
    set_anonymous_cookie(request, response)
    return f"moe_id={response.cookies['moe_id'].value}"


@pytest.fixture
def find(cookie):
    """Return a function that returns the visitor of a request with this cookie, and with a stored campaign."""

    def find(path="/?utm_source=a", *, now=NOW, headers=HEADERS, stored=None, more_cookies="", **options):
        stored = path.partition("?")[2].replace("=", ":") if stored is None else stored
        cookies = f"{cookie}; moe_query={stored}{more_cookies}"
        request = Twin("sync").build_request(path, headers={"Cookie": cookies, **headers}, **options)
        return gather_visitor(request, now)

    return find


def test_visitor_of_a_request(twin, configure):
    """Consent, identity and attributes are gathered together. Nothing is gathered without consent to fetch."""
    configure(IDENTIFY=f"{FUNCTIONS}.answer")
    request = twin.build_request(answer=Identity("42"), headers={"User-Agent": "Firefox", "Sec-GPC": "1"})
    visitor = twin.call(gather_visitor, agather_visitor, request, NOW)
    assert (visitor.identity, visitor.consent, visitor.attributes["USER_AGENT"]) == (Identity(), GPC, "Firefox")
    configure(CONSENT=f"{FUNCTIONS}.answer")
    request = twin.build_request(answer=DENIED)
    assert twin.call(gather_visitor, agather_visitor, request, NOW) is NO_VISITOR


def test_anonymous_visitor_is_remembered(find):
    """Requests with the same inputs share a visitor, which can't be changed."""
    visitor = find()
    assert visitor.identity.anonymous
    assert find(now=NOW + timedelta(minutes=9)) is visitor
    with pytest.raises(TypeError):
        visitor.attributes["utm_source"] = "b"


@pytest.mark.parametrize(
    "change",
    [
        {"path": "/?utm_source=b"},
        {"path": "/", "stored": "utm_source:a"},
        {"headers": HEADERS | {"User-Agent": "Chrome"}},
        {"headers": HEADERS | {"X-Forwarded-For": "8.8.4.4"}},
        {"headers": HEADERS | {"Forwarded": "for=8.8.4.4"}},
        {"headers": HEADERS | {"Sec-GPC": "1"}},
        {"headers": HEADERS | {"Cookie": "moe_id=x"}},
        {"meta": {"REMOTE_ADDR": "1.1.1.1"}},
        {"now": NOW + timedelta(minutes=10)},
        {"secure": True},
    ],
    ids=str,
)
def test_another_input_makes_another_visitor(find, change):
    """Each input of a visitor distinguishes remembered visitors."""
    assert find(**change) is not find()


@pytest.mark.parametrize(
    "change",
    [
        {"path": "/?utm_source=" + "a" * 300},
        {"headers": HEADERS | {"User-Agent": "x" * 1024}},
        {"headers": HEADERS | {"Forwarded": "x" * 1024}},
        {"more_cookies": "; a=é".encode().decode("latin-1")},
        {"user": SimpleNamespace(is_authenticated=True, pk=1)},
        {"stored": ""},
        {"stored": "utm_source:b"},
    ],
    ids=range(7),
)
def test_visitors_that_are_not_remembered(find, change):
    """Long inputs would fill the memory, a user is another input, and a new campaign changes the response."""
    find(**change)
    assert find(**change) is not find(**change)


def test_forgotten_id_is_not_remembered(cookie):
    """After a login in the view, the request has another visitor."""
    request = Twin("sync").build_request(headers={"Cookie": cookie})
    visitor = gather_visitor(request, NOW)
    forget_anonymous_id(request)
    assert gather_visitor(request, NOW).identity.customer_id != visitor.identity.customer_id


@pytest.mark.parametrize(
    ("name", "path", "answer"),
    [
        ("IDENTIFY", f"{FUNCTIONS}.answer", None),
        ("CONSENT", f"{FUNCTIONS}.answer", GRANTED),
        ("ATTRIBUTES", [f"{FUNCTIONS}.answer"], {}),
    ],
)
def test_visitor_of_a_function_is_not_remembered(find, configure, name, path, answer):
    """The result of the function may depend on anything."""
    configure(**{name: path})
    visitor = find(answer=answer)
    assert visitor is not NO_VISITOR
    assert find(answer=answer) is not visitor


def test_memory_is_bounded(find, monkeypatch):
    """One visitor too many makes the process forget all of them."""
    monkeypatch.setattr(gather, "MAX_REMEMBERED", 2)
    first = find("/?utm_source=1")
    find("/?utm_source=2")
    assert find("/?utm_source=1") is first
    for number in (3, 4):
        find(f"/?utm_source={number}")
    assert find("/?utm_source=1") is not first
    assert len(gather.get_remembered()) <= 3


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        (Visitor(Identity("zoe"), {"a": "1", "b": "2"}), True),
        (Visitor(Identity("zoe"), {"a": "1", "b": "3"}), True),
        (Visitor(Identity("zoe"), {"a": "2", "b": "2"}), False),
        (Visitor(Identity("zoe", anonymous=True), {"a": "1"}), False),
        (Visitor(Identity("zoe", {"a": "1"}), {}), False),
        (Visitor(Identity(), {"a": "1"}), False),
    ],
    ids=range(6),
)
def test_digest_of_a_visitor(configure, other, is_same):
    """Visitors share a digest if their identity and the attributes in VARY_CACHE_ON are the same."""
    configure(VARY_CACHE_ON=["a"])
    assert (other.digest == Visitor(Identity("zoe"), {"b": "2", "a": "1"}).digest) is is_same
    assert "zoe" not in repr(other)


# Digests.

parts = st.lists(st.text(), max_size=5)


@given(parts, parts)
def test_digests_tell_parts_apart(first, second):
    """Different lists have different digests, wherever one part ends and the next begins."""
    assert (build_digest(first) == build_digest(second)) == (first == second)


def test_digest_depends_on_the_secret(settings):
    """With another secret, the digest is another one."""
    digest = build_digest(["a"])
    settings.SECRET_KEY = "another"
    assert build_digest(["a"]) != digest


identities = st.builds(
    Identity,
    customer_id=st.none() | st.sampled_from(["", "a", "anon-a", "id:a", "none"]),
    user_identifiers=st.dictionaries(
        st.sampled_from(["u_em", "u_mb", "1"]), st.sampled_from(["a", "b", ""]), max_size=2
    ),
    anonymous=st.booleans(),
)
attributes = st.dictionaries(st.sampled_from(["u_em", "a", "b", "1"]), st.sampled_from(["a", "b", ""]), max_size=3)


@given(identities, attributes, identities, attributes)
def test_visitors_are_told_apart(one, his, other, hers):
    """Two visitors share a digest only if identity and attributes are the same."""
    same = (one, his) == (other, hers)
    assert (Visitor(one, his).digest == Visitor(other, hers).digest) == same


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [({}, True), ({"_private": 1}, True), ({"tenant": 1}, False), ({"session": SimpleNamespace()}, False)],
    ids=str,
)
def test_evidence_of_a_request(changes, is_same):
    """A new attribute of the site may tell IDENTIFY another visitor, also after an attribute that can't."""
    request = Twin("sync").build_request()
    evidence = Evidence(request)
    for name, value in {"_other": 1, **changes}.items():
        setattr(request, name, value)
        assert evidence.holds(request) is (is_same or name == "_other")

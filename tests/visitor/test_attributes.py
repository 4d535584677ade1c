"""In-session attributes: the built-in ones, the site's own, and the limits of all together."""

import enum
import json
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import quote

import pytest
from django.utils import translation
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe
from hypothesis import example, given
from hypothesis import strategies as st

from django_moe_personalize.visitor import attributes
from django_moe_personalize.visitor.attributes import apply_limits, clean_text, collect_attributes
from django_moe_personalize.visitor.identity import GRANTED, Consent
from tests.anything import patiently
from tests.visitor.conftest import FUNCTIONS, NOW, Twin

DAY_AND_HOUR = {"DAY_OF_THE_WEEK": "Sunday", "TIME_OF_THE_DAY": "23"}
ANSWER = f"{FUNCTIONS}.answer"


class Shade(enum.StrEnum):
    RED = "red"


def describe_page(request):
    return {"current_page": "home", "cart_items": "4"}


@pytest.fixture
def collect_custom(collect, configure):
    """Return a function that returns the custom attributes that are sent if the site's function returns ``answer``."""
    configure(ATTRIBUTES=[ANSWER])

    def collect_custom(answer, path="/"):
        sent = collect(path, answer=answer)
        return {name: value for name, value in sent.items() if name not in {*DAY_AND_HOUR, "USER_IP_ADDRESS"}}

    return collect_custom


# Built-in attributes.


def test_built_in_attributes(collect):
    """Without any setting a request has the user agent, the address, the day, the hour and the query parameters."""
    found = collect("/?utm_source=news&q=x", headers={"User-Agent": "Firefox"}, meta={"REMOTE_ADDR": "8.8.8.8"})
    assert list(found.items()) == [
        ("USER_AGENT", "Firefox"),
        ("USER_IP_ADDRESS", "8.8.8.8"),
        ("DAY_OF_THE_WEEK", "Sunday"),
        ("TIME_OF_THE_DAY", "23"),
        ("utm_source", "news"),
    ]


def test_unknown_attributes_are_left_out(collect):
    """A request without a user agent, an address and a query has only the time."""
    assert collect(meta={"REMOTE_ADDR": ""}) == DAY_AND_HOUR


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
def test_user_agent_is_cleaned(collect, agent, expected):
    """A user agent is cut, and loses the characters that would break a line or UTF-8."""
    assert collect(meta={"HTTP_USER_AGENT": agent})["USER_AGENT"] == expected


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
def test_precision_of_the_address(collect, configure, precision, identify, address):
    """Without consent to identify, the address is never sent in full."""
    configure(IP_PRECISION=precision, TRUSTED_PROXIES=["127.0.0.0/8"])
    meta = {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "1.2.3.4, 8.8.4.4"}
    assert collect(consent=Consent(identify=identify), meta=meta).get("USER_IP_ADDRESS") == address


def test_day_and_hour_in_the_time_zone_of_the_settings(collect, configure):
    """The day changes at midnight in TIME_ZONE, and its name is English in every locale."""
    configure(TIME_ZONE="Asia/Kolkata")
    with translation.override("de"):
        found = collect()
    assert (found["DAY_OF_THE_WEEK"], found["TIME_OF_THE_DAY"]) == ("Monday", "05")


@patiently
@given(st.datetimes(timezones=st.timezones(), min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1)))
def test_day_and_hour_of_any_moment(moment):
    """The day has its English name and the hour two digits. The moment's own time zone doesn't matter."""
    found = collect_attributes(Twin("sync").build_request(), now=moment, consent=GRANTED)
    assert f"{found['DAY_OF_THE_WEEK']} {found['TIME_OF_THE_DAY']}" == moment.astimezone(UTC).strftime("%A %H")


# Attributes of the site.


def test_custom_attributes_become_text(collect_custom, configure):
    """Numbers and booleans become text, empty values are left out, and later functions win."""
    configure(ATTRIBUTES=[ANSWER, f"{__name__}.describe_page"])
    cart = {"cart_value": Decimal("500.10"), "cart_items": 3, "cart_weight": 1.5, "member": True, "guest": False}
    found = collect_custom(
        {**cart, "shade": Shade.RED, "greeting": mark_safe("Hej"), "coupon": None, "note": " \x00 "}, "/?utm_source=a"
    )
    assert found == {
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
    assert {type(value) for value in found.values()} == {str}


@pytest.mark.parametrize("name", ["identifiers", "experience_key", "USER_IP_ADDRESS", "USER_AGENT", "DAY_OF_THE_WEEK"])
def test_names_of_moengages_fields_are_refused(collect_custom, caplog, name):
    """The body is flat, so a custom attribute could replace a field of MoEngage (contract §2)."""
    for _ in range(2):
        assert collect_custom({name: "x", "a": "1"}) == {"a": "1"}
    assert caplog.messages == [f"{ANSWER} returned {name}, which is left out: MoEngage uses this name. Choose another."]


@pytest.mark.parametrize("name", ["", "1a", "a b", "é", "a\n", "a" * 65, "-a", 5, None, ("a",)], ids=ascii)
def test_bad_names_are_refused(collect_custom, caplog, name):
    """The log doesn't show the name, because a visitor may have written it."""
    for _ in range(2):
        assert collect_custom({name: "x", "a": "1"}) == {"a": "1"}
    (message,) = caplog.messages
    assert message.startswith(f"{ANSWER} returned an attribute whose name doesn't match [A-Za-z_]")


@pytest.mark.parametrize("name", ["a", "_a", "A1.b-c_d", "a" * 64])
def test_good_names_are_sent(collect_custom, name):
    """A name has letters, digits, underscores, dots and hyphens, 64 at most."""
    assert collect_custom({name: "x"}) == {name: "x"}


@pytest.mark.parametrize("value", [[1], b"x", {"a": 1}, object(), 10**5000, lazystr("x"), NOW], ids=range(7))
def test_values_of_other_types_are_left_out(collect_custom, caplog, value):
    """The other attributes are sent, and the log has the type."""
    for _ in range(2):
        assert collect_custom({"bad": value, "a": "1"}) == {"a": "1"}
    left_out = f"{ANSWER} returned an attribute of type {type(value).__name__}, which is left out."
    assert caplog.messages == [f"{left_out} Return a string or a number."]


@pytest.mark.parametrize(
    ("name", "failure"),
    [("fail", "raised LookupError"), ("absent", "raised ImportError"), ("answer", "returned a value of type NoneType")],
)
def test_failing_function_loses_only_its_own_attributes(collect_custom, configure, caplog, name, failure):
    """The log says so once, without the text of the exception."""
    configure(ATTRIBUTES=[f"{FUNCTIONS}.{name}", f"{__name__}.describe_page"])
    for _ in range(2):
        assert collect_custom(None) == {"current_page": "home", "cart_items": "4"}
    assert caplog.messages == [f"ATTRIBUTES failed ({FUNCTIONS}.{name} {failure}), so some attributes are missing."]
    assert caplog.records[0].exc_info is None


# Limits.


def test_limits_of_a_request(collect_custom, caplog):
    """256 characters a value, 32 custom attributes with the query parameters, and 8 KiB in all are sent."""
    assert collect_custom({"a": "é" * 300}) == {"a": "é" * 256}
    for _ in range(2):
        found = collect_custom({f"a{number}": "x" for number in range(40)}, "/?utm_source=a")
        assert list(found) == ["utm_source", *(f"a{number}" for number in range(31))]
    assert list(collect_custom({f"a{n}": "é" * 256 for n in range(30)})) == [f"a{n}" for n in range(15)]
    assert caplog.messages == [
        "A request has more than 32 custom attributes or 8192 bytes, so the last ones are left out."
    ]


def test_attributes_at_the_limits():
    """Attributes that just reach a limit are all sent. MoEngage's own don't count as custom."""
    most = {"USER_AGENT": "a", "USER_IP_ADDRESS": "b", **{f"a{n}": "c" for n in range(32)}}
    assert apply_limits(most) == most
    assert apply_limits({**most, "z": "d"}) == most
    largest = {f"a{n}": "d" * 254 for n in range(32)}
    assert apply_limits(largest) == dict(list(largest.items())[:31])
    assert len(apply_limits({name: value[:250] for name, value in largest.items()})) == 32


@given(st.text(alphabet=st.characters(codec=None)), st.integers(1, 20))
@example("\ud800\udc00 \x00a\x7f\u2029", 5)
@example("a b", 2)
def test_clean_text_can_be_sent_and_logged(text, limit):
    """It is one line of UTF-8, stripped, and within the limit. Cleaning it again changes nothing."""
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
def test_any_request_has_short_texts_as_attributes(agent, query, remote, answer):
    """Any request and any result of the site's functions give a flat mapping of short UTF-8 texts."""
    meta = {"HTTP_USER_AGENT": agent, "QUERY_STRING": f"utm_source={quote(query, errors='replace')}&{query}"}
    request = Twin("sync").build_request(meta={**meta, "REMOTE_ADDR": remote})
    sent = collect_attributes(request, now=NOW, consent=GRANTED) | attributes.accept_custom("site", answer)
    json.dumps(sent, ensure_ascii=False).encode()
    assert all(type(name) is str and type(value) is str and value for name, value in sent.items())
    assert all(len(value) <= 512 for value in sent.values())
    assert sent["DAY_OF_THE_WEEK"] == "Sunday"


def test_attributes_of_equal_requests_are_remembered(monkeypatch):
    """Requests with the same data share one mapping. Long data isn't remembered, and a full memory is cleared."""
    monkeypatch.setattr(attributes, "MAX_COLLECTED", 2)

    def collect(agent):
        return attributes._collect_own(Twin("sync").build_request(meta={"HTTP_USER_AGENT": agent}), NOW, GRANTED)

    assert collect("a") is collect("a")
    assert collect("a" * 2000) is not collect("a" * 2000)
    assert [collect(agent)["USER_AGENT"] for agent in "abc"] == ["a", "b", "c"]
    assert len(attributes.get_collected()) == 1

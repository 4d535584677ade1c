"""Audiences: which visitors match a rule, and the sentence that says why."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize.sandbox.audiences import Finding, Visitor, find_device, list_hours, match_all
from django_moe_personalize.sandbox.reading import Problems, Value
from django_moe_personalize.sandbox.rule_reader import read_rule

CUSTOMER = {"loyalty": "gold", "points": 2480, "vip": True, "score": "12.5"}
SESSION = {
    "utm_medium": "email",
    "cart_value": "149.5",
    "word": "many",
    "flag": "true",
    "day": "x",
    "a.b": "dotted",
    "DAY_OF_THE_WEEK": "Sunday",
    "TIME_OF_THE_DAY": "23",
    "USER_IP_ADDRESS": "203.0.113.9",
    "USER_AGENT": "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) Mobile/15E148",
}


def check(rule: Any, visitor: Visitor | None = None) -> Finding:
    """Read a rule and check it."""
    problems = Problems("test")
    read = read_rule(Value(rule, "", problems))
    problems.raise_any()
    return read(Visitor(CUSTOMER, SESSION) if visitor is None else visitor)


def build_rules(conditions: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Return a rule for each condition of each attribute."""
    return [{name: condition} for name, each in conditions.items() for condition in each]


EMAIL = ["email", ["cpc", "email"], {"is": "email"}, {"is_not": "cpc"}, {"in": ["cpc", "email"]}, {"not_in": ["cpc"]}]
MATCHING = {
    "utm_medium": [*EMAIL, {"contains": "mai"}, {"starts_with": "e", "ends_with": "l"}, {"exists": True}],
    "session.utm_medium": ["email"],
    "session.day": ["x"],
    "session.a.b": ["dotted"],
    "nothing": [{"is_not": "cpc"}, {"not_in": ["cpc"]}, {"exists": False}],
    "cart_value": [149.5, "149.5", [1, 149.5], {"gte": 149.5, "lte": "149.5"}, {"gt": 20, "lt": 1000}],
    "flag": [True],
    "customer.vip": [True, "true"],
    "customer.points": ["2480", {"gte": 500}],
    "customer.score": [{"gt": 12}],
    "and": [[{"utm_medium": "email"}, {"customer.loyalty": "gold"}]],
    "or": [[{"utm_medium": "cpc"}, {"customer.loyalty": "gold"}]],
    "not": [{"utm_medium": "cpc"}],
    "day": ["Sunday", ["Saturday", "Sunday"]],
    "hour": [23, [1, 23], {"from": 22, "until": 5}, {"from": 0, "until": 0}],
    "device": ["Mobile", ["Tablet", "Mobile"]],
    "ip": ["203.0.113.0/24", ["2001:db8::/32", "203.0.113.9"]],
}
OTHER = {
    "nothing": ["email", ["email"], {"contains": ""}, {"lt": 1}, {"exists": True}],
    "utm_medium": ["Email", {"is_not": "email"}, {"not_in": ["email"]}, {"exists": False}],
    "word": [5, {"gte": 0}, {"lt": 1e9}],
    "customer.vip": [1, {"gt": 0}],
    "cart_value": [int("9" * 400)],
    "loyalty": ["gold"],
    "customer.utm_medium": ["email"],
    "day": ["Monday"],
    "hour": [{"from": 5, "until": 23}],
    "device": [["Desktop", "Tablet"]],
    "ip": ["198.51.100.0/24"],
}


@pytest.mark.parametrize(
    "rule", [*build_rules(MATCHING), {"//": "a note", "utm_medium": {"//": "another", "is": "email"}}]
)
def test_a_rule_that_matches(rule: Any) -> None:
    """The visitor matches the rule and doesn't match its opposite."""
    assert check(rule).matched
    assert not check({"not": rule}).matched


@pytest.mark.parametrize("rule", [*build_rules(OTHER), {"utm_medium": "email", "customer.loyalty": "none"}])
def test_a_rule_that_does_not_match(rule: Any) -> None:
    """The visitor doesn't match the rule, but matches its opposite."""
    assert not check(rule).matched
    assert check({"not": rule}).matched


WITHOUT = [{"day": "Sunday"}, {"hour": {"from": 0, "until": 0}}, {"device": "Desktop"}, {"ip": "0.0.0.0/0"}]


@pytest.mark.parametrize(
    ("rule", "session"),
    [*((rule, {}) for rule in WITHOUT), ({"ip": ["0.0.0.0/0", "::/0"]}, {"USER_IP_ADDRESS": "home"})],
)
def test_a_visitor_without_the_attribute_matches_no_rule(rule: Any, session: dict[str, str]) -> None:
    """The sandbox doesn't guess a missing attribute. Other text in USER_IP_ADDRESS is not an error."""
    assert not check(rule, Visitor(session=session)).matched


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({"utm_medium": "email"}, "utm_medium is email"),
        ({"customer.points": {"gte": 5000}}, "the customer's points is at least 5000 (it is 2480)"),
        ({"nothing": ["a", 1]}, "nothing is one of a, 1 (it is absent)"),
        ({"utm_medium": {"not_in": ["email"]}}, "utm_medium is none of email (it is email)"),
        ({"nothing": {"exists": True}}, "nothing exists (it is absent)"),
        ({"utm_medium": {"exists": False}}, "utm_medium doesn't exist (it is email)"),
        ({"hour": [9, 1]}, "TIME_OF_THE_DAY is one of 01, 09 (it is 23)"),
        ({"device": ["Desktop", "Tablet"]}, "the device is Desktop or Tablet (it is Mobile)"),
        ({"ip": ["10.0.0.0/8", "::/0"]}, "USER_IP_ADDRESS is in 10.0.0.0/8, ::/0 (it is 203.0.113.9)"),
        ({"utm_medium": "email", "hour": 23}, "utm_medium is email and TIME_OF_THE_DAY is one of 23"),
        ({"utm_medium": "email", "word": "x"}, "word is x (it is many)"),
        ({"or": [{"word": "x"}, {"flag": True}]}, "flag is true"),
        ({"or": [{"word": "x"}, {"flag": False}]}, "word is x (it is many) or flag is false (it is true)"),
        ({"not": {"flag": True}}, "not (flag is true)"),
    ],
)
def test_the_sentence_says_why(rule: Any, sentence: str) -> None:
    """The sentence names the conditions that decided. For a failed condition it has the actual value."""
    assert check(rule).sentence == sentence


def test_every_visitor_matches_a_rule_without_conditions() -> None:
    """A rule without conditions matches."""
    assert match_all(())(Visitor()) == Finding(True, "")


@pytest.mark.parametrize(
    ("user_agent", "device"),
    [
        ("", None),
        ("Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36", "Desktop"),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 15_0) AppleWebKit/605.1.15 Version/19.0 Safari/605.1.15", "Desktop"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) Mobile/15E148 Safari/604.1", "Mobile"),
        ("Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 Chrome/140.0 Mobile Safari/537.36", "Mobile"),
        ("Mozilla/5.0 (Linux; Android 15; SM-X910) AppleWebKit/537.36 Chrome/140.0 Safari/537.36", "Tablet"),
        ("Mozilla/5.0 (iPad; CPU OS 19_0 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148", "Tablet"),
        ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "Desktop"),
        ("Mozilla/5.0 (Linux; Android 6.0.1) Mobile Safari/537.36 (compatible; bingbot/2.0)", "Mobile"),
    ],
)
def test_the_user_agent_names_the_device(user_agent: str, device: str | None) -> None:
    """The words are those of MoEngage's dashboard. A robot has the device that it claims; a tablet is not Mobile."""
    assert find_device(user_agent) == device


@given(st.integers(0, 23), st.integers(0, 23))
def test_hours_go_from_the_first_to_before_the_second(start: int, until: int) -> None:
    """A span and the opposite span make a day, also past midnight."""
    span = list_hours(start, until)
    assert start in span
    if start == until:
        assert span == frozenset(range(24))
    else:
        assert until not in span
        assert span | list_hours(until, start) == frozenset(range(24))
        assert not span & list_hours(until, start)

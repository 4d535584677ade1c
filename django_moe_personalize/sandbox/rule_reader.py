"""Read rules from the workspace file.

A rule is an object. The visitor must match all its members::

    {"utm_medium": "email", "customer.points": {"gte": 500}, "hour": {"from": 22, "until": 5}}

``session.utm_medium``, or just ``utm_medium``, is an in-session attribute. ``customer.points`` is an attribute of the
customer. A scalar means that the attribute must be equal to the scalar. An array means that the attribute must be equal
to one of its entries. An object has comparisons. The words ``and``, ``or``, ``not``, ``day``, ``hour``, ``device`` and
``ip`` are conditions, and not attributes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from django_moe_personalize.sandbox.audiences import (
    DAYS,
    DEVICES,
    EXISTS,
    EXISTS_NOT,
    IN_NETWORK,
    LIST_OPERATORS,
    OPERATORS,
    Rule,
    Scalar,
    as_number,
    compare,
    list_hours,
    match_all,
    match_any,
    match_device,
    match_opposite,
)
from django_moe_personalize.sandbox.reading import Problems, member, nearest, read_object, shown

T = TypeVar("T")

COMPARISONS = (*OPERATORS, *LIST_OPERATORS, "exists")
_RANGES = ("gt", "gte", "lt", "lte")
_NOTHING = match_all(())


def read_rule(data: object, place: str, problems: Problems) -> Rule:
    """Return the rule that an object describes. Add the mistakes in the object to ``problems``."""
    before = len(problems.found)
    members = read_object(data, place, problems)
    if not members and len(problems.found) == before:
        problems.add(place, "must have at least one condition")
    rules = tuple(_read_condition(name, value, member(place, name), problems) for name, value in members.items())
    return match_all(rules)


def _read_condition(name: str, value: object, place: str, problems: Problems) -> Rule:
    if name in _CONDITIONS:
        return _CONDITIONS[name](value, place, problems)
    if name.lower() in _CONDITIONS:
        problems.add(place, f'did you mean "{name.lower()}"? For an attribute with this name write "session.{name}"')
        return _NOTHING
    source, attribute = name.split(".", 1) if "." in name else ("session", name)
    if source not in ("session", "customer"):
        problems.add(place, f"unknown word {shown(source)} before the dot{nearest(source, ('session', 'customer'))}")
    elif not attribute:
        problems.add(place, "must have the name of an attribute after the dot")
    else:
        return _read_attribute(source, attribute, value, place, problems)
    return _NOTHING


def _read_attribute(source: str, name: str, value: object, place: str, problems: Problems) -> Rule:
    if isinstance(value, list):
        return compare(source, name, LIST_OPERATORS["in"], _read_array("values", _read_scalar, value, place, problems))
    if not isinstance(value, Mapping):
        return compare(source, name, OPERATORS["is"], _read_scalar(value, place, problems))
    comparisons = read_object(value, place, problems)
    if not comparisons:
        problems.add(place, f"must have at least one comparison (valid: {', '.join(COMPARISONS)})")
    rules = tuple(
        _read_comparison(source, name, operator, operand, member(place, operator), problems)
        for operator, operand in comparisons.items()
    )
    return match_all(rules)


def _read_comparison(source: str, name: str, operator: str, operand: object, place: str, problems: Problems) -> Rule:
    if operator in LIST_OPERATORS:
        values = _read_array("values", _read_scalar, operand, place, problems)
        return compare(source, name, LIST_OPERATORS[operator], values)
    if operator == "exists":
        if not isinstance(operand, bool):
            problems.add(place, f"must be true or false, not {shown(operand)}")
        return compare(source, name, EXISTS if operand is True else EXISTS_NOT)
    if operator not in OPERATORS:
        problems.add(place, f"unknown comparison{nearest(operator, COMPARISONS)}")
        return _NOTHING
    wanted = _read_scalar(operand, place, problems)
    number = as_number(wanted)
    if operator in _RANGES and number != number:
        problems.add(place, f"must be a number, not {shown(operand)}")
    return compare(source, name, OPERATORS[operator], wanted)


def _read_array(
    what: str, read: Callable[[object, str, Problems], T], value: object, place: str, problems: Problems
) -> tuple[T, ...]:
    if not isinstance(value, list) or not value:
        problems.add(place, f"must be an array of {what}, not {shown(value)}")
        return ()
    return tuple(read(entry, f"{place}[{index}]", problems) for index, entry in enumerate(value))


def _read_scalar(value: object, place: str, problems: Problems) -> Scalar:
    if isinstance(value, (str, int, float)):
        return value
    problems.add(place, f"must be a string, a number, true or false, not {shown(value)}")
    return ""


def _read_words(valid: tuple[str, ...], value: object, place: str, problems: Problems) -> tuple[str, ...]:
    words = value if isinstance(value, list) and value else [value]
    for word in words:
        if word not in valid:
            problems.add(place, f"unknown value {shown(word)}{nearest(str(word), valid)}")
    return tuple(map(str, words))


def _read_hour(value: object, place: str, problems: Problems) -> Rule:
    hours: Any = value if isinstance(value, list) and value else [value]
    if isinstance(value, Mapping):
        span = read_object(value, place, problems)
        is_span = set(span) == {"from", "until"} and all(map(_is_hour, span.values()))
        hours = list_hours(span["from"], span["until"]) if is_span else [value]
    if all(map(_is_hour, hours)):
        words = tuple(f"{hour:02}" for hour in sorted(hours))
        return compare("session", "TIME_OF_THE_DAY", LIST_OPERATORS["in"], words)
    valid = 'an hour (0 to 23), an array of hours, or {"from": 22, "until": 5}'
    problems.add(place, f"must be {valid}, not {shown(value)}")
    return _NOTHING


def _is_hour(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 23


def _read_ip(value: object, place: str, problems: Problems) -> Rule:
    networks = value if isinstance(value, list) and value else [value]
    for network in networks:
        try:
            ipaddress.ip_network(network if isinstance(network, str) else "")
        except ValueError:
            valid = 'a network such as "203.0.113.0/24" (all bits after the mask are 0)'
            problems.add(place, f"must be {valid}, not {shown(network)}")
    return compare("session", "USER_IP_ADDRESS", IN_NETWORK, tuple(map(str, networks)))


_CONDITIONS: Mapping[str, Callable[[object, str, Problems], Rule]] = {
    "and": lambda *data: match_all(_read_array("rules", read_rule, *data)),
    "or": lambda *data: match_any(_read_array("rules", read_rule, *data)),
    "not": lambda *data: match_opposite(read_rule(*data)),
    "day": lambda *data: compare("session", "DAY_OF_THE_WEEK", LIST_OPERATORS["in"], _read_words(DAYS, *data)),
    "hour": _read_hour,
    "device": lambda *data: match_device(_read_words(DEVICES, *data)),
    "ip": _read_ip,
}

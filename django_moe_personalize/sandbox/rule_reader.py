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
from typing import Any

from django_moe_personalize.sandbox.audiences import (
    DAYS,
    DEVICES,
    EXISTS,
    EXISTS_NOT,
    LIST_OPERATORS,
    OPERATORS,
    AllRule,
    AnyRule,
    AttributeRule,
    DeviceRule,
    HourRule,
    NetworkRule,
    NotRule,
    Rule,
    Scalar,
    as_number,
    list_hours,
)
from django_moe_personalize.sandbox.reading import Problems, member, nearest, read_object, shown

COMPARISONS = (*OPERATORS, *LIST_OPERATORS, "exists")
_RANGES = ("gt", "gte", "lt", "lte")
_NOTHING = AllRule(())


def read_rule(data: object, place: str, problems: Problems) -> Rule:
    """Return the rule that an object describes. Add the mistakes in the object to ``problems``."""
    before = len(problems.found)
    members = read_object(data, place, problems)
    if not members and len(problems.found) == before:
        problems.add(place, "must have at least one condition")
    rules = tuple(_read_condition(name, value, member(place, name), problems) for name, value in members.items())
    return rules[0] if len(rules) == 1 else AllRule(rules)


def _read_condition(name: str, value: object, place: str, problems: Problems) -> Rule:
    if name in _CONDITIONS:
        return _CONDITIONS[name](value, place, problems)
    if name.lower() in _CONDITIONS:
        problems.add(place, f'did you mean "{name.lower()}"? For an attribute with this name write "session.{name}"')
        return _NOTHING
    source, dot, attribute = name.partition(".")
    if not dot:
        return _read_attribute("session", name, value, place, problems)
    if source not in ("session", "customer"):
        problems.add(place, f"unknown word {shown(source)} before the dot{nearest(source, ('session', 'customer'))}")
    elif not attribute:
        problems.add(place, "must have the name of an attribute after the dot")
    else:
        return _read_attribute(source, attribute, value, place, problems)
    return _NOTHING


def _read_attribute(source: str, name: str, value: object, place: str, problems: Problems) -> Rule:
    if isinstance(value, list):
        return AttributeRule(source, name, LIST_OPERATORS["in"], _read_scalars(value, place, problems))
    if not isinstance(value, Mapping):
        return AttributeRule(source, name, OPERATORS["is"], _read_scalar(value, place, problems))
    comparisons = read_object(value, place, problems)
    if not comparisons:
        problems.add(place, f"must have at least one comparison (valid: {', '.join(COMPARISONS)})")
    rules = tuple(
        _read_comparison(source, name, operator, operand, member(place, operator), problems)
        for operator, operand in comparisons.items()
    )
    return rules[0] if len(rules) == 1 else AllRule(rules)


def _read_comparison(source: str, name: str, operator: str, operand: object, place: str, problems: Problems) -> Rule:
    if operator in LIST_OPERATORS:
        return AttributeRule(source, name, LIST_OPERATORS[operator], _read_scalars(operand, place, problems))
    if operator == "exists":
        if not isinstance(operand, bool):
            problems.add(place, f"must be true or false, not {shown(operand)}")
        return AttributeRule(source, name, EXISTS if operand is True else EXISTS_NOT)
    if operator not in OPERATORS:
        problems.add(place, f"unknown comparison{nearest(operator, COMPARISONS)}")
        return _NOTHING
    wanted = _read_scalar(operand, place, problems)
    number = as_number(wanted)
    if operator in _RANGES and number != number:
        problems.add(place, f"must be a number, not {shown(operand)}")
    return AttributeRule(source, name, OPERATORS[operator], wanted)


def _read_scalars(value: object, place: str, problems: Problems) -> tuple[Scalar, ...]:
    if not isinstance(value, list) or not value:
        problems.add(place, f"must be an array of values, not {shown(value)}")
        return ()
    return tuple(_read_scalar(entry, f"{place}[{index}]", problems) for index, entry in enumerate(value))


def _read_scalar(value: object, place: str, problems: Problems) -> Scalar:
    if isinstance(value, (str, int, float)):
        return value
    problems.add(place, f"must be a string, a number, true or false, not {shown(value)}")
    return ""


def _read_all(value: object, place: str, problems: Problems) -> Rule:
    return AllRule(_read_rules(value, place, problems))


def _read_any(value: object, place: str, problems: Problems) -> Rule:
    return AnyRule(_read_rules(value, place, problems))


def _read_rules(value: object, place: str, problems: Problems) -> tuple[Rule, ...]:
    if not isinstance(value, list) or not value:
        problems.add(place, f"must be an array of rules, not {shown(value)}")
        return ()
    return tuple(read_rule(entry, f"{place}[{index}]", problems) for index, entry in enumerate(value))


def _read_not(value: object, place: str, problems: Problems) -> Rule:
    return NotRule(read_rule(value, place, problems))


def _read_day(value: object, place: str, problems: Problems) -> Rule:
    days = _read_words(value, DAYS, place, problems)
    return AttributeRule("session", "DAY_OF_THE_WEEK", LIST_OPERATORS["in"], days)


def _read_device(value: object, place: str, problems: Problems) -> Rule:
    return DeviceRule(_read_words(value, DEVICES, place, problems))


def _read_words(value: object, valid: tuple[str, ...], place: str, problems: Problems) -> tuple[str, ...]:
    words = value if isinstance(value, list) and value else [value]
    for word in words:
        if word not in valid:
            problems.add(place, f"unknown value {shown(word)}{nearest(str(word), valid)}")
    return tuple(map(str, words))


def _read_hour(value: object, place: str, problems: Problems) -> Rule:
    if isinstance(value, Mapping):
        span = read_object(value, place, problems)
        if set(span) == {"from", "until"} and all(map(_is_hour, span.values())):
            return HourRule(list_hours(span["from"], span["until"]))
    else:
        hours: list[Any] = value if isinstance(value, list) and value else [value]
        if all(map(_is_hour, hours)):
            return HourRule(frozenset(hours))
    valid = 'an hour (0 to 23), an array of hours, or {"from": 22, "until": 5}'
    problems.add(place, f"must be {valid}, not {shown(value)}")
    return _NOTHING


def _is_hour(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 23


def _read_ip(value: object, place: str, problems: Problems) -> Rule:
    networks = []
    for text in value if isinstance(value, list) and value else [value]:
        try:
            networks.append(ipaddress.ip_network(text if isinstance(text, str) else ""))
        except ValueError:
            valid = 'a network such as "203.0.113.0/24" (all bits after the mask are 0)'
            problems.add(place, f"must be {valid}, not {shown(text)}")
    return NetworkRule(tuple(networks))


_CONDITIONS: Mapping[str, Callable[[object, str, Problems], Rule]] = {
    "and": _read_all,
    "or": _read_any,
    "not": _read_not,
    "day": _read_day,
    "hour": _read_hour,
    "device": _read_device,
    "ip": _read_ip,
}

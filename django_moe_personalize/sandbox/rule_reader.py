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
import math
from collections.abc import Callable, Mapping
from typing import Any

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
from django_moe_personalize.sandbox.reading import Value, nearest, shown

COMPARISONS = (*OPERATORS, *LIST_OPERATORS, "exists")
_RANGES = ("gt", "gte", "lt", "lte")
_NOTHING = match_all(())


def read_rule(value: Value) -> Rule:
    """Return the rule that an object describes. Add the mistakes in the object to its problems."""
    members = value.members()
    if not members and isinstance(value.data, Mapping):
        value.add("must have at least one condition")
    return match_all([_read_condition(name, each) for name, each in members.items()])


def _read_condition(name: str, value: Value) -> Rule:
    if name in _CONDITIONS:
        return _CONDITIONS[name](value)
    if name.lower() in _CONDITIONS:
        value.add(f'did you mean "{name.lower()}"? For an attribute with this name write "session.{name}"')
        return _NOTHING
    source, attribute = name.split(".", 1) if "." in name else ("session", name)
    if source not in ("session", "customer"):
        value.add(f"unknown word {shown(source)} before the dot{nearest(source, ('session', 'customer'))}")
    elif not attribute:
        value.add("must have the name of an attribute after the dot")
    else:
        return _read_attribute(source, attribute, value)
    return _NOTHING


def _read_attribute(source: str, name: str, value: Value) -> Rule:
    if isinstance(value.data, list):
        return compare(source, name, LIST_OPERATORS["in"], _read_scalars(value))
    if not isinstance(value.data, Mapping):
        return compare(source, name, OPERATORS["is"], value.scalar())
    operands = value.members()
    if not operands:
        value.add(f"must have at least one comparison (valid: {', '.join(COMPARISONS)})")
    return match_all([_read_comparison(source, name, operator, operand) for operator, operand in operands.items()])


def _read_comparison(source: str, name: str, operator: str, operand: Value) -> Rule:
    if operator in LIST_OPERATORS:
        return compare(source, name, LIST_OPERATORS[operator], _read_scalars(operand))
    if operator == "exists":
        return compare(source, name, EXISTS if operand.flag() else EXISTS_NOT)
    if operator not in OPERATORS:
        operand.add(f"unknown comparison{nearest(operator, COMPARISONS)}")
        return _NOTHING
    wanted = operand.scalar()
    if operator in _RANGES and math.isnan(as_number(wanted)):
        operand.wrong("must be a number")
    return compare(source, name, OPERATORS[operator], wanted)


def _read_scalars(value: Value) -> tuple[Scalar, ...]:
    return tuple(entry.scalar() for entry in value.entries("values"))


def _read_rules(value: Value) -> list[Rule]:
    return [read_rule(entry) for entry in value.entries("rules")]


def _list(value: Value) -> list[Any]:
    """Return a non-empty array, or a single value as an array."""
    return value.data if isinstance(value.data, list) and value.data else [value.data]


def _read_words(value: Value, valid: tuple[str, ...]) -> tuple[str, ...]:
    words = _list(value)
    for word in words:
        if word not in valid:
            value.add(f"unknown value {shown(word)}{nearest(str(word), valid)}")
    return tuple(map(str, words))


def _read_hour(value: Value) -> Rule:
    hours = _list(value)
    if isinstance(value.data, Mapping):
        span = {name: each.data for name, each in value.members().items()}
        if set(span) == {"from", "until"} and all(map(_is_hour, span.values())):
            hours = [*list_hours(span["from"], span["until"])]
    if all(map(_is_hour, hours)):
        words = tuple(f"{hour:02}" for hour in sorted(hours))
        return compare("session", "TIME_OF_THE_DAY", LIST_OPERATORS["in"], words)
    value.wrong('must be an hour (0 to 23), an array of hours, or {"from": 22, "until": 5}')
    return _NOTHING


def _is_hour(value: object) -> bool:
    return type(value) is int and 0 <= value <= 23


def _read_ip(value: Value) -> Rule:
    networks = _list(value)
    for network in networks:
        try:
            ipaddress.ip_network(network if isinstance(network, str) else "")
        except ValueError:
            valid = 'a network such as "203.0.113.0/24" (all bits after the mask are 0)'
            value.add(f"must be {valid}, not {shown(network)}")
    return compare("session", "USER_IP_ADDRESS", IN_NETWORK, tuple(map(str, networks)))


_CONDITIONS: Mapping[str, Callable[[Value], Rule]] = {
    "and": lambda value: match_all(_read_rules(value)),
    "or": lambda value: match_any(_read_rules(value)),
    "not": lambda value: match_opposite(read_rule(value)),
    "day": lambda value: compare("session", "DAY_OF_THE_WEEK", LIST_OPERATORS["in"], _read_words(value, DAYS)),
    "hour": _read_hour,
    "device": lambda value: match_device(_read_words(value, DEVICES)),
    "ip": _read_ip,
}

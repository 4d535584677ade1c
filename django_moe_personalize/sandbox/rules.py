"""Who is in an audience: conditions on a visitor, each of which can say why it held or not."""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

Scalar = str | int | float | bool
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DEVICES = ("phone", "tablet", "desktop", "bot")

_BOT = re.compile(r"bot\b|bot/|crawl|spider|slurp|preview|headless|curl/|wget/|python-requests", re.I)
_TABLET = re.compile(r"ipad|tablet|kindle|silk/|playbook|android(?!.*mobile)", re.I)
_PHONE = re.compile(r"iphone|ipod|mobile|android|blackberry|opera mini|windows phone", re.I)


@dataclass(frozen=True, slots=True)
class Visitor:
    """What rules see: the customer's stored attributes and this session's (contract §2)."""

    customer: Mapping[str, Scalar] = field(default_factory=dict)
    session: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a rule held, and in words why."""

    matched: bool
    sentence: str


class Rule(Protocol):
    """A condition on a visitor."""

    def check(self, visitor: Visitor) -> Finding:
        """Return whether ``visitor`` meets the condition, and why."""
        ...


def as_text(value: Scalar) -> str:
    """Return a scalar as the wire writes it in a string: ``true``, ``150``, ``email``."""
    return value if isinstance(value, str) else json.dumps(value)


def as_number(value: Scalar) -> float:
    """Return a number, or the number a string holds; NaN for anything else, which no range contains."""
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def is_same(actual: Scalar, wanted: Scalar) -> bool:
    """Whether two scalars are equal; as numbers when ``wanted`` is one, else as text."""
    if isinstance(wanted, (int, float)) and not isinstance(wanted, bool):
        return as_number(actual) == as_number(wanted)
    return as_text(actual) == as_text(wanted)


@dataclass(frozen=True, slots=True)
class Operator:
    """One comparison: its words in a sentence, its test, and its answer for an absent attribute."""

    words: str
    test: Callable[[Scalar, Scalar], bool]
    absent: bool = False


OPERATORS: Mapping[str, Operator] = {
    "is": Operator("is", is_same),
    "is_not": Operator("is not", lambda actual, wanted: not is_same(actual, wanted), absent=True),
    "contains": Operator("contains", lambda actual, wanted: as_text(wanted) in as_text(actual)),
    "starts_with": Operator("starts with", lambda actual, wanted: as_text(actual).startswith(as_text(wanted))),
    "ends_with": Operator("ends with", lambda actual, wanted: as_text(actual).endswith(as_text(wanted))),
    "gt": Operator("is above", lambda actual, wanted: as_number(actual) > as_number(wanted)),
    "gte": Operator("is at least", lambda actual, wanted: as_number(actual) >= as_number(wanted)),
    "lt": Operator("is below", lambda actual, wanted: as_number(actual) < as_number(wanted)),
    "lte": Operator("is at most", lambda actual, wanted: as_number(actual) <= as_number(wanted)),
}
"""Comparisons with one value. Ranges compare numbers, also those held in strings."""


@dataclass(frozen=True, slots=True)
class AttributeRule:
    """Compare an attribute, of the customer or of the session, with a value."""

    source: str
    name: str
    operator: Operator
    wanted: Scalar

    def check(self, visitor: Visitor) -> Finding:
        """See Rule.check()."""
        actual = _attribute(visitor, self.source, self.name)
        matched = self.operator.absent if actual is None else self.operator.test(actual, self.wanted)
        words = f"{_label(self.source, self.name)} {self.operator.words} {as_text(self.wanted)}"
        return _finding(words, actual, matched=matched)


@dataclass(frozen=True, slots=True)
class MemberRule:
    """Compare an attribute with a list of values; ``negated`` asks for none of them."""

    source: str
    name: str
    wanted: tuple[Scalar, ...]
    negated: bool = False

    def check(self, visitor: Visitor) -> Finding:
        """See Rule.check()."""
        actual = _attribute(visitor, self.source, self.name)
        found = actual is not None and any(is_same(actual, value) for value in self.wanted)
        words = f"is {'none' if self.negated else 'one'} of {', '.join(map(as_text, self.wanted))}"
        return _finding(f"{_label(self.source, self.name)} {words}", actual, matched=found is not self.negated)


@dataclass(frozen=True, slots=True)
class ExistsRule:
    """Ask whether an attribute is there at all."""

    source: str
    name: str
    wanted: bool

    def check(self, visitor: Visitor) -> Finding:
        """See Rule.check()."""
        actual = _attribute(visitor, self.source, self.name)
        words = f"{_label(self.source, self.name)} is {'there' if self.wanted else 'absent'}"
        return _finding(words, actual, matched=(actual is not None) is self.wanted)


@dataclass(frozen=True, slots=True)
class HourRule:
    """Compare TIME_OF_THE_DAY with the hours wanted (0 … 23); an hour not sent meets nothing."""

    hours: frozenset[int]

    def check(self, visitor: Visitor) -> Finding:
        """See Rule.check()."""
        hour = visitor.session.get("TIME_OF_THE_DAY")
        matched = hour is not None and int(hour) in self.hours
        return _finding(f"the hour is one of {_hours(self.hours)}", hour, matched=matched)


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """Compare the device type, read from USER_AGENT, with those wanted."""

    devices: tuple[str, ...]

    def check(self, visitor: Visitor) -> Finding:
        """See Rule.check()."""
        device = device_type(visitor.session.get("USER_AGENT", ""))
        return _finding(f"the device is a {' or '.join(self.devices)}", device, matched=device in self.devices)


@dataclass(frozen=True, slots=True)
class NetworkRule:
    """Look for USER_IP_ADDRESS in networks; an address that cannot be read is in none."""

    networks: tuple[Network, ...]

    def check(self, visitor: Visitor) -> Finding:
        """See Rule.check()."""
        text = visitor.session.get("USER_IP_ADDRESS")
        try:
            address = ipaddress.ip_address(text or "")
        except ValueError:
            matched = False
        else:
            matched = any(address in network for network in self.networks)
        return _finding(f"the address is in {' or '.join(map(str, self.networks))}", text, matched=matched)


@dataclass(frozen=True, slots=True)
class AllRule:
    """Ask for every one of ``rules``; without any it always holds."""

    rules: tuple[Rule, ...]

    def check(self, visitor: Visitor) -> Finding:
        """See Rule.check()."""
        findings = [rule.check(visitor) for rule in self.rules]
        failed = [finding.sentence for finding in findings if not finding.matched]
        return Finding(not failed, " and ".join(failed or [finding.sentence for finding in findings]))


@dataclass(frozen=True, slots=True)
class AnyRule:
    """Ask for at least one of ``rules``."""

    rules: tuple[Rule, ...]

    def check(self, visitor: Visitor) -> Finding:
        """See Rule.check()."""
        findings = [rule.check(visitor) for rule in self.rules]
        held = [finding.sentence for finding in findings if finding.matched]
        return Finding(bool(held), held[0] if held else " or ".join(finding.sentence for finding in findings))


@dataclass(frozen=True, slots=True)
class NotRule:
    """Ask that ``rule`` does not hold."""

    rule: Rule

    def check(self, visitor: Visitor) -> Finding:
        """See Rule.check()."""
        finding = self.rule.check(visitor)
        return Finding(not finding.matched, f"not ({finding.sentence})")


def device_type(user_agent: str) -> str | None:
    """Return one of DEVICES from a User-Agent header; ``None`` when there is none."""
    if not user_agent:
        return None
    for device, pattern in (("bot", _BOT), ("tablet", _TABLET), ("phone", _PHONE)):
        if pattern.search(user_agent):
            return device
    return "desktop"


def hours_between(start: int, until: int) -> frozenset[int]:
    """Return the hours from ``start`` to before ``until``, past midnight when ``until`` is not later."""
    return frozenset((start + step) % 24 for step in range((until - start) % 24 or 24))


def _attribute(visitor: Visitor, source: str, name: str) -> Scalar | None:
    return visitor.customer.get(name) if source == "customer" else visitor.session.get(name)


def _label(source: str, name: str) -> str:
    return f"the customer's {name}" if source == "customer" else name


def _hours(hours: frozenset[int]) -> str:
    return ", ".join(f"{hour:02}" for hour in sorted(hours))


def _finding(words: str, actual: Scalar | None, *, matched: bool) -> Finding:
    if matched:
        return Finding(True, words)
    return Finding(False, f"{words} (it is {'absent' if actual is None else as_text(actual)})")

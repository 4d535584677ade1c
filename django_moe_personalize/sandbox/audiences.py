"""Decide which audiences a visitor is in. An audience has a rule, and the rule says why a visitor matches or not."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Scalar = str | int | float | bool
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DEVICES = ("Mobile", "Desktop", "Tablet")
"""The words of MoEngage's dashboard. A robot has the device that its user agent claims."""

_TABLET = re.compile(r"ipad|tablet|kindle|silk/|playbook|android(?!.*mobile)", re.I)
_MOBILE = re.compile(r"iphone|ipod|mobile|android|blackberry|opera mini|windows phone", re.I)


@dataclass(frozen=True, slots=True)
class Visitor:
    """The visitor's data for the rules: stored attributes of the customer, and in-session attributes (contract §2)."""

    customer: Mapping[str, Scalar] = field(default_factory=dict)
    session: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a visitor matches a rule, and a sentence that says why."""

    matched: bool
    sentence: str


class Rule(Protocol):
    """A condition on a visitor."""

    def check(self, visitor: Visitor) -> Finding:
        """Return whether ``visitor`` matches the rule, and why."""
        ...


@dataclass(frozen=True, slots=True)
class Audience:
    """A rule with a name. Without a rule, every visitor is in the audience."""

    name: str
    rule: Rule | None = None

    @property
    def audience_id(self) -> str:
        """A short id, derived from the name."""
        return hashlib.sha256(self.name.encode("utf-8", "replace")).hexdigest()[:6].upper()


EVERYONE = Audience("All users")


def as_text(value: Scalar) -> str:
    """Return a string unchanged, and another scalar as JSON, such as ``true`` or ``150``."""
    return value if isinstance(value, str) else json.dumps(value)


def as_number(value: Scalar) -> float:
    """Return a number, or the number in a string. For other values return NaN: no comparison with NaN is true."""
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def is_same(actual: Scalar, wanted: Scalar) -> bool:
    """Whether two scalars are equal. If ``wanted`` is a number, compare numbers, otherwise compare text."""
    if isinstance(wanted, (int, float)) and not isinstance(wanted, bool):
        return as_number(actual) == as_number(wanted)
    return as_text(actual) == as_text(wanted)


@dataclass(frozen=True, slots=True)
class Operator:
    """A comparison of an attribute with a wanted value. ``absent`` is the result if the visitor lacks the attribute."""

    words: str
    test: Callable[[Scalar, Any], bool]
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
"""Comparisons with one value. The last four compare numbers, and also read numbers in strings."""

LIST_OPERATORS: Mapping[str, Operator] = {
    "in": Operator("is one of", lambda actual, wanted: any(is_same(actual, each) for each in wanted)),
    "not_in": Operator(
        "is none of", lambda actual, wanted: not any(is_same(actual, each) for each in wanted), absent=True
    ),
}
"""Comparisons with a tuple of values."""

EXISTS = Operator("exists", lambda actual, wanted: True)
EXISTS_NOT = Operator("doesn't exist", lambda actual, wanted: False, absent=True)


@dataclass(frozen=True, slots=True)
class AttributeRule:
    """Compare an attribute of the customer or of the session with a value. EXISTS and EXISTS_NOT need no value."""

    source: str
    name: str
    operator: Operator
    wanted: Scalar | tuple[Scalar, ...] = ()

    def check(self, visitor: Visitor) -> Finding:
        """See Rule.check()."""
        is_customer = self.source == "customer"
        actual = (visitor.customer if is_customer else visitor.session).get(self.name)
        matched = self.operator.absent if actual is None else self.operator.test(actual, self.wanted)
        label = f"the customer's {self.name}" if is_customer else self.name
        wanted = self.wanted if isinstance(self.wanted, tuple) else (self.wanted,)
        words = f"{label} {self.operator.words} {', '.join(map(as_text, wanted))}".rstrip()
        return _build_finding(words, actual, matched=matched)


@dataclass(frozen=True, slots=True)
class HourRule:
    """Match if TIME_OF_THE_DAY is one of ``hours`` (0 to 23). Without this attribute the rule doesn't match."""

    hours: frozenset[int]

    def check(self, visitor: Visitor) -> Finding:
        """See Rule.check()."""
        hour = visitor.session.get("TIME_OF_THE_DAY")
        matched = hour is not None and int(hour) in self.hours
        hours = ", ".join(f"{each:02}" for each in sorted(self.hours))
        return _build_finding(f"the hour is one of {hours}", hour, matched=matched)


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """Match if USER_AGENT belongs to one of ``devices``."""

    devices: tuple[str, ...]

    def check(self, visitor: Visitor) -> Finding:
        """See Rule.check()."""
        device = find_device(visitor.session.get("USER_AGENT", ""))
        return _build_finding(f"the device is {' or '.join(self.devices)}", device, matched=device in self.devices)


@dataclass(frozen=True, slots=True)
class NetworkRule:
    """Match if USER_IP_ADDRESS is in one of ``networks``. An invalid address doesn't match."""

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
        return _build_finding(f"the address is in {' or '.join(map(str, self.networks))}", text, matched=matched)


@dataclass(frozen=True, slots=True)
class AllRule:
    """Match if all ``rules`` match. Without rules, match too."""

    rules: tuple[Rule, ...]

    def check(self, visitor: Visitor) -> Finding:
        """See Rule.check()."""
        findings = [rule.check(visitor) for rule in self.rules]
        failed = [finding.sentence for finding in findings if not finding.matched]
        return Finding(not failed, " and ".join(failed or [finding.sentence for finding in findings]))


@dataclass(frozen=True, slots=True)
class AnyRule:
    """Match if at least one of ``rules`` matches."""

    rules: tuple[Rule, ...]

    def check(self, visitor: Visitor) -> Finding:
        """See Rule.check()."""
        findings = [rule.check(visitor) for rule in self.rules]
        held = [finding.sentence for finding in findings if finding.matched]
        return Finding(bool(held), held[0] if held else " or ".join(finding.sentence for finding in findings))


@dataclass(frozen=True, slots=True)
class NotRule:
    """Match if ``rule`` does not match."""

    rule: Rule

    def check(self, visitor: Visitor) -> Finding:
        """See Rule.check()."""
        finding = self.rule.check(visitor)
        return Finding(not finding.matched, f"not ({finding.sentence})")


def find_device(user_agent: str) -> str | None:
    """Return the device (see DEVICES) that a User-Agent header belongs to, or ``None`` for an empty header."""
    if not user_agent:
        return None
    for device, pattern in (("Tablet", _TABLET), ("Mobile", _MOBILE)):
        if pattern.search(user_agent):
            return device
    return "Desktop"


def list_hours(start: int, until: int) -> frozenset[int]:
    """Return the hours from ``start`` to just before ``until``. If ``until`` isn't later, continue past midnight."""
    return frozenset((start + step) % 24 for step in range((until - start) % 24 or 24))


def _build_finding(words: str, actual: Scalar | None, *, matched: bool) -> Finding:
    if matched:
        return Finding(True, words)
    return Finding(False, f"{words} (it is {'absent' if actual is None else as_text(actual)})")

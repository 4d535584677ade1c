"""Decide which audiences a visitor is in. An audience has a rule, and the rule says why a visitor matches or not."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Scalar = str | int | float | bool

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DEVICES = ("Mobile", "Desktop", "Tablet")
"""The words of MoEngage's dashboard. A robot has the device that its user agent claims."""

_TABLET = re.compile(r"ipad|tablet|kindle|silk/|playbook|android(?!.*mobile)", re.I)
_MOBILE = re.compile(r"iphone|ipod|mobile|android|blackberry|opera mini|windows phone", re.I)


@dataclass(frozen=True, slots=True)
class Visitor:
    """The visitor of a fetch: stored attributes of the customer, and in-session attributes (contract §2)."""

    customer: Mapping[str, Scalar] = field(default_factory=dict)
    session: Mapping[str, str] = field(default_factory=dict)
    customer_id: str | None = field(default=None, repr=False)

    @property
    def identity(self) -> str:
        """Visitors with the same identity always get the same variations. Without an id, the IP address and the user
        agent are the identity."""
        if self.customer_id is not None:
            return f"customer:{self.customer_id}"
        address = self.session.get("USER_IP_ADDRESS", "")
        return f"session:{len(address)}:{address}:{self.session.get('USER_AGENT', '')}"


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a visitor matches a rule, and a sentence that says why."""

    matched: bool
    sentence: str


Rule = Callable[[Visitor], Finding]
"""A condition: find out whether a visitor matches it, and why."""


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


def is_in_network(address: Scalar, networks: Iterable[str]) -> bool:
    """Whether an IP address is in one of ``networks``. Other text is in no network."""
    try:
        found = ipaddress.ip_address(address if isinstance(address, str) else "")
    except ValueError:
        return False
    return any(found in ipaddress.ip_network(network) for network in networks)


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
IN_NETWORK = Operator("is in", is_in_network)


def compare(source: str, name: str, operator: Operator, wanted: Scalar | tuple[Scalar, ...] = ()) -> Rule:
    """Return a rule on an attribute of the customer or of the session. EXISTS and EXISTS_NOT need no ``wanted`` value.

    ``source`` is "customer" or "session".
    """
    label = f"the customer's {name}" if source == "customer" else name
    values = wanted if isinstance(wanted, tuple) else (wanted,)
    words = f"{label} {operator.words} {', '.join(map(as_text, values))}".rstrip()

    def check(visitor: Visitor) -> Finding:
        actual = (visitor.customer if source == "customer" else visitor.session).get(name)
        matched = operator.absent if actual is None else operator.test(actual, wanted)
        return _build_finding(words, actual, matched=matched)

    return check


def match_device(devices: Sequence[str]) -> Rule:
    """Return a rule that matches if USER_AGENT belongs to one of ``devices``."""

    def check(visitor: Visitor) -> Finding:
        device = find_device(visitor.session.get("USER_AGENT", ""))
        return _build_finding(f"the device is {' or '.join(devices)}", device, matched=device in devices)

    return check


def match_all(rules: Sequence[Rule]) -> Rule:
    """Return a rule that matches if all ``rules`` match, and if there are none."""

    def check(visitor: Visitor) -> Finding:
        findings = [rule(visitor) for rule in rules]
        failed = [finding.sentence for finding in findings if not finding.matched]
        return Finding(not failed, " and ".join(failed or [finding.sentence for finding in findings]))

    return check


def match_any(rules: Sequence[Rule]) -> Rule:
    """Return a rule that matches if at least one of ``rules`` matches."""

    def check(visitor: Visitor) -> Finding:
        findings = [rule(visitor) for rule in rules]
        held = [finding.sentence for finding in findings if finding.matched]
        return Finding(bool(held), held[0] if held else " or ".join(finding.sentence for finding in findings))

    return check


def match_opposite(rule: Rule) -> Rule:
    """Return a rule that matches if ``rule`` doesn't match."""

    def check(visitor: Visitor) -> Finding:
        finding = rule(visitor)
        return Finding(not finding.matched, f"not ({finding.sentence})")

    return check


def find_device(user_agent: str) -> str | None:
    """Return the device (see DEVICES) that a User-Agent header belongs to, or ``None`` for an empty header."""
    if _TABLET.search(user_agent):
        return "Tablet"
    if _MOBILE.search(user_agent):
        return "Mobile"
    return "Desktop" if user_agent else None


def list_hours(start: int, until: int) -> frozenset[int]:
    """Return the hours from ``start`` to just before ``until``. If ``until`` isn't later, continue past midnight."""
    return frozenset((start + step) % 24 for step in range((until - start) % 24 or 24))


def _build_finding(words: str, actual: Scalar | None, *, matched: bool) -> Finding:
    if matched:
        return Finding(True, words)
    return Finding(False, f"{words} (it is {'absent' if actual is None else as_text(actual)})")

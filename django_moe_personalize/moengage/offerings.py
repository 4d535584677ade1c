"""Offerings: a product, coupon or tier that a decision policy of MoEngage picks for a visitor (contract §5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from django_moe_personalize.moengage.frozen import Value, freeze, thaw
from django_moe_personalize.moengage.strict_json import as_list, as_object, as_text, parse_or


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Offering(Value, Mapping[str, Any]):
    """One offering, a mapping of its content.

    ``content`` is the content that the marketer wrote, ``context`` the ``offering_context``, ``raw`` the
    whole entry as MoEngage sent it. ``offering["title"]`` and, in templates, ``offer.title`` read ``content``.

    In Python, attributes and content never mix: ``offering.context`` is the attribute and
    ``offering["context"]`` the content. In templates, the content wins over an attribute or a method of
    the same name. An offering is always true, and unhashable, because its values are dicts.
    """

    offering_id: str
    content: Mapping[str, Any]
    context: Mapping[str, Any] = field(default_factory=dict, repr=False)
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, name: str) -> Any:
        return self.content[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)

    def __bool__(self) -> bool:
        return True

    def to_dict(self) -> dict[str, Any]:
        """Return the offering as plain data that ``json.dumps()`` takes, without ``raw``."""
        return {"offering_id": self.offering_id, "content": thaw(self.content), "context": thaw(self.context)}


def find_offerings(payload: Mapping[str, Any]) -> Iterator[Offering]:
    """Yield the offerings of a payload, whatever the marketer named their variables (contract §5)."""
    for value in payload.values():
        yield from read_offerings(value)


def read_offerings(value: object) -> Iterator[Offering]:
    """Yield the offerings in the value of one payload variable: an array, ``{"offerings": […]}``, or JSON text."""
    entries = _parse_container(value)
    if isinstance(entries, dict):
        entries = entries.get("offerings")
    for entry in map(as_object, as_list(entries)):
        if context := as_object(entry.get("offering_context")):
            content = _parse_container(entry.get("offering_content"))
            if isinstance(content, dict) and content.get("type") == "json" and "payload" in content:
                content = _parse_container(content["payload"])
            offering_id = as_text(entry.get("dp_offering_id")) or as_text(context.get("moe_offering_id"))
            yield Offering(offering_id, freeze(as_object(content)), freeze(context), freeze(entry))


def _parse_container(value: object) -> object:
    """Return the object or array in a string of JSON, and any other value unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        return parse_or(None, value)
    return value

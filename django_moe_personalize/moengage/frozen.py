"""Unchangeable values: all visitors with the same variation share one copy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def _refuse(self: object, *args: object, **kwargs: object) -> Any:
    raise TypeError("All visitors with this experience share its content. Change a copy: copy.deepcopy(…).")


def _thaw(self: Any) -> tuple[Any, ...]:
    """Make copy and pickle return the plain dict or list."""
    plain = dict if isinstance(self, dict) else list
    return plain, (plain(self),)


# Real dicts and lists, so that JSON, templates and isinstance() treat them as such.
class FrozenDict(dict[str, Any]):
    """A dict that refuses every change."""

    # Underscored, because templates can read all other attributes.
    _json = ""
    __reduce__ = _thaw
    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse


class FrozenList(list[Any]):
    """A list that refuses every change."""

    __slots__ = ()
    __reduce__ = _thaw
    __setitem__ = __delitem__ = __iadd__ = __imul__ = append = clear = extend = _refuse
    insert = pop = remove = reverse = sort = _refuse


def freeze(value: Any) -> Any:
    """Return a deep copy of a JSON value that refuses every change; the value itself if it already does."""
    if isinstance(value, (str, FrozenDict, FrozenList)):
        return value
    if isinstance(value, Mapping):
        return FrozenDict({name: freeze(part) for name, part in value.items()})
    if isinstance(value, list):
        return FrozenList([freeze(part) for part in value])
    return value


def thaw(value: Any) -> Any:
    """Return a deep copy of a JSON value, as plain dicts and lists."""
    if isinstance(value, Mapping):
        return {name: thaw(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(part) for part in value]
    return value


def _open(value: object) -> dict[Any, Any]:
    """Let the encoder write any mapping as a dict."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON type")


# json.dumps() builds an encoder for every call with other options than the default ones.
write_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_open).encode
"""Return a value as compact ASCII JSON. Raises TypeError or ValueError for values that JSON doesn't have."""


def encode(value: Any) -> str:
    """Return write_json(), which a FrozenDict remembers."""
    if value.__class__ is not FrozenDict:
        return write_json(value)
    # An event is mostly its experience context: remembering its JSON saves 65 bytecodes and 2.6 µs for each event.
    if not value._json:
        value._json = write_json(value)
    text: str = value._json
    return text


class Value:
    """Base of the public dataclasses: compares, hashes and shows a value by its fields."""

    # @dataclass would compile these methods for each class: 2 of the 15 ms that importing the package may take.
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return _get_compared(self) == _get_compared(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self) -> int:
        return hash(_get_compared(self))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in _get_names(self, "repr"))
        return f"{type(self).__name__}({shown})"


def _get_compared(value: object) -> tuple[Any, ...]:
    return tuple(getattr(value, name) for name in _get_names(value, "compare"))


def _get_names(value: Any, option: str) -> list[str]:
    return [field.name for field in fields(value) if getattr(field, option)]

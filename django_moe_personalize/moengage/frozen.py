"""JSON values that nobody can change: an answer is shared by all visitors who got it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def _refuse(self: object, *args: object, **kwargs: object) -> Any:
    raise TypeError("This experience is shared by all visitors who have it: copy what you want to change.")


def _thaw(self: Any) -> tuple[type, tuple[Any]]:
    """Let copy and pickle give the plain thing."""
    plain = dict if isinstance(self, dict) else list
    return plain, (plain(self),)


def _build_frozen(base: type, *changing: str) -> type[Any]:
    """Build a subclass, so that JSON, templates and ``isinstance`` see what it is, that does not change."""
    return type(f"Frozen{base.__name__.title()}", (base,), dict.fromkeys(changing, _refuse) | {"__reduce__": _thaw})


_BOTH = ("__setitem__", "__delitem__", "clear", "pop")
_FrozenDict = _build_frozen(dict, *_BOTH, "__ior__", "popitem", "setdefault", "update")
_FrozenList = _build_frozen(
    list, *_BOTH, "__iadd__", "__imul__", "append", "extend", "insert", "remove", "reverse", "sort"
)


def freeze(value: Any) -> Any:
    """Return a copy of a JSON value in which no page can change what another shows; itself if it is one."""
    kind = value.__class__
    if kind is str or kind is _FrozenDict or kind is _FrozenList:
        return value
    if isinstance(value, Mapping):
        return _FrozenDict({name: freeze(part) for name, part in value.items()})
    if isinstance(value, list):
        return _FrozenList([freeze(part) for part in value])
    return value


def _open(value: object) -> dict[Any, Any]:
    """Let any mapping be written as the dictionary that it shows."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


# json.dumps() builds an encoder for every call that wants another than the default.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_open).encode


def encode(value: Any) -> str:
    """Return compact JSON in ASCII; an object that nobody can change remembers it, for as long as there is one.

    Raises TypeError or ValueError for what JSON does not have.
    """
    if value.__class__ is not _FrozenDict:
        return _encode(value)
    known = vars(value)
    if "_json" not in known:
        # Underscored, since templates show what attributes they find.
        known["_json"] = _encode(value)
    text: str = known["_json"]
    return text

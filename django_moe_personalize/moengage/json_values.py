"""JSON and Python values: parse strictly, write, convert, and freeze values that visitors share."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from django_moe_personalize.exceptions import InvalidResponseError

MAX_DEPTH = 64
"""The most levels of nested arrays and objects. parse_json() refuses deeper JSON before it parses the JSON."""

MAX_DIGITS = 300
"""The most digits of an integer. A longer integer is too large for a float, and slow to convert."""

MAX_VALUES = 3000
"""The most values that are built from one response: texts, numbers, arrays and objects, also those in texts that hold
JSON. 25 experiences with eight variables each have 900. A value takes 1 to 3.5 µs until it's cached."""

MAX_LIGHT_VALUES = 1000
"""A page's own thread or event loop reads a response with at most so many values. A pool thread reads larger ones."""

MAX_MEMBERS = 1000
"""The most members of an object that split_object() splits."""

_UNREADABLE: Final = "MoEngage's response cannot be read: "
_TEXT: Final = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# A string is one token, so that brackets inside a string don't count. The closing quote is optional: otherwise, in a
# string that never ends, the search would start again at each escaped quote, and take quadratic time.
_STRUCTURE: Final = re.compile(rf"{_TEXT}?|[,\[\]{{}}]", re.DOTALL)
_OPENING: Final = re.compile(r"\s*\{\s*(\}?)")
_NAME: Final = re.compile(rf"\s*({_TEXT})\s*:\s*", re.DOTALL)
_SEPARATOR: Final = re.compile(r"\s*([,}])")
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class OversizeError(InvalidResponseError):
    """The response has too many values or members."""


class Budget:
    """How many values may still be built from one response."""

    __slots__ = ("left", "limit")

    def __init__(self, limit: int = MAX_VALUES) -> None:
        self.left = self.limit = limit

    def spend_more(self, count: int) -> None:
        """Subtract ``count`` values. Raises OversizeError if too few values are left."""
        if count > self.left:
            raise OversizeError(f"{_UNREADABLE}the response has more than {self.limit} values")
        self.left -= count

    def spend(self, text: str) -> None:
        """Subtract the values in a JSON text, at least as many as json.loads() would build.

        If too few values are left, subtracts nothing and raises OversizeError. Raises InvalidResponseError if the text
        nests deeper than MAX_DEPTH: json.loads() recurses, and fails at a depth that depends on the caller's stack.
        """
        # Each value but the first follows a comma, or is the first value in an array or object.
        openings = text.count("[") + text.count("{")
        count = openings + text.count(",")
        if openings > MAX_DEPTH or count > self.left:
            count = self._count(text)
        self.spend_more(count)

    def _count(self, text: str) -> int:
        count = depth = 0
        for token in _STRUCTURE.finditer(text):
            mark = token[0]
            if mark in ("]", "}"):
                depth -= 1
            elif mark[0] != '"':
                count += 1
                depth += mark != ","
                if depth > MAX_DEPTH:
                    raise _reject(f"it nests deeper than {MAX_DEPTH} levels")
                if count > self.left:
                    break
        return count


def parse_json(text: bytes | str, budget: Budget | None = None) -> Any:
    """Return the value of a JSON text. Take the values from ``budget``, by default from a new one.

    Raises OversizeError if the budget is too small. Raises InvalidResponseError for empty or invalid JSON, an encoding
    other than UTF-8, a byte order mark, NaN, Infinity, a number that is too large, a repeated name in an object, and
    nesting deeper than MAX_DEPTH. Replaces lone surrogates with U+FFFD, because a page with a lone surrogate can't be
    encoded.
    """
    text = decode(text) if isinstance(text, bytes) else text
    if not text or text.isspace():
        raise _reject("it is empty")
    (budget or Budget()).spend(text)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_build_object,
            parse_constant=_reject_constant,
            parse_float=_parse_float,
            parse_int=_parse_integer,
        )
    except json.JSONDecodeError as error:
        raise _reject(f"it is not JSON: {error.msg} at character {error.pos}") from error
    if _SURROGATE.search(text):
        value = json.loads(_LONE_SURROGATE.sub("\ufffd", json.dumps(value, ensure_ascii=False)))
    return value


def decode(body: bytes) -> str:
    """Return a body as text. Raises InvalidResponseError for an encoding other than UTF-8 and a byte order mark."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _reject("it is not UTF-8") from error
    if text.startswith("\ufeff"):
        raise _reject("it starts with a byte order mark")
    return text


def split_object(text: str, split: str) -> dict[str, Any]:
    """Return the JSON text of each member of an object, without building or checking the members.

    If the member ``split`` is an object, it becomes a dict with the JSON text of each of its members. Raises
    OversizeError for more than MAX_MEMBERS members. Raises InvalidResponseError if the text isn't an object, or an
    object repeats a name.
    """
    members, at = _split(text, 0, split)
    if text[at:].strip():
        raise _reject("it is not JSON: Extra data")
    return members


def _split(text: str, at: int, split: str = "") -> tuple[dict[str, Any], int]:
    members: list[tuple[str, Any]] = []
    if (sign := _OPENING.match(text, at)) is None:
        raise _reject("it is not an object")
    while sign[1] != "}":
        if len(members) == MAX_MEMBERS:
            raise OversizeError(f"{_UNREADABLE}an object has more than {MAX_MEMBERS} members")
        name = _NAME.match(text, sign.end())
        start = name.end() if name else 0
        value: Any
        if name and name[1] == f'"{split}"' and text.startswith("{", start):
            value, at = _split(text, start)
        elif name and (skipped := _get_value().match(text, start)):
            value, at = skipped[0], skipped.end()
        else:
            raise _reject(f"it is not JSON, or it nests deeper than {MAX_DEPTH} levels")
        members.append((parse_json(name[1]), value))
        if (sign := _SEPARATOR.match(text, at)) is None:
            raise _reject("it is not JSON: an object doesn't end")
    return _build_object(members), sign.end()


@functools.cache
def _get_value() -> re.Pattern[str]:
    """Return a pattern for a value, at most MAX_DEPTH levels deep. It takes 2 to 30 ns a character.

    The pattern is compiled when the first large response arrives, because that takes 10 ms.
    """
    inner = rf'[^"\[\]{{}}]*+(?:{_TEXT}[^"\[\]{{}}]*+)*+'
    for _ in range(MAX_DEPTH - 1):
        inner = rf'[^"\[\]{{}}]*+(?:(?:{_TEXT}|[\[{{]{inner}[\]}}])[^"\[\]{{}}]*+)*+'
    return re.compile(rf'[\[{{]{inner}[\]}}]|{_TEXT}|[^\s,\[\]{{}}"]++', re.DOTALL)


def _reject(problem: str) -> InvalidResponseError:
    return InvalidResponseError(_UNREADABLE + problem)


def parse_or(default: Any, text: bytes | str, budget: Budget | None = None) -> Any:
    """Return the value of a JSON text, or ``default`` if parse_json() refuses the text.

    Raises OversizeError if the given ``budget`` is too small.
    """
    try:
        return parse_json(text, budget)
    except InvalidResponseError as error:
        if budget is not None and isinstance(error, OversizeError):
            raise
        return default


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise _reject("an object repeats a name")
    return names


def _reject_constant(_name: str) -> object:
    raise _reject("it holds NaN or Infinity")


def _parse_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _reject("it holds a number that is too large")
    return number


def _parse_integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _reject("it holds a number that is too large")
    return int(digits)


def as_object(value: object) -> dict[str, Any]:
    """Return ``value`` if it's a JSON object, otherwise an empty dict."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """Return ``value`` if it's a JSON array, otherwise an empty list."""
    return value if isinstance(value, list) else []


def as_text(value: object) -> str:
    """Return ``value`` if it's a string, the text of a number, and ``""`` for any other value."""
    return value if isinstance(value, str) else str(value) if is_number(value) else ""


def is_number(value: object) -> bool:
    """Return whether ``value`` is a JSON number. ``True`` and ``False`` aren't numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse(self: object, *args: object, **kwargs: object) -> Any:
    raise TypeError("All visitors with this experience share its content. Change a copy: copy.deepcopy(…).")


def _thaw(self: Any) -> tuple[Any, ...]:
    """Make ``copy`` and ``pickle`` return a plain dict or list."""
    plain = dict if isinstance(self, dict) else list
    return plain, (plain(self),)


# Subclasses of dict and list, because json, templates and isinstance() support them.
class FrozenDict(dict[str, Any]):
    """An unchangeable dict."""

    # The remembered JSON, see encode(). Underscored, so that templates can't read the attribute.
    _json = ""
    # For the experiences of a fetch: see get_answers(). For these answers: the remembered entry in a cache.
    _answers: Mapping[str, Any] = MappingProxyType({})
    _bundle: Any = None
    __reduce__ = _thaw
    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse


class FrozenList(list[Any]):
    """An unchangeable list."""

    __slots__ = ()
    __reduce__ = _thaw
    __setitem__ = __delitem__ = __iadd__ = __imul__ = append = clear = extend = _refuse
    insert = pop = remove = reverse = sort = _refuse


def freeze(value: Any) -> Any:
    """Return an unchangeable deep copy of a JSON value. Returns an unchangeable value itself."""
    if isinstance(value, (str, FrozenDict, FrozenList)):
        return value
    if isinstance(value, Mapping):
        return FrozenDict({name: freeze(part) for name, part in value.items()})
    if isinstance(value, list):
        return FrozenList([freeze(part) for part in value])
    return value


def thaw(value: Any) -> Any:
    """Return a deep copy of a JSON value with plain dicts and lists."""
    if isinstance(value, Mapping):
        return {name: thaw(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(part) for part in value]
    return value


def _open(value: object) -> dict[Any, Any]:
    """Return a mapping as a dict for the JSON encoder. Raises TypeError for any other value."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON type")


# With these options, json.dumps() would build a new encoder for each call.
write_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_open).encode
"""Return a value as compact ASCII JSON. Raises TypeError or ValueError for a value that JSON can't express."""


write_text = json.encoder.encode_basestring_ascii
"""Return a string as ASCII JSON."""


def encode(value: Any) -> str:
    """Return ``write_json(value)``. A FrozenDict remembers its JSON."""
    if value.__class__ is not FrozenDict:
        return write_json(value)
    # Most of an event's JSON is the experience context. A remembered JSON saves 65 bytecodes and 2.6 µs an event.
    if not value._json:
        value._json = write_json(value)
    text: str = value._json
    return text

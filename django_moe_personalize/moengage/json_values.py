"""JSON as Python values: parse and write it strictly, and keep all visitors' values unchangeable."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from django_moe_personalize.exceptions import InvalidResponseError

MAX_DEPTH = 64
"""Arrays and objects inside one another. Deeper JSON is refused before it's parsed."""

MAX_DIGITS = 300
"""Digits of an integer. A longer one doesn't fit into a float, and converting it takes quadratic time."""

# A string is one token, so that brackets inside don't count. The closing quote is optional: otherwise the
# scan tries a string that never ends again from each of its quotes.
_STRUCTURE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: bytes | str) -> Any:
    """Return a JSON value.

    Raises InvalidResponseError for an empty text, an encoding other than UTF-8, a byte order mark,
    broken JSON, NaN and Infinity, a repeated name in an object, integers of more than MAX_DIGITS
    digits, and nesting deeper than MAX_DEPTH. Replaces lone surrogates with U+FFFD, because a page
    with a lone surrogate can't be encoded.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        if not text or text.isspace():
            raise _reject("it is empty")
        if text.startswith("\ufeff"):
            raise _reject("it starts with a byte order mark")
        _check_depth(text)
        value = json.loads(
            text,
            object_pairs_hook=_build_object,
            parse_constant=_reject_constant,
            parse_float=_parse_float,
            parse_int=_parse_integer,
        )
    except UnicodeDecodeError as error:
        raise _reject("it is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise _reject(f"it is not JSON: {error.msg} at character {error.pos}") from error
    if _SURROGATE.search(text):
        text = json.dumps(value, ensure_ascii=False)
        value = json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
    return value


def _reject(problem: str) -> InvalidResponseError:
    return InvalidResponseError(f"MoEngage's response cannot be read: {problem}")


def parse_or(default: Any, text: bytes | str) -> Any:
    """Return a JSON value, or the default when parse_json() refuses it."""
    try:
        return parse_json(text)
    except InvalidResponseError:
        return default


def _check_depth(text: str) -> None:
    # Before parsing: the parser recurses, and how deep it gets depends on the caller's stack.
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _STRUCTURE.finditer(text):
        if token[0] in ("[", "{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise _reject(f"it nests deeper than {MAX_DEPTH} levels")
        elif token[0] in ("]", "}"):
            depth -= 1


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
    """Return a JSON object, and for any other value an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """Return a JSON array, and for any other value an empty one."""
    return value if isinstance(value, list) else []


def as_text(value: object) -> str:
    """Return a JSON string, a number as text, and for any other value an empty string."""
    return value if isinstance(value, str) else str(value) if is_number(value) else ""


def is_number(value: object) -> bool:
    """Return whether a value is a JSON number; ``True`` and ``False`` are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


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

"""JSON and Python values: parse strictly, write, convert, and freeze values that visitors share."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from django_moe_personalize.exceptions import InvalidResponseError

MAX_DEPTH = 64
"""The most levels of nested arrays and objects. parse_json() refuses deeper JSON before it parses the JSON."""

MAX_DIGITS = 300
"""The most digits of an integer. A longer integer is too large for a float, and slow to convert."""

# A string is one token, so that brackets inside a string don't count. The closing quote is optional: otherwise, in a
# string that never ends, the search would start again at each escaped quote, and take quadratic time.
_STRUCTURE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: bytes | str) -> Any:
    """Return the value of a JSON text.

    Raises InvalidResponseError for empty or invalid JSON, an encoding other than UTF-8, a byte order mark, NaN,
    Infinity, a number that is too large, a repeated name in an object, and nesting deeper than MAX_DEPTH. Replaces
    lone surrogates with U+FFFD, because a page with a lone surrogate can't be encoded.
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
    """Return the value of a JSON text, or ``default`` if parse_json() refuses the text."""
    try:
        return parse_json(text)
    except InvalidResponseError:
        return default


def _check_depth(text: str) -> None:
    # json.loads() recurses, and fails at a depth that depends on the caller's stack.
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


def encode(value: Any) -> str:
    """Return ``write_json(value)``. A FrozenDict remembers its JSON."""
    if value.__class__ is not FrozenDict:
        return write_json(value)
    # Most of an event's JSON is the experience context. A remembered JSON saves 65 bytecodes and 2.6 µs an event.
    if not value._json:
        value._json = write_json(value)
    text: str = value._json
    return text

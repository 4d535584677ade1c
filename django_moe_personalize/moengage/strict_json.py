"""Strict JSON: parse a body within bounds, and take a parsed value only as the type that it has."""

from __future__ import annotations

import json
import math
import re
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
            raise _refuse("it is empty")
        if text.startswith("\ufeff"):
            raise _refuse("it starts with a byte order mark")
        _check_depth(text)
        value = json.loads(
            text,
            object_pairs_hook=_build_object,
            parse_constant=_refuse_constant,
            parse_float=_parse_float,
            parse_int=_parse_integer,
        )
    except UnicodeDecodeError as error:
        raise _refuse("it is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise _refuse(f"it is not JSON: {error.msg} at character {error.pos}") from error
    if _SURROGATE.search(text):
        text = json.dumps(value, ensure_ascii=False)
        value = json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
    return value


def _refuse(problem: str) -> InvalidResponseError:
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
                raise _refuse(f"it nests deeper than {MAX_DEPTH} levels")
        elif token[0] in ("]", "}"):
            depth -= 1


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise _refuse("an object repeats a name")
    return names


def _refuse_constant(_name: str) -> object:
    raise _refuse("it holds NaN or Infinity")


def _parse_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _refuse("it holds a number that is too large")
    return number


def _parse_integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _refuse("it holds a number that is too large")
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

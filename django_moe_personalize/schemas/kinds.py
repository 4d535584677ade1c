"""Which values the annotation of a variable allows."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from django_moe_personalize.tracking.destinations import get_allowed_hosts, is_safe_url


@dataclass(frozen=True, slots=True)
class Kind:
    """The values of a variable: ``words`` name them for people, and ``accepts(value)`` returns whether a value fits."""

    words: str
    accepts: Callable[[Any], bool]


def _is_url(value: object) -> bool:
    return isinstance(value, str) and is_safe_url(value, get_allowed_hosts(None))


_URL: Final = Kind("a URL that is relative or leads to CONTENT_HOSTS", _is_url)

Url = Annotated[str, _URL]
"""The annotation of a variable with a URL: a ``str`` that is relative, or leads to one of CONTENT_HOSTS."""

ALLOWED: Final = "str, int, float, bool, Url, list, dict, Any, Literal[…], list[…], dict[str, …] or … | None"
"""The annotations of variables, for messages."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


ANYTHING: Final = Kind("any value", lambda value: True)
_LIST: Final = Kind("a list", lambda value: isinstance(value, list))
_DICT: Final = Kind("an object", lambda value: isinstance(value, Mapping))
_KINDS: Final[Mapping[object, Kind]] = {
    str: Kind("text", lambda value: isinstance(value, str)),
    int: Kind("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: Kind("a number", _is_number),
    bool: Kind("true or false", lambda value: isinstance(value, bool)),
    list: _LIST,
    Sequence: _LIST,
    dict: _DICT,
    Mapping: _DICT,
    Any: ANYTHING,
    types.NoneType: Kind("no value", lambda value: value is None),
}


def read_kind(annotation: Any) -> Kind:
    """Return the values that ``annotation`` allows. Raises TypeError for an annotation of no use in a schema."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return next((part for part in arguments if isinstance(part, Kind)), None) or read_kind(arguments[0])
    if origin is Literal:
        words = " or ".join(repr(argument) for argument in arguments)
        return Kind(words, lambda value: any(type(value) is type(one) and value == one for one in arguments))
    if origin in (Union, types.UnionType):
        kinds = [read_kind(argument) for argument in arguments]
        return Kind(" or ".join(kind.words for kind in kinds), lambda value: any(kind.accepts(value) for kind in kinds))
    if origin in (list, Sequence) and len(arguments) == 1:
        return _read_container(_LIST, read_kind(arguments[0]), iter)
    if origin in (dict, Mapping) and arguments[0] is str:
        return _read_container(_DICT, read_kind(arguments[1]), lambda value: value.values())
    try:
        return _KINDS[annotation]
    except (KeyError, TypeError):
        raise TypeError(f"{_name(annotation)} is not an annotation of a schema") from None


def _read_container(outer: Kind, inner: Kind, iterate: Callable[[Any], Any]) -> Kind:
    words = f"{outer.words} of values that are {inner.words}"
    return Kind(words, lambda value: outer.accepts(value) and all(map(inner.accepts, iterate(value))))


def _name(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).removeprefix(f"{typing.__name__}.")


def describe(value: object) -> str:
    """Name the kind of a value, never the value: it may have personal data."""
    names = {str: "text", bool: "a boolean", int: "a number", float: "a number", types.NoneType: "null"}
    return names.get(type(value), "an object" if isinstance(value, Mapping) else "a list")

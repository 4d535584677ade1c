"""What the value of a setting may be: one reader a kind, for ``conf.py``'s table.

A reader takes what the dict or the environment holds and returns what the package works with. It
raises Mistake, which says what is expected and never repeats the value: ``conf.py`` words the
message, because it knows which values are secret.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import math
import os
import re
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

RESERVED_NAMES: Final = frozenset(
    {"identifiers", "experience_key", "DAY_OF_THE_WEEK", "TIME_OF_THE_DAY", "USER_IP_ADDRESS", "USER_AGENT"}
)
"""The wire's own top-level fields (contract §2), which no visitor's query may fill."""

MISSING: Final = object()
"""Stands for «the value itself», where a mistake is not in a part of it."""

# Those of environ.Env, and their opposites.
_TRUE_STRINGS = ("true", "on", "ok", "y", "yes", "1")
_FALSE_STRINGS = ("false", "off", "n", "no", "0")
_DOTTED_PATH = r"[^\W\d]\w*(\.[^\W\d]\w*)+"
_HOST = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?"


class Mistake(ValueError):
    """A value that cannot be used: ``expected`` instead, ``hint`` at the mend.

    ``at`` is the place inside the value, such as ``["shop:home"]``, and ``found`` what is there.
    """

    def __init__(self, expected: str, *, hint: str = "", at: str = "", found: object = MISSING) -> None:
        super().__init__(expected)
        self.expected = expected
        self.hint = hint
        self.at = at
        self.found = found


class Reader(NamedTuple):
    """Reads one kind of value: ``parse`` makes one of an environment variable's text, ``read`` checks it."""

    read: Callable[[object], Any]
    parse: Callable[[str], object] = str.strip


@dataclass(frozen=True, slots=True)
class Backend:
    """A swappable part: the dotted path of a class and the keyword arguments it is made with.

    The options may hold a password (of a proxy, of a broker), so they are not in the repr.
    """

    backend: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)


def nearest(name: object, names: Iterable[str]) -> str | None:
    """Return the one of ``names`` that ``name`` was probably meant to be, or ``None``."""
    by_folded = {known.casefold(): known for known in names}
    found = difflib.get_close_matches(str(name).casefold(), by_folded, n=1)
    return by_folded[found[0]] if found else None


def boolean() -> Reader:
    """Read True or False; in the environment the words of ``environ.Env`` and their opposites."""
    return Reader(read=_read_boolean, parse=_parse_boolean)


def _read_boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise Mistake("True or False")
    return value


def _parse_boolean(text: str) -> bool:
    # Env's own cast takes every other word, a mistyped «ture» as well, for False.
    word = text.strip().lower()
    if word not in (*_TRUE_STRINGS, *_FALSE_STRINGS):
        raise Mistake("true or false")
    return word in _TRUE_STRINGS


def number(*, minimum: float = 0.0, above: float | None = None, maximum: float = math.inf, unit: str = "") -> Reader:
    """Read a finite float of at least ``minimum`` (or more than ``above``) and at most ``maximum``."""
    lowest = f"at least {minimum:g}" if above is None else f"above {above:g}"
    highest = "" if maximum == math.inf else f" and at most {maximum:g}"
    expected = f"a number {unit + ' ' if unit else ''}{lowest}{highest}"

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise Mistake(expected, hint=_unquoted(value))
        if value < minimum or value > maximum or (above is not None and value <= above):
            raise Mistake(expected)
        return float(value)

    # Env's own cast drops what is not a digit, so that «30ms» would be thirty seconds.
    return Reader(read=read, parse=lambda text: _parse_number(text, float, expected))


def whole_number(*, minimum: int, maximum: int) -> Reader:
    """Read an int of at least ``minimum`` and at most ``maximum``."""
    expected = f"a whole number from {minimum} to {maximum}"

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Mistake(expected, hint=_unquoted(value))
        if not minimum <= value <= maximum:
            raise Mistake(expected)
        return value

    return Reader(read=read, parse=lambda text: _parse_number(text, int, expected))


def _parse_number(text: str, kind: Callable[[str], float], expected: str) -> float:
    try:
        return kind(text)
    except ValueError:
        raise Mistake(expected) from None


def _unquoted(value: object) -> str:
    return "Write the number without quotation marks." if isinstance(value, str) else ""


def text(*, default: str | None = None) -> Reader:
    """Read a str without surrounding space; an empty one means ``default``, where there is one."""

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise Mistake("a string")
        if not value.strip() and default is None:
            raise Mistake("a string that is not empty")
        return value.strip() or str(default)

    return Reader(read=read)


def credential(*, colon: bool) -> Reader:
    """Read one half of the HTTP Basic credentials, where only the second may hold a colon (RFC 7617)."""

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise Mistake("a string", hint="Put it in quotation marks.")
        found = value.strip()
        if any(not "!" <= character <= "~" for character in found) or (":" in found and not colon):
            expected = "printable ASCII characters without a space" + ("" if colon else " or a colon")
            raise Mistake(expected, hint="Copy it again from the MoEngage dashboard: Settings > Account > APIs.")
        return found

    return Reader(read=read)


def choice(*values: str) -> Reader:
    """Read one of ``values``."""

    def read(value: object) -> str:
        if value not in values:
            found = nearest(value, values)
            raise Mistake(f"one of {', '.join(map(repr, values))}", hint=f"Did you mean {found!r}?" if found else "")
        return str(value)

    return Reader(read=read)


def data_center(*values: str) -> Reader:
    """Read the number of a data centre, which is a str because the vendor writes it with its zero."""

    def read(value: object) -> str:
        if value in ("", *values):
            return str(value)
        meant = str(value).strip().lower().removeprefix("dc").lstrip("-_ 0")
        found = next((known for known in values if known.lstrip("0") == meant), None)
        hint = f'Write "{found}".' if found else "It is in the address of your dashboard: dashboard-03.moengage.com."
        raise Mistake(f"one of {', '.join(map(repr, values))}, as a string", hint=hint)

    return Reader(read=read)


def header() -> Reader:
    """Read the value of an HTTP header: printable ASCII, not empty."""

    def read(value: object) -> str:
        if not isinstance(value, str) or not value.strip() or not (value.isascii() and value.isprintable()):
            raise Mistake("the value of an HTTP header, on one line")
        return value.strip()

    return Reader(read=read)


def dotted_path() -> Reader:
    """Read the dotted path of something to import; an empty one stands for the built-in."""
    return Reader(read=lambda value: "" if value == "" else _read_dotted_path(value))


def _read_dotted_path(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(_DOTTED_PATH, value.strip()):
        hint = ""
        if callable(value):
            module, name = getattr(value, "__module__", "module"), getattr(value, "__qualname__", "name")
            hint = f'Write its path: "{module}.{name}".'
        raise Mistake('a dotted path such as "shop.personalization.identify"', hint=hint)
    return value.strip()


def sequence_of(item: Callable[[object], Any], *, of: str) -> Reader:
    """Read a list, tuple or set of what ``item`` reads, as a tuple without repetitions."""
    return Reader(read=lambda value: _read_sequence(value, item, of=of), parse=_parse_list)


def _parse_list(text: str) -> object:
    if text.lstrip().startswith("["):
        return _parse_json(text)
    return [part.strip() for part in text.split(",") if part.strip()]


def _read_sequence(value: object, item: Callable[[object], Any], *, of: str, at: str = "") -> tuple[Any, ...]:
    if isinstance(value, str):
        raise Mistake(f"a list of {of}", hint=f"Put it in brackets: [{value!r}].", at=at, found=value)
    if not isinstance(value, list | tuple | set | frozenset):
        raise Mistake(f"a list of {of}", at=at, found=value)
    found: dict[Any, None] = {}
    for index, part in enumerate(value):
        try:
            found[item(part)] = None
        except Mistake as mistake:
            raise Mistake(mistake.expected, hint=mistake.hint, at=f"{at}[{index}]", found=part) from None
    return tuple(found)


def name_item(value: object) -> str:
    """Read a name: a str without space or control characters."""
    if not isinstance(value, str) or not value or any(c.isspace() or not c.isprintable() for c in value):
        raise Mistake("a name without spaces")
    return value


def query_parameter_item(value: object) -> str:
    """Read the name of a query parameter that may become an in-session attribute (contract §2)."""
    name = name_item(value)
    if name.casefold() in {reserved.casefold() for reserved in RESERVED_NAMES}:
        raise Mistake("a name that is not one of MoEngage's own fields", hint="A visitor must not be able to set it.")
    return name


def dotted_path_item(value: object) -> str:
    """Read a dotted path."""
    return _read_dotted_path(value)


def network_item(value: object) -> IPNetwork:
    """Read an IP address or a network in CIDR notation."""
    expected = 'an IP address or network such as "10.0.0.0/8"'
    if not isinstance(value, str | ipaddress.IPv4Network | ipaddress.IPv6Network):
        raise Mistake(expected)
    try:
        return ipaddress.ip_network(value)
    except ValueError:
        pass
    try:
        hint = f'Write "{ipaddress.ip_network(value, strict=False)}".'
    except ValueError:
        hint = ""
    raise Mistake(expected, hint=hint)


def host_item(value: object) -> str:
    """Read a host name, with a port where it is not the scheme's own, in lower case."""
    host = value.strip().lower() if isinstance(value, str) else ""
    if not re.fullmatch(_HOST, host):
        bare = re.sub(r"^([a-z]+:)?//|^(\*?\.)|[/?#].*$", "", host)
        hint = f'Write "{bare}".' if re.fullmatch(_HOST, bare) else ""
        raise Mistake('a host name such as "cdn.example.com"', hint=hint)
    return host


def time_zone() -> Reader:
    """Read the name of an IANA time zone."""

    def read(value: object) -> zoneinfo.ZoneInfo:
        if isinstance(value, zoneinfo.ZoneInfo):
            return value
        try:
            return zoneinfo.ZoneInfo(value)  # type: ignore[arg-type]
        except (KeyError, ValueError, TypeError, AttributeError, OSError):
            found = nearest(value, zoneinfo.available_timezones())
        raise Mistake('an IANA time zone such as "Europe/Berlin"', hint=f'Did you mean "{found}"?' if found else "")

    return Reader(read=read)


def sandbox() -> Reader:
    """Read True, False or the path of a workspace file."""

    def read(value: object) -> bool | str:
        if isinstance(value, bool):
            return value
        if not isinstance(value, str | os.PathLike) or not os.fspath(value):
            raise Mistake("True, False or the path of a workspace file")
        return os.fsdecode(value)

    def parse(text: str) -> bool | str:
        try:
            return _parse_boolean(text)
        except Mistake:
            return text.strip()

    return Reader(read=read, parse=parse)


def routes() -> Reader:
    """Read experience keys by route: ``{"shop:home": ["hero-banner"], "shop:*": […], "*": […]}``."""

    def read(value: object) -> Mapping[str, tuple[str, ...]]:
        if not isinstance(value, Mapping):
            raise Mistake("a dict of route to list of experience keys", hint='Write {"*": ["hero-banner"]}.')
        found = {}
        for route, keys in value.items():
            at = f"[{route!r}]"
            if not isinstance(route, str) or not route:
                raise Mistake('a view name, a namespace ("shop:*") or "*" as the key', found=route)
            found[route] = _read_sequence(keys, name_item, of="experience keys", at=at)
        return MappingProxyType(found)

    return Reader(read=read, parse=_parse_json)


def backend(default: str) -> Reader:
    """Read ``{"BACKEND": dotted path, "OPTIONS": {…}}``; without BACKEND it is ``default``."""

    def read(value: object) -> Backend:
        if not isinstance(value, Mapping):
            raise Mistake("a dict", hint=f'Write {{"BACKEND": "{default}", "OPTIONS": {{}}}}.')
        for key in value:
            if key not in ("BACKEND", "OPTIONS"):
                hint = "An option goes into the dict OPTIONS."
                raise Mistake('"BACKEND" and "OPTIONS" as its only keys', hint=hint, at=f"[{key!r}]", found=value[key])
        return Backend(_part(value, "BACKEND", _read_dotted_path, default), _part(value, "OPTIONS", _read_options, {}))

    return Reader(read=read, parse=_parse_json)


def _part(value: Mapping[Any, Any], key: str, read: Callable[[object], Any], default: object) -> Any:
    try:
        return read(value.get(key, default))
    except Mistake as mistake:
        raise Mistake(mistake.expected, hint=mistake.hint, at=f'["{key}"]', found=value[key]) from None


def _read_options(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name.isidentifier() for name in value):
        raise Mistake("a dict of keyword arguments")
    return MappingProxyType(dict(value))


def _parse_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Mistake("JSON") from None

"""Functions that check the value of a setting and convert it to the type that the package uses.

The value comes from the dict ``MOE_PERSONALIZE``, or from an environment variable that django-environ has cast.
"""

from __future__ import annotations

import datetime
import difflib
import ipaddress
import math
import os
import re
import unicodedata
import zoneinfo
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Literal

UNIX: Final = "unix"
"""In TRUSTED_PROXIES: a proxy that connects through a unix socket, and so has no address."""

Proxy = ipaddress.IPv4Network | ipaddress.IPv6Network | Literal["unix"]

RESERVED_NAMES: Final = frozenset(
    {"identifiers", "experience_key", "DAY_OF_THE_WEEK", "TIME_OF_THE_DAY", "USER_IP_ADDRESS", "USER_AGENT"}
)
"""The top-level fields of MoEngage's API (contract §2). Query parameters of a visitor must not set these fields."""

NUMBER: Final = r"-?\d*\.?\d+"

_DOTTED_PATH = r"[^\W\d]\w*(\.[^\W\d]\w*)+"
# In lower case, because some databases compare names without their case.
_WORKSPACE = r"[a-z0-9_-]{1,32}"
_HOST = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?"


class InvalidValue(ValueError):
    """A setting has a wrong value. The text has the expected value. It never has the wrong value, which may be secret.

    ``found`` is the wrong value or its wrong part. ``place`` is the position of this part, such as ``["*"][0]``.
    """

    def __init__(self, found: object, expected: str, hint: str = "") -> None:
        super().__init__(expected)
        self.found, self.expected, self.hint, self.place = found, expected, hint, ""


@dataclass(frozen=True, slots=True)
class Backend:
    """The value of TRANSPORT or DELIVERY: the dotted path of a class, and the keyword arguments for the class.

    The repr leaves out the options, because they may have the password of a proxy or a broker.
    """

    backend: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)


def suggest(name: object, names: Iterable[str], otherwise: str = "") -> str:
    """Return a hint with the name in ``names`` that is most similar to ``name``, or ``otherwise`` if none is."""
    by_folded = {known.casefold(): known for known in names}
    found = difflib.get_close_matches(str(name).casefold(), by_folded, n=1)
    return f'Did you mean "{by_folded[found[0]]}"?' if found else otherwise


def read_boolean(value: object) -> bool:
    """Read True or False."""
    if not isinstance(value, bool):
        raise InvalidValue(value, "True or False")
    return value


def read_seconds(value: Any, *, minimum: float = 0.0, above: float | None = None, maximum: float = math.inf) -> float:
    """Read a finite number of at least ``minimum``, or more than ``above``, and at most ``maximum``."""
    lowest = f"at least {minimum:g}" if above is None else f"above {above:g}"
    expected = f"a number of seconds, {lowest}{'' if maximum == math.inf else f' and at most {maximum:g}'}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not minimum <= value <= maximum or (above is not None and value <= above):
        raise InvalidValue(value, expected, _hint_at_quotes(value, NUMBER))
    return float(value)


def read_whole_number(value: object, *, minimum: int, maximum: int) -> int:
    """Read an int of at least ``minimum`` and at most ``maximum``."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise InvalidValue(value, f"a whole number from {minimum} to {maximum}", _hint_at_quotes(value, r"\d+"))
    return value


def _hint_at_quotes(value: object, pattern: str) -> str:
    return "Write it without quotation marks." if isinstance(value, str) and re.fullmatch(pattern, value) else ""


def read_string(
    value: object, *, pattern: str = "(?s).+", expected: str = "a string that is not empty", hint: str = ""
) -> str:
    """Read a str that matches ``pattern``, and strip it. ``hint`` says how to fix a str that doesn't match."""
    if not isinstance(value, str):
        raise InvalidValue(value, expected, "Put it in quotation marks.")
    if not re.fullmatch(pattern, value.strip()):
        raise InvalidValue(value, expected, hint)
    return value.strip()


_HEADER = "the value of an HTTP header, on one line and without quotation marks around it"
# Browsers and proxies ignore a Cache-Control in quotation marks, as from an env file.
read_header = partial(read_string, pattern="[!#-&(-~][ -~]*", expected=_HEADER)


def read_credential(value: object, *, colon: bool) -> str:
    """Read the user name or the password of HTTP Basic. Only the password may contain a ``colon`` (RFC 7617)."""
    pattern, forbidden = (r"[!-~]*", "spaces") if colon else (r"[!-9;-~]*", "spaces and colons")
    hint = "Copy it again from the MoEngage dashboard: Settings > Account > APIs."
    return read_string(value, pattern=pattern, expected=f"printable ASCII characters without {forbidden}", hint=hint)


def read_choice(value: object, *, choices: Collection[str]) -> str:
    """Read one of ``choices``."""
    if value not in choices:
        raise InvalidValue(value, f"one of {', '.join(map(repr, choices))}", suggest(value, choices))
    return str(value)


def read_data_center(value: object, *, choices: Collection[str]) -> str:
    """Read the number of a data center, or "". The number is a str, because MoEngage writes a leading zero."""
    if value in ("", *choices):
        return str(value)
    meant = str(value).strip(" \t\r\n'\"").lower().removeprefix("dc").lstrip("-_ 0")
    found = next((known for known in choices if known.lstrip("0") == meant), None)
    hint = "Take it from the address of your dashboard: it is 03 in dashboard-03.moengage.com."
    expected = f"one of {', '.join(map(repr, choices))}, as a string"
    raise InvalidValue(value, expected, f'Write "{found}".' if found else hint)


def read_dotted_path(value: object, *, may_be_empty: bool = False, instead_of: str = "") -> str:
    """Read the dotted path of an object to import, or "" for the built-in behavior."""
    expected = f'{instead_of}a dotted path such as "shop.personalization.identify"'
    if callable(value):
        path = f"{getattr(value, '__module__', 'module')}.{getattr(value, '__qualname__', 'name')}"
        raise InvalidValue(value, expected, f'Write its path: "{path}".')
    return read_string(value, pattern=f"({_DOTTED_PATH})?" if may_be_empty else _DOTTED_PATH, expected=expected)


def read_switch_or_path(value: object) -> bool | str:
    """Read True, False or the dotted path of an object to import."""
    return value if isinstance(value, bool) else read_dotted_path(value, instead_of="True, False or ")


def read_list(value: object, *, each: Callable[[object], Any]) -> tuple[Any, ...]:
    """Read a list, tuple or set, and return a tuple without repetitions. ``each`` reads each item."""
    if not isinstance(value, list | tuple | set | frozenset):
        is_one_item = isinstance(value, str) and not value.startswith("[")
        raise InvalidValue(value, "a list", f"Put it in brackets: [{value!r}]." if is_one_item else "")
    return tuple(dict.fromkeys(_read_part(f"[{index}]", item, each) for index, item in enumerate(value)))


def _read_part(place: str, value: object, read: Callable[[object], Any]) -> Any:
    """Return ``read(value)``. If it raises InvalidValue, add ``place`` to the exception."""
    try:
        return read(value)
    except InvalidValue as error:
        error.place = place + error.place
        raise


def read_name(value: object) -> str:
    """Read a name: a str without spaces, control characters, or quotation marks around the name."""
    if not isinstance(value, str) or not value or any(c.isspace() or not c.isprintable() for c in value):
        raise InvalidValue(value, "a name without spaces")
    if value[0] in "\"'":
        raise InvalidValue(value, "a name without quotation marks around it")
    return value


def read_query_parameter(value: object) -> str:
    """Read the name of a query parameter that may become an in-session attribute (contract §2)."""
    name = read_name(value)
    if name.casefold() in {reserved.casefold() for reserved in RESERVED_NAMES}:
        expected = "a name that MoEngage doesn't use for a field of its own"
        raise InvalidValue(value, expected, "Remove it: a visitor must not be able to set this field.")
    return name


def read_proxy(value: object) -> Proxy:
    """Read an IP address, a network in CIDR notation, or "unix"."""
    expected = 'an IP address, a network such as "10.0.0.0/8", or "unix"'
    if value == UNIX:
        return "unix"
    try:
        interface = ipaddress.ip_interface(str(value))
    except ValueError:
        is_socket = str(value).lower().startswith(("unix", "/"))
        raise InvalidValue(value, expected, 'Write "unix" for a unix socket.' if is_socket else "") from None
    if interface.ip != interface.network.network_address:
        raise InvalidValue(value, expected, f'Write "{interface.network}".')
    if (mapped := getattr(interface.ip, "ipv4_mapped", None)) is None:
        return interface.network
    # A dual-stack socket shows the proxy 10.0.0.1 as ::ffff:10.0.0.1. The package compares both as IPv4 addresses.
    return ipaddress.ip_network((mapped, interface.network.prefixlen - 96))


def read_host(value: object) -> str:
    """Read a host name with an optional port, and return it in its normal form."""
    host = normalize_host(value.strip()) if isinstance(value, str) else ""
    if not _is_host(host):
        bare = normalize_host(re.sub(r"^([a-z]+:)?//|^(\*?\.)|[/?#].*$", "", host))
        hint = f'Write "{bare}".' if _is_host(bare) else ""
        raise InvalidValue(value, 'a host name such as "cdn.example.com"', hint)
    return host


def _is_host(text: str) -> bool:
    """Return whether a URL can have this host and port."""
    return bool(re.fullmatch(_HOST, text)) and ".." not in text and int(text.partition(":")[2] or 0) < 2**16


def normalize_host(host: str) -> str:
    """Return a host in lower case, without a dot at the end, and with Punycode for letters that aren't ASCII (IDNA)."""
    name, colon, port = host.lower().partition(":")
    labels = unicodedata.normalize("NFC", name).removesuffix(".").split(".")
    # Python's codec "idna" maps ß to ss, but browsers don't.
    coded = [label if label.isascii() else "xn--" + label.encode("punycode").decode("ascii") for label in labels]
    return ".".join(coded) + colon + port


def read_time_zone(value: object) -> datetime.tzinfo:
    """Read the name of an IANA time zone. "UTC" needs no time-zone database."""
    if str(value) == "UTC":
        return datetime.UTC
    try:
        return zoneinfo.ZoneInfo(str(value))
    except (KeyError, ValueError, OSError):
        otherwise = "Correct the name, or install the missing time zones: pip install tzdata."
        hint = suggest(value, zoneinfo.available_timezones(), otherwise)
    raise InvalidValue(value, 'an IANA time zone such as "Europe/Berlin"', hint)


def read_sandbox(value: object) -> bool | str:
    """Read True, False or the path of a workspace file."""
    if not isinstance(value, bool | str | os.PathLike) or value == "":
        raise InvalidValue(value, "True, False or the path of a workspace file")
    return value if isinstance(value, bool) else os.fsdecode(value)


def read_routes(value: object) -> Mapping[str, tuple[str, ...]]:
    """Read experience keys by route: ``{"shop:home": ["hero-banner"], "shop:*": […], "*": […]}``."""
    if not isinstance(value, Mapping):
        raise InvalidValue(value, "a dict of route to list of experience keys", 'Write {"*": ["hero-banner"]}.')
    read_keys = partial(read_list, each=read_name)
    for route in value:
        if not isinstance(route, str) or not route:
            raise InvalidValue(route, 'a view name, a namespace ("shop:*") or "*" as the key')
    return MappingProxyType({route: _read_part(f"[{route!r}]", keys, read_keys) for route, keys in value.items()})


def read_workspaces(value: object) -> Mapping[str, Mapping[str, Any]]:
    """Read the settings that each workspace changes, by its name: ``{"default": {…}, "outlet": {…}}``."""
    if not isinstance(value, Mapping):
        raise InvalidValue(value, "a dict of name to dict of settings", 'Write {"default": {}, "outlet": {…}}.')
    for name in value:
        if not isinstance(name, str) or not re.fullmatch(_WORKSPACE, name):
            raise InvalidValue(name, "names of at most 32 lower-case letters, digits, hyphens and underscores")
    return MappingProxyType({name: _read_part(f'["{name}"]', own, _read_dict) for name, own in value.items()})


def _read_dict(value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise InvalidValue(value, "a dict of settings")
    return MappingProxyType(dict(value))


def read_backend(value: object, *, default: str) -> Backend:
    """Read ``{"BACKEND": "dotted.path", "OPTIONS": {…}}``. Without BACKEND the path is ``default``."""
    if not isinstance(value, Mapping):
        raise InvalidValue(value, "a dict", f'Write {{"BACKEND": "{default}", "OPTIONS": {{}}}}.')
    for key in value:
        if key not in ("BACKEND", "OPTIONS"):
            raise InvalidValue(value, 'only the keys "BACKEND" and "OPTIONS"', f"Move {key!r} into OPTIONS.")
    path = _read_part('["BACKEND"]', value.get("BACKEND", default), read_dotted_path)
    return Backend(path, _read_part('["OPTIONS"]', value.get("OPTIONS", {}), _read_options))


def _read_options(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name.isidentifier() for name in value):
        raise InvalidValue(value, "a dict of keyword arguments")
    return MappingProxyType(dict(value))

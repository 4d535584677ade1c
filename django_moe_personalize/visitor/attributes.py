"""Collect the in-session attributes of a request (contract §2).

The built-in attributes come first, then the query parameters, then the site's own attributes. If the attributes exceed
a limit, the package leaves out the last attributes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from django_moe_personalize.conf import Settings, get_settings
from django_moe_personalize.conf.readers import RESERVED_NAMES, UNIX, Proxy
from django_moe_personalize.runtime import Runtime, log_once, part, protect_transactions
from django_moe_personalize.visitor.identity import (
    QUERY_CHANGED,
    QUERY_COOKIE,
    Consent,
    HookError,
    acall,
    call,
    is_deleted,
)

MAX_USER_AGENT_LENGTH: Final = 512
MAX_VALUE_LENGTH: Final = 256

MAX_CUSTOM_ATTRIBUTES: Final = 32
"""The most query parameters and attributes of the site in one request. MoEngage's own attributes don't count."""

MAX_BYTES: Final = 8 * 1024
"""The most UTF-8 bytes of all names and values together."""

MAX_QUERY_LENGTH: Final = 4 * 1024
"""Characters of a query string that are parsed. They take up to 1.5 ms. Some servers accept 64 KiB."""

MAX_REMEMBERED_LENGTH: Final = 1024
"""Characters that are stored in a cookie. All cookies of a site share the space for headers of some 8 KiB."""

MAX_COLLECTED: Final = 1024
"""How many requests' attributes a process remembers. A full memory is cleared."""

MAX_INPUT_LENGTH: Final = 1024
"""Characters in the request data of remembered attributes or visitors. The limit bounds the memory of a process."""

QUARTER_OF_AN_HOUR: Final = 15 * 60
"""In every time zone, the hour changes at :00, :15, :30 or :45 of UTC."""

DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
# Characters that break a log line, a header or UTF-8: control characters, line separators and lone surrogates.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_NODE_LENGTH: Final = 64  # The longest address, in brackets and with a port, has 53 characters.
_MAX_NODES: Final = 64
_SOCKETS: Final = ("", "localhost", "unix", "unix:")
_MAX_ELEMENT_LENGTH: Final = 1024
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NODE = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?|(?P<bare>[0-9A-Fa-f:.]+)")
_FORWARDED_PAIR = re.compile(r"""(?P<name>[^\s"\\=]+)=(?:"(?P<quoted>[^"\\]*)"|(?P<token>[^\s"\\]+))|""")


def collect_attributes(request: HttpRequest, *, now: datetime, consent: Consent) -> Mapping[str, str]:
    """Return the in-session attributes to send, cleaned and within the limits. Never raises.

    ``now`` is an aware datetime. Without consent to identify, the IP address is truncated and no cookie is used.
    """
    attributes = _collect_own(request, now, consent)
    for path in get_settings().attributes:
        try:
            with protect_transactions():
                attributes = {**attributes, **accept_custom(path, call(path, request, Mapping))}
        except Exception as error:
            _report_hook(path, error)
    return MappingProxyType(apply_limits(attributes)) if get_settings().attributes else attributes


async def acollect_attributes(request: HttpRequest, *, now: datetime, consent: Consent) -> Mapping[str, str]:
    """See collect_attributes()."""
    attributes = _collect_own(request, now, consent)
    for path in get_settings().attributes:
        try:
            attributes = {**attributes, **accept_custom(path, await acall(path, request, Mapping))}
        except Exception as error:
            _report_hook(path, error)
    return MappingProxyType(apply_limits(attributes)) if get_settings().attributes else attributes


_INPUTS: Final = ("REMOTE_ADDR", "HTTP_USER_AGENT", "HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED")


def list_inputs(request: HttpRequest, now: datetime, settings: Settings) -> tuple[Any, ...]:
    """Return all request data that the package's own attributes depend on."""
    raw = request.META.get("QUERY_STRING", "")
    query = _parse_query(raw, settings.query_parameters) if 0 < len(raw) <= MAX_VALUE_LENGTH else raw
    cookie, quarter = request.COOKIES.get(QUERY_COOKIE + settings.suffix), int(now.timestamp()) // QUARTER_OF_AN_HOUR
    return query, *map(request.META.get, _INPUTS), cookie, quarter


@part
def get_collected(runtime: Runtime) -> dict[tuple[Any, ...], Mapping[str, str]]:
    """Return the attributes that this process remembers, by the request data that they depend on."""
    return {}


def _collect_own(request: HttpRequest, now: datetime, consent: Consent) -> Mapping[str, str]:
    """Return the attributes that depend on no function of the site.

    Most pages have the data of an earlier page, and run 90 bytecodes here instead of 330.
    """
    settings, collected = get_settings(), get_collected()
    name = (consent.identify, *list_inputs(request, now, settings))
    if (known := collected.get(name)) is None or QUERY_CHANGED in request.__dict__:
        built = build_builtins(request, now, consent, settings) | dict(_remember(request, consent, settings))
        known = MappingProxyType(built if settings.attributes else apply_limits(built))
        if QUERY_CHANGED not in request.__dict__ and len(str(name)) <= MAX_INPUT_LENGTH:
            if len(collected) >= MAX_COLLECTED:
                collected.clear()
            collected[name] = known
    return known


def build_builtins(request: HttpRequest, now: datetime, consent: Consent, settings: Settings) -> dict[str, str]:
    """Return the user agent, the IP address, the day and the hour. Leave out an empty value."""
    precision = "truncated" if settings.ip_precision == "full" and not consent.identify else settings.ip_precision
    local = now.astimezone(settings.time_zone)
    known = {
        "USER_AGENT": clean_text(request.META.get("HTTP_USER_AGENT", ""), MAX_USER_AGENT_LENGTH),
        "USER_IP_ADDRESS": get_client_ip(request.META, settings.trusted_proxies, precision),
        # In English and with two digits in every locale.
        "DAY_OF_THE_WEEK": DAYS[local.weekday()],
        "TIME_OF_THE_DAY": f"{local.hour:02d}",
    }
    return {name: value for name, value in known.items() if value}


# The visitor's IP address.


def get_client_ip(meta: Mapping[str, Any], proxies: Sequence[Proxy], precision: str) -> str:
    """Return the visitor's public address as text, or ``""`` if the address isn't known for certain.

    ``precision`` is ``full``, ``truncated`` (to /24 or /48) or ``off``. If the connection comes from one of the trusted
    ``proxies``, the result is the last address in ``Forwarded`` (RFC 7239) or ``X-Forwarded-For`` that is not a
    trusted proxy. Otherwise it is the address of the connection.
    """
    if precision == "off":
        return ""
    node = (meta.get("REMOTE_ADDR") or "")[:_MAX_NODE_LENGTH]
    if proxies and ((UNIX in proxies and _is_socket(node)) or _is_trusted(node, proxies)):
        return _describe(_read_forwarded(meta, proxies), precision)
    address = _describe(node, precision)
    if not address and ("HTTP_X_FORWARDED_FOR" in meta or "HTTP_FORWARDED" in meta):
        way = ("a unix socket", '"unix"') if _is_socket(node) else ("an address that is not public", "its network")
        log_once(way, _UNTRUSTED, *way)
    return address


def _is_socket(node: str) -> bool:
    """Return whether ``node`` stands for a unix socket. Servers give no address, "localhost" or the socket's path."""
    return node in _SOCKETS or node.startswith(("unix:", "/"))


_UNTRUSTED: Final = (
    "A proxy connects to the site through %s, but TRUSTED_PROXIES doesn't list this proxy. So the package ignores the "
    "visitor's address in X-Forwarded-For, and MoEngage gets no address. Add %s to TRUSTED_PROXIES."
)


# Most requests come from the same few addresses. A hit takes 0.1 µs and 6 bytecodes, a miss 5.2 µs and 350 bytecodes.
@lru_cache(maxsize=1024)
def _describe(node: str, precision: str) -> str:
    address = parse_node(node)
    if address is None or not address.is_global or address.is_multicast:
        return ""
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return ""
    if precision == "truncated":
        bits = 8 if address.version == 4 else 80
        address = type(address)(int(address) >> bits << bits)
    return str(address)


def parse_node(text: str) -> IPAddress | None:
    """Return the IPv4 or IPv6 address in ``text``. The text may have brackets and a port."""
    match = _NODE.fullmatch(text)
    if match is None:
        return None
    try:
        parsed = ipaddress.ip_address(match["v6"] or match["v4"] or match["bare"])
    except ValueError:
        return None
    # A dual-stack socket shows the IPv4 address 192.0.2.1 as ::ffff:192.0.2.1.
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _is_trusted(node: str, proxies: Sequence[Proxy]) -> bool:
    address = parse_node(node)
    if address is None:
        # nginx writes this for a proxy in front that connects through a unix socket.
        return node == "unix:" and UNIX in proxies
    return any(proxy != "unix" and address in proxy for proxy in proxies)


def _read_forwarded(meta: Mapping[str, Any], proxies: Sequence[Proxy]) -> str:
    """Return the visitor's address in the headers, or ``""`` if the two headers disagree.

    A proxy writes one of the two headers and leaves the other header unchanged. A visitor can forge the other header.
    """
    found = []
    if forwarded := meta.get("HTTP_FORWARDED"):
        found.append(_find_visitor(map(_read_element, _split(forwarded)), proxies))
    if forwarded_for := meta.get("HTTP_X_FORWARDED_FOR"):
        found.append(_find_visitor(map(str.strip, _split(forwarded_for)), proxies))
    return found[0] if len({parse_node(node) for node in found}) == 1 else ""


def _split(header: str) -> list[str]:
    """Return the last _MAX_NODES entries of a header in reverse order. The site's proxies add fewer."""
    return header.rsplit(",", _MAX_NODES)[: -_MAX_NODES - 1 : -1]


def _find_visitor(nodes: Iterable[str], proxies: Sequence[Proxy]) -> str:
    """Return the first node that is not a trusted proxy. The first of ``nodes`` is nearest to the site.

    The search ends at a node without an address, because the visitor may have written all later nodes.
    """
    short = (node[:_MAX_NODE_LENGTH] for node in nodes)
    return next((node for node in short if not _is_trusted(node, proxies)), "")


def _read_element(element: str) -> str:
    """Return the value of ``for`` in an element of ``Forwarded`` (RFC 7239 §4), or ``""`` without exactly one ``for``.

    The caller splits the header at every comma, also inside quotes. So an open quote of the visitor can't hide the
    entry of a proxy.
    """
    if len(element) > _MAX_ELEMENT_LENGTH:
        return ""
    nodes = []
    for pair in element.split(";"):
        match = _FORWARDED_PAIR.fullmatch(pair.strip())
        if match is None:
            return ""
        if (match["name"] or "").lower() == "for":
            nodes.append(match["quoted"] or match["token"] or "")
    return nodes[0] if len(nodes) == 1 else ""


# Query parameters.


Pairs = tuple[tuple[str, str], ...]


def read_query(raw: str, names: tuple[str, ...]) -> Pairs:
    """Return the query parameters in ``names``, cleaned and in this order. The last value that is not empty counts."""
    if not raw or not names:
        return ()
    if len(raw) <= MAX_VALUE_LENGTH:
        return _parse_query(raw, names)
    if len(raw) > MAX_QUERY_LENGTH:
        # Leave out the parameter at the cut, because half of a value is a wrong value.
        raw = raw[:MAX_QUERY_LENGTH].rpartition("&")[0]
    return _parse_query.__wrapped__(raw, names)


# Many visitors follow the same link, and parsing takes 500 bytecodes. Long queries would fill the memory.
@lru_cache(maxsize=1024)
def _parse_query(raw: str, names: tuple[str, ...]) -> Pairs:
    # WSGI servers decode the bytes as latin-1 (PEP 3333). Django's ASGI request has UTF-8 text already.
    with suppress(UnicodeError):
        raw = raw.encode("latin-1").decode()
    # request.GET would decode 64 KiB, and raise an exception for too many parameters.
    found = dict(parse_qsl(raw))
    cleaned = ((name, clean_text(found[name], MAX_VALUE_LENGTH)) for name in names if name in found)
    return tuple((name, text) for name, text in cleaned if text)


def _remember(request: HttpRequest, consent: Consent, settings: Settings) -> Pairs:
    """Return the request's query parameters, and tell the response to store them. Without any, return the stored ones.

    New and stored parameters are never mixed, because they may come from two campaigns.
    """
    names = settings.query_parameters
    found = read_query(request.META.get("QUERY_STRING", ""), names)
    if not consent.identify or not names:
        return found
    known = request.__dict__.get(QUERY_CHANGED, request.COOKIES.get(QUERY_COOKIE + settings.suffix, ""))
    stored = read_query(known[:MAX_REMEMBERED_LENGTH].replace(":", "="), names)
    if not found or found == stored:
        return stored
    text = _encode_query(found)
    # Without room for all parameters of the new campaign, forget the old campaign.
    setattr(request, QUERY_CHANGED, text if len(text) <= MAX_REMEMBERED_LENGTH else "")
    return found


# Many visitors follow the same link. A hit takes 6 bytecodes, a miss 700.
@lru_cache(maxsize=1024)
def _encode_query(pairs: Pairs) -> str:
    """Return the pairs as the text of the cookie. A cookie with "=" would need quotes, which each page would parse."""
    return urlencode(pairs).replace("=", ":")


def forget_parameters(request: HttpRequest) -> bool:
    """Forget the stored query parameters. Return whether the response must delete their cookie."""
    request.__dict__.pop(QUERY_CHANGED, None)
    if QUERY_COOKIE + get_settings().suffix in request.COOKIES:
        setattr(request, QUERY_CHANGED, "")
    return QUERY_CHANGED in request.__dict__


def set_query_cookie(request: HttpRequest, response: HttpResponseBase) -> None:
    """Set or delete the cookie with query parameters, if the request changed them. It lasts until the browser closes.

    Mark the response as private first, so that no proxy stores the cookie.
    """
    text, name = getattr(request, QUERY_CHANGED, None), QUERY_COOKIE + get_settings().suffix
    if text and not is_deleted(response, name):
        response.set_cookie(name, text, secure=request.is_secure(), httponly=True, samesite="Lax")
    elif text is not None:
        response.delete_cookie(name, samesite="Lax")


# The site's own attributes.


def accept_custom(path: str, result: Mapping[Any, Any]) -> dict[str, str]:
    """Return the valid attributes in the result of the site's function at ``path``. Log each kind of mistake once."""
    accepted: dict[str, str] = {}
    for name, value in result.items():
        text = _build_text(value)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            message = "%s returned an attribute whose name doesn't match %s, so it is left out."
            log_once(("name", path), message, path, _NAME.pattern)
        elif name in RESERVED_NAMES:
            message = "%s returned %s, which is left out: MoEngage uses this name. Choose another."
            log_once(("reserved", path, name), message, path, name)
        elif text is None:
            message = "%s returned an attribute of type %s, which is left out. Return a string or a number."
            log_once(("value", path, kind := type(value).__name__), message, path, kind)
        elif cleaned := clean_text(text, MAX_VALUE_LENGTH):
            accepted[name] = cleaned
    return accepted


def _build_text(value: object) -> str | None:
    """Return the value of a custom attribute as text, or ``None`` for a type that can't be sent (contract §2)."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return "true" if value else "false"
    # str() of an integer with thousands of digits raises an exception.
    if isinstance(value, float | Decimal) or (isinstance(value, int) and value.bit_length() <= MAX_VALUE_LENGTH):
        return str(value)
    return None


def clean_text(text: str, limit: int) -> str:
    """Return ``text`` on one line, encodable as UTF-8, without outer whitespace, cut to ``limit`` characters."""
    # The first cut bounds the time that removing characters takes.
    return _UNSAFE.sub("", text[: 8 * limit]).strip()[:limit].rstrip()


def apply_limits(attributes: Mapping[str, str]) -> Mapping[str, str]:
    """Return the attributes, cut before the first attribute that exceeds MAX_CUSTOM_ATTRIBUTES or MAX_BYTES."""
    # This check is enough for nearly all requests, with 35 bytecodes instead of 150. A character has 4 bytes at most.
    length = sum(map(len, attributes)) + sum(map(len, attributes.values()))
    if len(attributes) <= MAX_CUSTOM_ATTRIBUTES and 4 * length <= MAX_BYTES:
        return attributes
    custom = size = 0
    for place, (name, value) in enumerate(attributes.items()):
        custom += name not in RESERVED_NAMES
        size += len(name) + len(value.encode())
        if custom > MAX_CUSTOM_ATTRIBUTES or size > MAX_BYTES:
            message = "A request has more than %d custom attributes or %d bytes, so the last ones are left out."
            log_once("limits", message, MAX_CUSTOM_ATTRIBUTES, MAX_BYTES)
            return dict(islice(attributes.items(), place))
    return attributes


def _report_hook(path: str, error: Exception) -> None:
    failure = HookError.build(path, error)
    log_once(("attributes", str(failure)), "ATTRIBUTES failed (%s), so some attributes are missing.", failure)

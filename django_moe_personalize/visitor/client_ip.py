"""The visitor's IP address: the address of the connection, or the one that trusted proxies report in headers."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_NODE_LENGTH: Final = 64  # The longest address, in brackets and with a port, has 53 characters.
_MAX_NODES: Final = 64
_MAX_ELEMENT_LENGTH: Final = 1024
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NODE = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?|(?P<bare>[0-9A-Fa-f:.]+)")
_FORWARDED_PAIR = re.compile(r"""(?P<name>[^\s"\\=]+)=(?:"(?P<quoted>[^"\\]*)"|(?P<token>[^\s"\\]+))|""")


def get_client_ip(meta: Mapping[str, Any], proxies: Sequence[IPNetwork], precision: str) -> str:
    """Return the visitor's public address as text, or ``""`` if it isn't known for certain.

    ``precision`` is ``full``, ``truncated`` (to /24 or /48) or ``off``. ``proxies`` are the trusted networks. If the
    request comes from one of them, the visitor is the last address in ``Forwarded`` (RFC 7239) or
    ``X-Forwarded-For`` that is not a trusted proxy.
    """
    if precision == "off":
        return ""
    node = (meta.get("REMOTE_ADDR") or "")[:_MAX_NODE_LENGTH]
    if proxies and _is_trusted(node, proxies):
        node = _read_forwarded(meta, proxies)
    return _describe(node, precision)


# Most requests come from the same few addresses. Remembered: 0.1 µs and 6 bytecodes. Built: 5.2 µs and 350 bytecodes.
@functools.lru_cache(maxsize=1024)
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
    """Return the IPv4 or IPv6 address in ``text``, which may have brackets, a port, or an IPv4-mapped form."""
    match = _NODE.fullmatch(text)
    if match is None:
        return None
    try:
        parsed = ipaddress.ip_address(match["v6"] or match["v4"] or match["bare"])
    except ValueError:
        return None
    # A dual-stack socket shows IPv4 peers as ::ffff:192.0.2.1.
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _is_trusted(node: str, proxies: Sequence[IPNetwork]) -> bool:
    address = parse_node(node)
    return address is not None and any(address in network for network in proxies)


def _read_forwarded(meta: Mapping[str, Any], proxies: Sequence[IPNetwork]) -> str:
    """Return the visitor's node in the headers, or ``""`` if the two headers disagree.

    A proxy that writes one header passes the other one on unchanged, so a visitor may have forged it.
    """
    found = []
    if forwarded := meta.get("HTTP_FORWARDED"):
        found.append(_find_visitor(map(_read_element, _split(forwarded)), proxies))
    if forwarded_for := meta.get("HTTP_X_FORWARDED_FOR"):
        found.append(_find_visitor(map(str.strip, _split(forwarded_for)), proxies))
    return found[0] if len({parse_node(node) for node in found}) == 1 else ""


def _split(header: str) -> list[str]:
    """Return the last entries of a header, the last one first. No site has more than _MAX_NODES proxies."""
    return header.rsplit(",", _MAX_NODES)[: -_MAX_NODES - 1 : -1]


def _find_visitor(nodes: Iterable[str], proxies: Sequence[IPNetwork]) -> str:
    """Return the first node that is not a trusted proxy. ``nodes`` begin with the nearest one.

    A node without an address ends the search: an unknown proxy, or the visitor, wrote everything before it.
    """
    short = (node[:_MAX_NODE_LENGTH] for node in nodes)
    return next((node for node in short if not _is_trusted(node, proxies)), "")


def _read_element(element: str) -> str:
    """Return the value of ``for`` in one element of ``Forwarded`` (RFC 7239 §4), or ``""`` without exactly one.

    A comma inside quotes separates elements too, so that a visitor's open quote can't swallow a proxy's entry.
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

"""The visitor's IP address: the address of the connection, or the one that trusted proxies report in headers."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_NODE_LENGTH: Final = 64
_MAX_NODES: Final = 64
_MAX_ELEMENT_LENGTH: Final = 1024
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NODE = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?|(?P<bare>[0-9A-Fa-f:.]+)")
_FORWARDED_PAIR = re.compile(r"""(?P<name>[^\s"\\=]+)=(?:"(?P<quoted>[^"\\]*)"|(?P<token>[^\s"\\]+))|""")


class Node(NamedTuple):
    """A peer or an entry of a header. ``full`` and ``truncated`` are its address as text, empty if not public."""

    address: IPAddress | None = None
    full: str = ""
    truncated: str = ""

    def is_in(self, networks: Iterable[IPNetwork]) -> bool:
        """Return whether one of ``networks`` has the address."""
        return self.address is not None and any(self.address in network for network in networks)


_UNKNOWN: Final = Node()


def get_client_ip(meta: Mapping[str, Any], proxies: Sequence[IPNetwork], precision: str) -> str:
    """Return the visitor's public address as text, or ``""`` if it isn't known for certain.

    ``precision`` is ``full``, ``truncated`` (to /24 or /48) or ``off``. ``proxies`` are the trusted networks. If the
    request comes from one of them, the visitor is the last address in ``Forwarded`` (RFC 7239) or
    ``X-Forwarded-For`` that is not a trusted proxy.
    """
    if precision == "off":
        return ""
    node = parse_node(meta.get("REMOTE_ADDR") or "")
    if node.is_in(proxies):
        node = _read_forwarded(meta, proxies)
    return node.truncated if precision == "truncated" else node.full


def parse_node(text: str) -> Node:
    """Return the node for an IPv4 or IPv6 address, which may have brackets, a port, or an IPv4-mapped form."""
    return _parse_node(text) if len(text) <= _MAX_NODE_LENGTH else _UNKNOWN


# Most requests come from the same few addresses. Remembered: 0.1 µs and 6 bytecodes. Parsed: 5.2 µs and 350 bytecodes.
@functools.lru_cache(maxsize=1024)
def _parse_node(text: str) -> Node:
    match = _NODE.fullmatch(text)
    if match is None:
        return _UNKNOWN
    try:
        parsed = ipaddress.ip_address(match["v6"] or match["v4"] or match["bare"])
    except ValueError:
        return _UNKNOWN
    # A dual-stack socket shows IPv4 peers as ::ffff:192.0.2.1.
    address: IPAddress = getattr(parsed, "ipv4_mapped", None) or parsed
    return Node(address, str(address), str(_truncate(address))) if _is_public(address) else Node(address)


def _is_public(address: IPAddress) -> bool:
    """Return whether a visitor on the internet can have this address."""
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast


def _truncate(address: IPAddress) -> IPAddress:
    """Return the first address of the /24 network, or of the /48 network in IPv6."""
    bits = 8 if address.version == 4 else 80
    return type(address)(int(address) >> bits << bits)


def _read_forwarded(meta: Mapping[str, Any], proxies: Sequence[IPNetwork]) -> Node:
    """Return the visitor's node in the headers, or an unknown one if the two headers disagree.

    A proxy that writes one header passes the other one on unchanged, so a visitor may have forged it.
    """
    found = set()
    if forwarded := meta.get("HTTP_FORWARDED"):
        found.add(_find_visitor((_read_element(element) for element in _split(forwarded)), proxies))
    if forwarded_for := meta.get("HTTP_X_FORWARDED_FOR"):
        found.add(_find_visitor((text.strip() for text in _split(forwarded_for)), proxies))
    return found.pop() if len(found) == 1 else _UNKNOWN


def _split(header: str) -> list[str]:
    """Return the last entries of a header, the last one first. No site has more than _MAX_NODES proxies."""
    return header.rsplit(",", _MAX_NODES)[: -_MAX_NODES - 1 : -1]


def _find_visitor(entries: Iterable[str], proxies: Sequence[IPNetwork]) -> Node:
    """Return the first node that is not a trusted proxy. ``entries`` begin with the nearest one.

    An entry without an address ends the search: an unknown proxy, or the visitor, wrote everything before it.
    """
    return next((node for node in map(parse_node, entries) if not node.is_in(proxies)), _UNKNOWN)


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

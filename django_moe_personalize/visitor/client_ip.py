"""The visitor's IP address: the peer's, or what proxies that the site trusts say of it."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_NODE_LENGTH: Final = 64
_MAX_NODES: Final = 64
_MAX_ELEMENT_LENGTH: Final = 1024
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NODE = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?|(?P<bare>[0-9A-Fa-f:.]+)")
_FORWARDED_PAIR = re.compile(r"""(?P<name>[^\s"\\=]+)=(?:"(?P<quoted>[^"\\]*)"|(?P<token>[^\s"\\]+))|""")


def get_client_ip(meta: Mapping[str, Any], proxies: Sequence[IPNetwork], precision: str) -> str:
    """Return the visitor's public address as text, ``""`` when it is not known for certain.

    ``precision`` is ``full``, ``truncated`` (to /24 or /48) or ``off``. Behind ``proxies``, the
    networks trusted, the address is walked from the peer to the left through ``Forwarded``
    (RFC 7239) and ``X-Forwarded-For``; an address in ``proxies`` is never a visitor's.
    """
    if precision == "off":
        return ""
    peer = meta.get("REMOTE_ADDR") or ""
    if proxies and (address := parse_address(peer)) is not None and _is_in(address, proxies):
        return _show(_read_forwarded(meta, proxies), precision)
    return _show_peer(peer, precision)


@functools.lru_cache(maxsize=1024)
def _show_peer(peer: str, precision: str) -> str:
    """Return what is sent of the peer's address; remembered, because a visitor's pages come from one."""
    return _show(parse_address(peer), precision)


def _show(address: IPAddress | None, precision: str) -> str:
    if address is None or not is_public(address):
        return ""
    return str(truncate(address) if precision == "truncated" else address)


@functools.lru_cache(maxsize=1024)
def _parse_node(node: str) -> IPAddress | None:
    match = _NODE.fullmatch(node)
    if match is None:
        return None
    try:
        address = ipaddress.ip_address(match["v6"] or match["v4"] or match["bare"])
    except ValueError:
        return None
    # A dual-stack socket shows IPv4 peers as ::ffff:192.0.2.1.
    return getattr(address, "ipv4_mapped", None) or address


def parse_address(node: str) -> IPAddress | None:
    """Return the address of a node: IPv4 or IPv6, in brackets, with a port, mapped; ``None`` if it is none."""
    return _parse_node(node) if len(node) <= _MAX_NODE_LENGTH else None


def is_public(address: IPAddress) -> bool:
    """Whether the address can be a visitor's on the internet."""
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast


def truncate(address: IPAddress) -> IPAddress:
    """Return the first address of its /24, or of its /48 in IPv6."""
    bits = 8 if address.version == 4 else 80
    return type(address)(int(address) >> bits << bits)


def _read_forwarded(meta: Mapping[str, Any], proxies: Sequence[IPNetwork]) -> IPAddress | None:
    """Return the visitor by the headers; ``None`` where two of them disagree.

    A proxy that writes one header hands on the other as the visitor sent it, so neither wins.
    """
    found = set()
    if forwarded := meta.get("HTTP_FORWARDED"):
        found.add(_walk((_read_element(element) for element in _split(forwarded)), proxies))
    if forwarded_for := meta.get("HTTP_X_FORWARDED_FOR"):
        found.add(_walk((node.strip() for node in _split(forwarded_for)), proxies))
    return found.pop() if len(found) == 1 else None


def _split(header: str) -> list[str]:
    """Return the last elements of a header, the last one first; no site has as many proxies as that."""
    return header.rsplit(",", _MAX_NODES)[: -_MAX_NODES - 1 : -1]


def _walk(nodes: Iterable[str], proxies: Sequence[IPNetwork]) -> IPAddress | None:
    """Return the first address, coming from the site, that no trusted proxy has.

    A node that is no address ends the walk: what stands to its left was not written by a proxy
    known to us.
    """
    for node in nodes:
        address = parse_address(node)
        if address is None or not _is_in(address, proxies):
            return address
    return None


def _read_element(element: str) -> str:
    """Return the node of the ``for`` of one forwarded-element (RFC 7239 §4), ``""`` if there is not one.

    Commas inside quotes are not honoured: what a visitor sent cannot quote what a proxy added.
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


def _is_in(address: IPAddress, networks: Iterable[IPNetwork]) -> bool:
    return any(address in network for network in networks)

"""Check the base URL, because the package sends credentials and visitors' data to this URL."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

_VISIBLE = re.compile(r"[!-\[\]-~]+")  # ASCII without a space, a control character or a backslash
_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")


def validate_base_url(url: str) -> str:
    """Return the base URL without a trailing slash, with scheme and host in lower case.

    The URL must be https, or http on a loopback host. The URL must not have user info, a query or a fragment. Raises
    ValueError for any other URL. The message doesn't quote the URL, because the URL may contain a password.
    """
    parts = _split(url)
    if parts is None:
        raise ValueError("the base URL must be like https://sdk-01.moengage.com/v1")
    if parts.scheme not in ("http", "https"):
        raise ValueError("the base URL must start with https://")
    if "@" in parts.netloc:
        raise ValueError("the base URL must not contain a user name or password")
    if "?" in url or "#" in url:
        raise ValueError("the base URL must not have a query or fragment")
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise ValueError("the base URL must be https; http is for loopback alone")
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def _split(url: str) -> SplitResult | None:
    # Checked first, because urlsplit() drops tabs and newlines without an error.
    if not _VISIBLE.fullmatch(url):
        return None
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if "[" in parts.netloc:
            ipaddress.IPv6Address(host)
        elif not _HOST.fullmatch(host):
            return None
        return None if parts.port == 0 else parts
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

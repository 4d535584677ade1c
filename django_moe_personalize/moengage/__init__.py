"""The wire: MoEngage's Personalize API over HTTP, as Python values. It knows neither Django nor the settings.

``client``: the three calls of the API; ``errors``: the exception for a status other than 200.
``messages``: requests, responses, and the protocol of a transport; ``base_url``: which URLs are safe.
``transport``: sends requests and keeps connections; ``connections``: opens them, through proxies and with TLS.
``exchange``: one request in flight; ``http1``: HTTP/1.1 as bytes.
``reader``, ``offerings``, ``strict_json``: from the JSON of a response to values; ``types``, ``frozen``: the values.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django_moe_personalize.moengage.base_url import validate_base_url
    from django_moe_personalize.moengage.client import FETCH_FIELDS, SYSTEM_FIELDS, PersonalizeClient
    from django_moe_personalize.moengage.messages import (
        Exchange,
        NotTakenError,
        ProxyError,
        Request,
        Response,
        Transport,
    )

__all__ = [
    "FETCH_FIELDS",
    "SYSTEM_FIELDS",
    "Exchange",
    "NotTakenError",
    "PersonalizeClient",
    "ProxyError",
    "Request",
    "Response",
    "Transport",
    "validate_base_url",
]

_MODULES = {
    "FETCH_FIELDS": "client",
    "SYSTEM_FIELDS": "client",
    "PersonalizeClient": "client",
    "validate_base_url": "base_url",
}


def __getattr__(name: str) -> object:
    """Import a name when it is first used: the models only need ``types``."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'messages')}"), name)

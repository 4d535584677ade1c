"""The wire: the three calls of MoEngage Personalize over HTTP. This room knows neither Django nor the settings.

``client`` makes the calls, ``messages`` is what it and a transport hand each other, ``transport`` sends
requests and keeps connections open, ``connections`` opens them, ``exchange`` is one request in flight,
``http1`` the bytes of HTTP. ``reader`` reads the JSON of a response, ``errors`` a status other than 200,
``types`` are the values that come out, ``frozen`` makes them unchangeable, ``base_url`` says which URLs are safe.
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

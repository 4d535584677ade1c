"""Attributes: find out who the visitor is, what the visitor allows, and which in-session attributes to send.

``gather`` builds the ``Visitor`` of a request from ``consent`` (allowed purposes), ``identity`` (customer id or
anonymous id) and ``attributes`` (user agent, day, hour, query parameters, the site's own). ``client_ip`` finds the
visitor's address behind proxies, and ``hooks`` calls the site's functions ``CONSENT``, ``IDENTIFY`` and ``ATTRIBUTES``.
"""

from django_moe_personalize.visitor.attributes import has_stored_parameters
from django_moe_personalize.visitor.consent import Consent, build_default_consent
from django_moe_personalize.visitor.gather import NOBODY, Visitor, agather_visitor, gather_visitor
from django_moe_personalize.visitor.identity import (
    COOKIE_CHANGES,
    Identity,
    delete_anonymous_cookie,
    set_anonymous_cookie,
)

__all__ = [
    "COOKIE_CHANGES",
    "NOBODY",
    "Consent",
    "Identity",
    "Visitor",
    "agather_visitor",
    "build_default_consent",
    "delete_anonymous_cookie",
    "gather_visitor",
    "has_stored_parameters",
    "set_anonymous_cookie",
]

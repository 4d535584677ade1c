"""Attributes: who asks, with which in-session attributes, and what the visitor allows.

``consent``, ``identity`` and ``attributes`` read the request, ``client_ip`` finds the address behind proxies,
``gather`` puts them together in a Visitor, ``hooks`` calls the site's own functions.
"""

from django_moe_personalize.visitor.attributes import has_stored_parameters
from django_moe_personalize.visitor.consent import Consent, build_default_consent
from django_moe_personalize.visitor.gather import NOBODY, Visitor, agather_visitor, gather_visitor
from django_moe_personalize.visitor.identity import Identity, delete_anonymous_cookie, set_anonymous_cookie

__all__ = [
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

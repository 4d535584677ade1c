"""Attributes: who asks, with which in-session attributes, and what the visitor allows.

``consent``, ``identity`` and ``attributes`` read the request, ``client_ip`` finds the address behind proxies,
``gather`` puts them together, ``hooks`` calls the site's own functions, ``receivers`` reacts to log-in and log-out.
"""

from django_moe_personalize.visitor.consent import Consent, build_default_consent
from django_moe_personalize.visitor.gather import NOBODY, Visitor, agather_visitor, gather_visitor
from django_moe_personalize.visitor.identity import Identity, delete_anonymous_cookie

__all__ = [
    "NOBODY",
    "Consent",
    "Identity",
    "Visitor",
    "agather_visitor",
    "build_default_consent",
    "delete_anonymous_cookie",
    "gather_visitor",
]

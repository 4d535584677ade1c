"""Attributes: find out who the visitor is, what the visitor allows, and which in-session attributes to send.

``gather`` builds the ``Visitor`` of a request from ``identity`` and ``attributes``, and builds it again if ``evidence``
shows that the request has changed. ``identity`` finds the allowed purposes and the customer id or anonymous id, and
calls the site's functions ``CONSENT``, ``IDENTIFY`` and ``ATTRIBUTES``. ``attributes`` collects the user agent, the
address, the day, the hour, the query parameters and the site's own attributes. ``newcomers`` samples new ids.
"""

from django_moe_personalize.visitor.attributes import set_query_cookie
from django_moe_personalize.visitor.evidence import NO_VISITOR, Visitor, build_digest
from django_moe_personalize.visitor.gather import RequestVisitor, agather_visitor, gather_visitor, is_in_event_loop
from django_moe_personalize.visitor.identity import (
    COOKIE_CHANGES,
    MINTED,
    QUERY_CHANGED,
    UNKNOWN,
    Consent,
    Identity,
    build_default_consent,
    delete_anonymous_cookie,
    may_be_new,
    set_anonymous_cookie,
)

__all__ = ["Consent", "Identity", "build_default_consent", "delete_anonymous_cookie"]  # the public names

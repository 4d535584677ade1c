"""Attributes, gathered: who asks, with what, and what they allow; only when a fetch is due."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from django.http import HttpRequest

from django_moe_personalize.conf import get_settings
from django_moe_personalize.digest import build_digest
from django_moe_personalize.visitor.attributes import acollect_attributes, collect_attributes
from django_moe_personalize.visitor.consent import DENIED, GRANTED, Consent, aget_consent, get_consent
from django_moe_personalize.visitor.identity import Identity, aget_identity, get_identity


class Visitor:
    """Who asks, with which in-session attributes, and what the visitor allows. Nothing of it is in the repr."""

    __slots__ = ("_digest", "attributes", "consent", "identity")

    def __init__(self, identity: Identity, attributes: Mapping[str, str], consent: Consent = GRANTED) -> None:
        self.identity = identity
        self.attributes = attributes
        self.consent = consent
        self._digest = ""

    @property
    def digest(self) -> str:
        """Names this visitor in caches: a keyed hash of the identity and of the attributes in VARY_CACHE_ON.

        An identified and an anonymous visitor never share a digest, whatever their ids look like.
        """
        if not self._digest:
            self._digest = build_digest(self._list_parts())
        return self._digest

    def _list_parts(self) -> list[str]:
        identity, varying, vary = self.identity, sorted(self.attributes.items()), get_settings().vary_cache_on
        if vary is not None:
            varying = [(name, value) for name, value in varying if name in vary]
        parts = [
            "anonymous" if identity.anonymous else "identified",
            "none" if identity.customer_id is None else "id:" + identity.customer_id,
            str(len(identity.user_identifiers)),
        ]
        for pair in (*sorted(identity.user_identifiers.items()), *varying):
            parts += pair
        return parts


NOBODY = Visitor(Identity(), {}, DENIED)
"""The visitor of a page for whom nothing may be asked: no consent, or who it is cannot be told."""


def gather_visitor(request: HttpRequest, now: datetime) -> Visitor:
    """Return the request's visitor at the moment ``now``; NOBODY when nothing may be asked. Never raises."""
    consent = get_consent(request)
    identity = get_identity(request, consent) if consent.fetch else None
    if identity is None:
        return NOBODY
    return Visitor(identity, collect_attributes(request, now=now, consent=consent), consent)


async def agather_visitor(request: HttpRequest, now: datetime) -> Visitor:
    """See gather_visitor()."""
    consent = await aget_consent(request)
    identity = await aget_identity(request, consent) if consent.fetch else None
    if identity is None:
        return NOBODY
    return Visitor(identity, await acollect_attributes(request, now=now, consent=consent), consent)

"""Put together what the package knows about a visitor. It runs only when a page is about to fetch or count."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from django.http import HttpRequest

from django_moe_personalize.conf import get_settings
from django_moe_personalize.digest import build_digest
from django_moe_personalize.visitor.attributes import acollect_attributes, collect_attributes
from django_moe_personalize.visitor.consent import DENIED, GRANTED, Consent, aget_consent, get_consent
from django_moe_personalize.visitor.identity import Identity, aget_identity, get_identity


class Visitor:
    """A visitor's identity, in-session attributes and consent. The repr shows no personal data."""

    __slots__ = ("_digest", "attributes", "consent", "identity")

    def __init__(self, identity: Identity, attributes: Mapping[str, str], consent: Consent = GRANTED) -> None:
        self.identity = identity
        self.attributes = attributes
        self.consent = consent
        self._digest = ""

    @property
    def digest(self) -> str:
        """The visitor's name in caches: a keyed hash of the identity and of the attributes in VARY_CACHE_ON.

        An identified and an anonymous visitor never share a digest, even if their ids look alike.
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


NOBODY: Final = Visitor(Identity(), {}, DENIED)
"""The visitor if the package may ask nothing: the visitor denies ``fetch``, or the identity can't be read."""


def gather_visitor(request: HttpRequest, now: datetime) -> Visitor:
    """Return the visitor of the request at the moment ``now``, or NOBODY. Never raises."""
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

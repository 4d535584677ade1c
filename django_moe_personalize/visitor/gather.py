"""Put together what the package knows about a visitor. It runs only when a page is about to fetch or count."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from django.http import HttpRequest

from django_moe_personalize.conf import get_settings
from django_moe_personalize.digest import build_digest
from django_moe_personalize.runtime import Runtime, part
from django_moe_personalize.visitor.attributes import (
    MAX_VALUE_LENGTH,
    acollect_attributes,
    collect_attributes,
    parse_query,
)
from django_moe_personalize.visitor.consent import DENIED, GRANTED, Consent, aget_consent, get_consent
from django_moe_personalize.visitor.identity import (
    COOKIE_NAMES,
    FORGOTTEN,
    MINTED,
    Identity,
    aget_identity,
    get_identity,
)

MAX_REMEMBERED: Final = 4096
"""Anonymous visitors that a process remembers by their inputs, some 4 MB. One more makes it forget all of them."""

QUARTER_OF_AN_HOUR: Final = 15 * 60


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


@part
def _get_remembered(runtime: Runtime) -> dict[tuple[Any, ...], Visitor]:
    return {}


def gather_visitor(request: HttpRequest, now: datetime) -> Visitor:
    """Return the visitor of the request at the moment ``now``, or NOBODY. Never raises."""
    remembered, inputs = _get_remembered(), _list_inputs(request, now)
    visitor = None if inputs is None else remembered.get(inputs)
    if visitor is None:
        visitor = _gather(request, now)
        # A new anonymous id isn't among the inputs: it is this request's alone.
        if inputs is not None and MINTED not in request.__dict__:
            if len(remembered) >= MAX_REMEMBERED:
                remembered.clear()
            remembered[inputs] = visitor
    return visitor


def _list_inputs(request: HttpRequest, now: datetime) -> tuple[Any, ...] | None:
    """Return everything that an anonymous visitor is made of, or ``None`` where more decides than is listed here.

    A page of such a visitor runs 30 functions less (of 95): nothing is verified, cleaned or hashed again. A page
    with a session, a user or a function of the site always gathers its visitor.
    """
    settings, known = get_settings(), request.__dict__
    if settings.identify or settings.consent or settings.attributes or MINTED in known or FORGOTTEN in known:
        return None
    meta, session, user = request.META, known.get("session"), known.get("user")
    raw = meta.get("QUERY_STRING")
    if raw and len(raw) > MAX_VALUE_LENGTH:
        return None
    query = parse_query(raw, settings.query_parameters) if raw else ()
    # A session keeps the parameters of the query, and has those of earlier ones.
    if session is not None and (query or session.session_key is not None):
        return None
    is_secure, cookies = request.is_secure(), meta.get("HTTP_COOKIE", "")
    if (user is not None and user.is_authenticated) or not cookies.isascii():
        return None
    return (
        is_secure,
        query,
        request.COOKIES.get(COOKIE_NAMES[is_secure]),
        meta.get("HTTP_USER_AGENT"),
        meta.get("REMOTE_ADDR"),
        meta.get("HTTP_X_FORWARDED_FOR"),
        meta.get("HTTP_FORWARDED"),
        meta.get("HTTP_SEC_GPC"),
        # Every time zone changes its hour at one of these.
        int(now.timestamp()) // QUARTER_OF_AN_HOUR,
    )


def _gather(request: HttpRequest, now: datetime) -> Visitor:
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

"""Gather a visitor's consent, identity and attributes. This runs only for a page that fetches or counts."""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from django.conf import settings as django_settings
from django.http import HttpRequest
from django.utils.encoding import force_bytes

from django_moe_personalize.conf import get_settings
from django_moe_personalize.runtime import Runtime, part
from django_moe_personalize.visitor.attributes import (
    MAX_VALUE_LENGTH,
    acollect_attributes,
    collect_attributes,
    encode_query,
    parse_query,
)
from django_moe_personalize.visitor.identity import (
    COOKIE_CHANGES,
    COOKIE_NAMES,
    DENIED,
    GRANTED,
    MINTED,
    QUERY_COOKIE,
    Consent,
    Identity,
    aget_consent,
    aget_identity,
    get_consent,
    get_identity,
)

MAX_REMEMBERED: Final = 4096
"""The number of anonymous visitors that a process remembers. When the memory is full, it is cleared."""

MAX_INPUT_LENGTH: Final = 1024
"""Characters in the request data of a remembered visitor. The limit bounds the memory of a process to some 10 MB."""

QUARTER_OF_AN_HOUR: Final = 15 * 60


@dataclass(slots=True, eq=False, repr=False)
class Visitor:
    """A visitor's identity, in-session attributes and consent. The repr shows no personal data."""

    identity: Identity
    attributes: Mapping[str, str]
    consent: Consent = GRANTED
    _digest: str = field(default="", init=False)

    @property
    def digest(self) -> str:
        """The visitor's key in caches: a keyed hash of the identity and of the attributes in VARY_CACHE_ON.

        An identified visitor and an anonymous visitor never share a digest, even if their ids are equal.
        """
        if not self._digest:
            identity, vary = self.identity, get_settings().vary_cache_on
            kind = "anonymous" if identity.anonymous else "identified"
            customer = "none" if identity.customer_id is None else "id:" + identity.customer_id
            parts = [kind, customer, str(len(identity.user_identifiers))]
            for pair in sorted(identity.user_identifiers.items()):
                parts += pair
            for pair in sorted(self.attributes.items()):
                if vary is None or pair[0] in vary:
                    parts += pair
            self._digest = build_digest(parts)
        return self._digest


NO_VISITOR: Final = Visitor(Identity(), {}, DENIED)
"""The visitor of a page that must not fetch: the visitor denies ``fetch``, or the identity can't be read."""


@part
def _get_remembered(runtime: Runtime) -> dict[tuple[Any, ...], Visitor]:
    """Return the anonymous visitors that this process remembers, by the request data that they depend on."""
    return {}


def gather_visitor(request: HttpRequest, now: datetime) -> Visitor:
    """Return the visitor of the request at the moment ``now``, or NO_VISITOR. Never raises."""
    remembered, inputs = _get_remembered(), _list_inputs(request, now)
    visitor = None if inputs is None else remembered.get(inputs)
    if visitor is None:
        visitor = _gather(request, now)
        # A request without a valid cookie gets a new anonymous id. Requests with the same data must not share this id.
        if inputs is not None and MINTED not in request.__dict__:
            if len(remembered) >= MAX_REMEMBERED:
                remembered.clear()
            remembered[inputs] = visitor
    return visitor


def _list_inputs(request: HttpRequest, now: datetime) -> tuple[Any, ...] | None:
    """Return all request data that an anonymous visitor depends on, or ``None`` if the visitor can't be remembered.

    A page of a remembered visitor runs 60 functions instead of 75, because nothing is verified, cleaned or hashed
    again. A visitor that depends on a user or a function of the site is never remembered.
    """
    settings, known, meta = get_settings(), request.__dict__, request.META
    if settings.identify or settings.consent or settings.attributes or not COOKIE_CHANGES.isdisjoint(known):
        return None
    raw, is_secure = meta.get("QUERY_STRING", ""), request.is_secure()
    texts = (
        request.COOKIES.get(QUERY_COOKIE, ""),
        request.COOKIES.get(COOKIE_NAMES[is_secure], ""),
        meta.get("HTTP_USER_AGENT", ""),
        meta.get("REMOTE_ADDR") or "",
        meta.get("HTTP_X_FORWARDED_FOR", ""),
        meta.get("HTTP_FORWARDED", ""),
        meta.get("HTTP_SEC_GPC", ""),
    )
    is_long = len(raw) > MAX_VALUE_LENGTH or len("".join(texts)) > MAX_INPUT_LENGTH
    if is_long or not meta.get("HTTP_COOKIE", "").isascii():
        return None
    query, user = parse_query(raw, settings.query_parameters) if raw else (), known.get("user")
    if query and encode_query(query) != texts[0]:
        # _gather() tells the response to store these parameters.
        return None
    try:
        if user is not None and user.is_authenticated:
            return None
    except Exception:
        # The user can't be read. _gather() logs the error.
        return None
    # In every time zone, the hour changes at :00, :15, :30 or :45 of UTC.
    return is_secure, query, *texts, int(now.timestamp()) // QUARTER_OF_AN_HOUR


def _gather(request: HttpRequest, now: datetime) -> Visitor:
    # Most sites have no CONSENT function, and most browsers don't send Sec-GPC.
    is_default = not get_settings().consent and "HTTP_SEC_GPC" not in request.META
    consent = GRANTED if is_default else get_consent(request)
    identity = get_identity(request, consent) if consent.fetch else None
    if identity is None:
        return NO_VISITOR
    return Visitor(identity, MappingProxyType(collect_attributes(request, now=now, consent=consent)), consent)


async def agather_visitor(request: HttpRequest, now: datetime) -> Visitor:
    """See gather_visitor()."""
    consent = await aget_consent(request)
    identity = await aget_identity(request, consent) if consent.fetch else None
    if identity is None:
        return NO_VISITOR
    return Visitor(identity, MappingProxyType(await acollect_attributes(request, now=now, consent=consent)), consent)


def build_digest(parts: Collection[str]) -> str:
    """Return the keyed hash of ``parts``: 32 hexadecimal characters.

    The key comes from SECRET_KEY, so an attacker can't guess the parts from their hash.

    The hash includes the length of each part, so that ``("ab", "c")`` and ``("a", "bc")`` have different digests.
    """
    lengths = array("Q", [len(parts), *map(len, parts)])
    data = lengths.tobytes() + "".join(parts).encode("utf-8", "surrogatepass")
    # In FIPS mode Python refuses BLAKE2, MD5 and SHA-1. HMAC would take 2.3 µs more. It isn't needed: an attacker can
    # append data to a hashed text only with the whole hash, and this function returns half of it.
    return hashlib.sha256(_derive_key(django_settings.SECRET_KEY) + data).hexdigest()[:32]


@functools.lru_cache(maxsize=4)
def _derive_key(secret: str | bytes) -> bytes:
    return hashlib.sha256(b"moe.cache.key" + force_bytes(secret)).digest()

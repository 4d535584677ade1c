"""The visitor of a request, and the evidence that the request has changed since the visitor was found."""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import is_
from typing import Any, Final

from django.conf import settings as django_settings
from django.http import HttpRequest
from django.utils.encoding import force_bytes

from django_moe_personalize.conf import get_settings
from django_moe_personalize.visitor.identity import DENIED, GRANTED, Consent, Identity


@dataclass(eq=False, repr=False)
class Visitor:
    """A visitor's identity, in-session attributes and consent. The repr shows no personal data."""

    identity: Identity
    attributes: Mapping[str, str]
    consent: Consent = GRANTED

    @functools.cached_property
    def digest(self) -> str:
        """The visitor's key in caches: a keyed hash of the identity and of the attributes in VARY_CACHE_ON.

        An identified visitor and an anonymous visitor never share a digest, even if their ids are equal.
        """
        identity, vary = self.identity, get_settings().vary_cache_on
        kind = "anonymous" if identity.anonymous else "identified"
        customer = "none" if identity.customer_id is None else "id:" + identity.customer_id
        parts = [kind, customer, str(len(identity.user_identifiers))]
        for pair in sorted(identity.user_identifiers.items()):
            parts += pair
        for pair in sorted(self.attributes.items()):
            if vary is None or pair[0] in vary:
                parts += pair
        return build_digest(parts)


NO_VISITOR: Final = Visitor(Identity(), {}, DENIED)
"""The visitor of a page that must not fetch: the visitor denies ``fetch``, or the identity can't be read."""


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


_CREDENTIALS: Final = ("user", "auser", "auth", "session")
"""Attributes that authentication sets: in Django, in Django REST framework and in django-ninja (``auth``)."""


class Evidence:
    """The data of a request that IDENTIFY and CONSENT most likely use."""

    __slots__ = ("_count", "_credentials", "_entries", "size")

    def __init__(self, request: HttpRequest) -> None:
        # No local variable holds request.__dict__, because error reports show local variables.
        self._credentials = [*map(request.__dict__.get, _CREDENTIALS)]
        self._entries = dict(_get_entries(request))
        self._note_size(request)

    def _note_size(self, request: HttpRequest) -> None:
        self._count = len(request.__dict__)
        # While a request without a session has this many attributes, it hasn't changed.
        self.size = -1 if "session" in request.__dict__ or "auser" in request.__dict__ else self._count

    def holds(self, request: HttpRequest) -> bool:
        """Return whether the session has the same entries, and whether the request has no new attribute.

        Attributes of authentication don't count here: see has_same_credentials().
        """
        if len(request.__dict__) == self.size:
            return True
        if self._entries != _get_entries(request):
            return False
        if len(request.__dict__) != self._count:
            # New attributes are the last ones. If the class has the attribute too, it is cached data, such as ``GET``.
            added = [*request.__dict__][self._count :]
            if not added or [name for name in added if not name.startswith("_") and not hasattr(type(request), name)]:
                return False
            self._note_size(request)
        return True

    def has_same_credentials(self, request: HttpRequest) -> bool:
        """Return whether the session has the same entries, and whether authentication has set no attribute."""
        found = map(request.__dict__.get, _CREDENTIALS)
        return self._entries == _get_entries(request) and all(map(is_, found, self._credentials))


def _get_entries(request: HttpRequest) -> Mapping[str, Any]:
    """Return the entries of the session, or an empty mapping for a session that isn't loaded."""
    return getattr(request.__dict__.get("session"), "_session_cache", None) or {}

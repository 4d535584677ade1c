"""Attributes, the first half: who is asking. Customer id, identifiers, anonymous id."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType, NoneType
from typing import Any, Final, Protocol

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core import signing
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.functional import SimpleLazyObject

from django_moe_personalize.conf import get_settings
from django_moe_personalize.runtime import log_once
from django_moe_personalize.visitor.hooks import CallableError, acall, call

MAX_IDENTIFIER_LENGTH: Final = 256
"""Characters of a customer id or an identifier; a longer one is never cut: two would become one."""

ANONYMOUS_COOKIE_AGE: Final = 365 * 24 * 60 * 60
"""Seconds that an anonymous id lasts, in the browser and by its signature."""

_MAX_COOKIE_LENGTH: Final = 256
_VERIFIED_SECONDS: Final = 60 * 60
_COOKIE_NAMES: Final = ("moe_id", "__Host-moe_id")
_SALT: Final = "django_moe_personalize.visitor.gather.identity"
_MINTED: Final = "_moe_personalize_minted_id"
_FORGOTTEN: Final = "_moe_personalize_forgotten_id"


class Permission(Protocol):
    """The part of a Consent that matters here."""

    @property
    def identify(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is asking (contract §2); nothing of it is in the repr.

    ``user_identifiers`` are such as ``u_em`` and ``u_mb``. ``anonymous`` says that ``customer_id``
    is a browser's, not a customer's.
    """

    customer_id: str | None = field(default=None, repr=False)
    user_identifiers: Mapping[str, str] = field(default_factory=dict, repr=False)
    anonymous: bool = False


_NOBODY: Final = Identity(user_identifiers=MappingProxyType({}))


def get_identity(request: HttpRequest, consent: Permission) -> Identity | None:
    """Return who is asking, or ``None``: unknown, so nothing may be fetched or tracked; never raises.

    ``None`` follows a failing ``IDENTIFY``, database or session: a known customer must not be
    taken for an anonymous visitor. An ``IDENTIFY`` that answers ``None`` knows of nobody. Nobody,
    where ``ANONYMOUS_ID`` is on, gets the browser's anonymous id; set_anonymous_cookie() keeps it.
    Without consent to identify, nothing is read and the identity is empty.
    """
    if not consent.identify:
        return Identity()
    path = get_settings().identify
    try:
        answer = call(path, request, (Identity, NoneType)) if path else _read_user(request)
        return _complete(request, _clean(answer))
    except Exception as error:
        _report_unknown(CallableError.build(path or "request.user", error))
        return None


async def aget_identity(request: HttpRequest, consent: Permission) -> Identity | None:
    """See get_identity()."""
    if not consent.identify:
        return Identity()
    path = get_settings().identify
    try:
        answer = await acall(path, request, (Identity, NoneType)) if path else await _aread_user(request)
        return _complete(request, _clean(answer))
    except Exception as error:
        _report_unknown(CallableError.build(path or "request.user", error))
        return None


def set_anonymous_cookie(request: HttpRequest, response: HttpResponseBase) -> None:
    """Set the cookie of the anonymous id that was minted for this request, if one was; take away a forgotten one.

    The response must already be closed to shared caches: they would hand one visitor's id to all.
    """
    minted = getattr(request, _MINTED, None)
    if minted is not None:
        response.set_signed_cookie(
            _get_cookie_name(request),
            minted,
            salt=_SALT,
            max_age=ANONYMOUS_COOKIE_AGE,
            path="/",
            secure=request.is_secure(),
            httponly=True,
            samesite="Lax",
        )
    elif hasattr(request, _FORGOTTEN):
        delete_anonymous_cookie(response)


def forget_anonymous_id(request: HttpRequest) -> bool:
    """Let whoever asks from here on be another visitor, and the response take the cookie away.

    Returns whether there is a cookie to take away; see set_anonymous_cookie(), which does it.
    """
    request.__dict__.pop(_MINTED, None)
    if any(name in request.COOKIES for name in _COOKIE_NAMES):
        setattr(request, _FORGOTTEN, True)
    return hasattr(request, _FORGOTTEN)


def delete_anonymous_cookie(response: HttpResponseBase) -> None:
    """Forget the browser's anonymous id: for "forget me" and for a consent that is withdrawn."""
    for name in _COOKIE_NAMES:
        response.delete_cookie(name, path="/", samesite="Lax")


def _read_user(request: HttpRequest) -> Identity:
    return _build_from_user(getattr(request, "user", None))


async def _aread_user(request: HttpRequest) -> Identity:
    user = request.__dict__.get("user")
    if user is not None and not isinstance(user, SimpleLazyObject):
        # Another middleware has decided who this is (a token, an impersonation), not the session.
        return _build_from_user(user)
    if hasattr(request, "auser"):
        return _build_from_user(await request.auser())
    if hasattr(request, "user"):
        # Not Django's middleware: reading this user may ask the database.
        return await sync_to_async(_read_user, thread_sensitive=True)(request)
    return Identity()


def _build_from_user(user: Any) -> Identity:
    if user is None or not user.is_authenticated or user.pk is None:
        return _NOBODY
    return Identity(customer_id=str(user.pk))


def _clean(identity: Identity | None) -> Identity:
    """Return the identity with what the wire can carry; raises CallableError for an unusable customer id."""
    if identity is None or identity is _NOBODY:
        return _NOBODY
    customer_id: Any = identity.customer_id
    if isinstance(customer_id, int | uuid.UUID) and not isinstance(customer_id, bool):
        customer_id = str(customer_id)
    if customer_id == "":
        customer_id = None
    if customer_id is not None and not _is_fit(customer_id):
        raise CallableError("the customer id is not a line of at most 256 characters")
    kept = {n: v for n, v in identity.user_identifiers.items() if _is_fit(n) and _is_fit(v)}
    if len(kept) < len(identity.user_identifiers):
        log_once("identifiers", "A user identifier that is not a line of at most 256 characters is left out.")
    return Identity(customer_id=customer_id, user_identifiers=kept, anonymous=identity.anonymous is True)


def _is_fit(text: object) -> bool:
    """Whether an id goes on the wire as it is; never mended, since two could become one."""
    if not isinstance(text, str) or len(text) > MAX_IDENTIFIER_LENGTH:
        return False
    return text.isprintable() and bool(text.strip())


def _complete(request: HttpRequest, identity: Identity) -> Identity:
    if identity.customer_id is not None or not get_settings().anonymous_id:
        return identity
    return Identity(_get_anonymous_id(request), identity.user_identifiers, anonymous=True)


def _get_anonymous_id(request: HttpRequest) -> str:
    """Return the id of the browser: minted for this request, from its cookie, or new."""
    known: str | None = getattr(request, _MINTED, None)
    if known is None and not hasattr(request, _FORGOTTEN):
        known = _read_cookie(request)
    if known is None:
        known = f"anon-{uuid.uuid4().hex}"
        setattr(request, _MINTED, known)
    return known


def _read_cookie(request: HttpRequest) -> str | None:
    name = _get_cookie_name(request)
    raw = request.COOKIES.get(name, "")
    header = request.META.get("HTTP_COOKIE", "")
    if not header.isascii():
        # Django takes every kind of space off a name; browsers keep other hosts from __Host-, but not from a name
        # that begins with a no-break space and goes on like that.
        raw = (["", *re.findall(f"(?:^|;) ?{name}=([^;]*)", header)])[-1].strip()
    if not raw or len(raw) > _MAX_COOKIE_LENGTH or not raw.isascii():
        return None
    secrets = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    try:
        return _verify_cookie(name, raw, secrets, int(time.time()) // _VERIFIED_SECONDS)
    except signing.BadSignature:
        return None


@lru_cache(maxsize=4096)
def _verify_cookie(name: str, raw: str, secrets: tuple[str | bytes, ...], period: int) -> str | None:
    """Return the id in a signed cookie; raises BadSignature.

    Remembered, since each page of a visitor brings it and verifying costs more than the rest of who it
    is; only what is genuine, as what raises is not kept. A secret that goes takes its cookies along,
    and age is looked at anew in each ``period``.
    """
    # A request of its own, so that nothing else of the visitor's is part of the answer.
    request = HttpRequest()
    request.COOKIES[name] = raw
    return request.get_signed_cookie(name, salt=_SALT, max_age=ANONYMOUS_COOKIE_AGE)


def _get_cookie_name(request: HttpRequest) -> str:
    # __Host- keeps other hosts of the domain and plain http from setting it; browsers want Secure for it.
    return _COOKIE_NAMES[request.is_secure()]


def _report_unknown(error: CallableError) -> None:
    log_once(("identity", str(error)), "The visitor is unknown, so nothing is fetched: %s.", error)

"""Find out who the visitor is and what the visitor allows, from the request and from the site's own functions."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import NoneType
from typing import Any, Final

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.functional import SimpleLazyObject
from django.utils.module_loading import import_string

from django_moe_personalize.conf import get_settings
from django_moe_personalize.moengage.data_api import is_forbidden_id
from django_moe_personalize.runtime import log_once, protect_transactions
from django_moe_personalize.visitor.newcomers import get_newcomers

MAX_IDENTIFIER_LENGTH: Final = 256
"""Characters of a customer id or an identifier. Longer ids are refused. If the package cut them, two could be equal."""

ANONYMOUS_COOKIE_AGE: Final = 365 * 24 * 60 * 60
"""Seconds for which an anonymous id is valid. After this time the cookie and its signature expire."""

SALT: Final = "moe_personalize.identity.1"

_ANONYMOUS = re.compile("anon-[0-9a-f]{32}")
_MAX_COOKIE_LENGTH: Final = 256
_LAZY_USER: Final = "django.contrib.auth.middleware"
COOKIE_NAMES: Final = ("moe_id", "__Host-moe_id")
"""The cookie's name over http, and over https. Browsers accept a ``__Host-`` cookie only from the host itself.

Each workspace but DEFAULT adds its suffix to the names of its cookies. So a browser has another id in each workspace,
and no workspace can connect its visitors with those of another one.
"""

MINTED: Final = "_moe_personalize_minted_id"
FORGOTTEN: Final = "_moe_personalize_forgotten_id"

QUERY_COOKIE: Final = "moe_query"
"""The name of the cookie with query parameters. It isn't signed: a forged cookie can do no more than an address."""

QUERY_CHANGED: Final = "_moe_personalize_query"

UNKNOWN: Final = "_moe_personalize_unknown"
"""The attribute of a request whose visitor can't be identified, for example because the database fails."""

COOKIE_CHANGES: Final = frozenset({MINTED, FORGOTTEN, QUERY_CHANGED})
"""Attributes of a request whose response must set or delete a cookie."""


@dataclass(frozen=True, slots=True)
class Consent:
    """The purposes that a visitor allows.

    - ``fetch``: the package asks MoEngage for experiences.
    - ``identify``: the package uses the customer id, the user identifiers, the anonymous cookie and the full IP
      address. It also stores query parameters in a cookie.
    - ``track``: the package reports impressions and clicks.
    """

    fetch: bool = True
    identify: bool = True
    track: bool = True


GRANTED: Final = Consent()
DENIED: Final = Consent(fetch=False, identify=False, track=False)

GPC: Final = Consent(identify=False, track=False)
"""The consent of a visitor whose browser sends Global Privacy Control: https://www.w3.org/TR/gpc/"""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the visitor is (contract §2). The repr shows no personal data.

    ``user_identifiers`` are other ids of a customer, such as ``u_em`` (email) and ``u_mb`` (mobile number). If
    ``anonymous`` is true, ``customer_id`` is the id of a browser and not of a customer.
    """

    customer_id: str | None = field(default=None, repr=False)
    user_identifiers: Mapping[str, str] = field(default_factory=dict, repr=False)
    anonymous: bool = False


def get_consent(request: HttpRequest) -> Consent:
    """Return the consent of the visitor. Never raises.

    The site's ``CONSENT`` function decides, even against Global Privacy Control. If the function raises an exception
    or doesn't return a Consent, all purposes are denied.
    """
    path = get_settings().consent
    if not path:
        return build_default_consent(request)
    try:
        with protect_transactions():
            return _accept(call(path, request, Consent))
    except HookError as error:
        return _deny(error)


async def aget_consent(request: HttpRequest) -> Consent:
    """See get_consent()."""
    path = get_settings().consent
    try:
        return _accept(await acall(path, request, Consent)) if path else build_default_consent(request)
    except HookError as error:
        return _deny(error)


def build_default_consent(request: HttpRequest) -> Consent:
    """Return the consent of a visitor if the site has no ``CONSENT`` function. Such a function may call this one.

    All purposes are granted, but a request with ``Sec-GPC: 1`` denies ``identify`` and ``track``.
    """
    return GPC if request.META.get("HTTP_SEC_GPC", "").strip() == "1" else GRANTED


def deny(request: HttpRequest) -> Consent:
    """Return the consent of a request whose workspace isn't known, so that its page fetches and counts nothing."""
    return DENIED


def _accept(consent: Consent) -> Consent:
    # The site's function may set a purpose to "no" or None. Only True grants the purpose.
    return Consent(fetch=consent.fetch is True, identify=consent.identify is True, track=consent.track is True)


def _deny(error: HookError) -> Consent:
    log_once(("consent", str(error)), "CONSENT failed (%s), so fetching, identifying and tracking are denied.", error)
    return DENIED


def get_identity(request: HttpRequest, consent: Consent, known: Identity | None = None) -> Identity | None:
    """Return the identity of the visitor, or ``None`` if ``IDENTIFY``, the database or the session fails. Never raises.

    With ``None`` the page fetches and tracks nothing, because the package must not treat a known customer as an
    anonymous visitor. Without consent to identify, the identity is empty and this function reads nothing. If the
    identity is still ``known``, nothing is checked again.
    """
    if not consent.identify:
        return Identity()
    path = get_settings().identify
    try:
        with protect_transactions():
            found = call(path, request, (Identity, NoneType)) if path else _read_user(request)
            return known if known and known.customer_id and known == found else _complete(request, found)
    except Exception as error:
        _report_unknown(request, path, error)
        return None


async def aget_identity(request: HttpRequest, consent: Consent) -> Identity | None:
    """See get_identity()."""
    if not consent.identify:
        return Identity()
    path = get_settings().identify
    try:
        found = await acall(path, request, (Identity, NoneType)) if path else await _aread_user(request)
        return _complete(request, found)
    except Exception as error:
        _report_unknown(request, path, error)
        return None


def set_anonymous_cookie(request: HttpRequest, response: HttpResponseBase) -> None:
    """Set the cookie if this request got a new anonymous id. Delete the cookie if this request forgot the old id.

    Mark the response as private first. Otherwise a proxy could store the response and give one id to all visitors.
    """
    minted, secure = getattr(request, MINTED, None), request.is_secure()
    if minted is not None and not is_deleted(response, name := COOKIE_NAMES[secure] + get_settings().suffix):
        options = {"max_age": ANONYMOUS_COOKIE_AGE, "secure": secure, "httponly": True, "samesite": "Lax"}
        response.set_signed_cookie(name, minted, salt=SALT, **options)
    elif hasattr(request, FORGOTTEN):
        delete_anonymous_cookie(response)


def is_deleted(response: HttpResponseBase, name: str) -> bool:
    """Return whether the view has deleted this cookie, for example with delete_anonymous_cookie()."""
    return name in response.cookies and not response.cookies[name].value


def may_be_new(request: HttpRequest) -> bool:
    """Return whether the browser of this request may need a new anonymous id.

    A browser with a session that the page hasn't read isn't new. To read the session would add ``Vary: Cookie`` to the
    page, and a query.
    """
    if MINTED in request.__dict__:
        return True
    session = getattr(request, "session", None)
    is_read = getattr(session, "session_key", None) is None or getattr(session, "accessed", True)
    settings = get_settings()
    may_have_id = settings.anonymous_id and (bool(settings.consent) or build_default_consent(request).identify)
    return is_read and may_have_id and read_anonymous_cookie(request) is None


def forget_anonymous_id(request: HttpRequest) -> bool:
    """Forget the visitor's anonymous id, so that the rest of this request uses a new id.

    Return whether the browser sent a cookie with the old id. set_anonymous_cookie() replaces or deletes this cookie.
    """
    request.__dict__.pop(MINTED, None)
    if any(name + get_settings().suffix in request.COOKIES for name in COOKIE_NAMES):
        setattr(request, FORGOTTEN, True)
    return hasattr(request, FORGOTTEN)


def delete_anonymous_cookie(response: HttpResponseBase) -> None:
    """Delete the package's cookies. Call this in a "forget me" view, or when a visitor withdraws consent.

    The cookies are those of the current workspace: another one needs a withdrawal of its own.
    """
    for name in (*COOKIE_NAMES, QUERY_COOKIE):
        response.delete_cookie(name + get_settings().suffix, path="/", samesite="Lax")


def _read_user(request: HttpRequest) -> Identity | None:
    return _build_from_user(getattr(request, "user", None))


async def _aread_user(request: HttpRequest) -> Identity | None:
    # Another middleware (token authentication) may have replaced the user of Django's middleware, which is lazy.
    if not isinstance(request.__dict__.get("user"), SimpleLazyObject):
        return _read_user(request)
    source = getattr(request.__dict__["user"].__dict__.get("_setupfunc"), "__module__", "")
    if source == _LAZY_USER and hasattr(request, "auser"):
        return _build_from_user(await request.auser())
    # Reading a lazy user may query the database. Django's async user may be another user than this one.
    return await sync_to_async(protect_transactions()(_read_user), thread_sensitive=True)(request)


def _build_from_user(user: Any) -> Identity | None:
    if user is None or not user.is_authenticated or user.pk is None:
        return None
    return Identity(customer_id=str(user.pk))


def _complete(request: HttpRequest, found: Identity | None) -> Identity:
    """Return the identity with only valid identifiers. Without a customer id, add the anonymous id.

    Raises HookError for a bad customer id.
    """
    found = found or Identity()
    kept: Mapping[str, str] = {}
    if found.user_identifiers != {}:
        kept = {n: v for n, v in found.user_identifiers.items() if _is_valid_id(n) and _is_valid_id(v)}
        if len(kept) < len(found.user_identifiers):
            message = "IDENTIFY returned a user identifier that is left out: it must have 1 to %d printable characters."
            log_once("identifiers", message, MAX_IDENTIFIER_LENGTH)
    customer_id: Any = found.customer_id
    if customer_id is None or customer_id == "":
        if get_settings().anonymous_id:
            return Identity(_get_anonymous_id(request), kept, anonymous=True)
        return Identity(None, kept, anonymous=found.anonymous is True)
    if isinstance(customer_id, int | uuid.UUID) and not isinstance(customer_id, bool):
        customer_id = str(customer_id)
    if not _is_valid_id(customer_id):
        raise HookError(f"a customer id must have 1 to {MAX_IDENTIFIER_LENGTH} printable characters")
    warn_of_forbidden_id(customer_id, get_settings().identify or "request.user.pk")
    return Identity(customer_id, kept, anonymous=found.anonymous is True)


def warn_of_forbidden_id(customer_id: str, source: str) -> None:
    """Log once per ``source`` that MoEngage forbids an id. The id is used nevertheless: only the site may change it."""
    if is_forbidden_id(customer_id):
        log_once(("forbidden", source), _FORBIDDEN, source)


_FORBIDDEN: Final = (
    'MoEngage forbids a customer id that comes from %s: a single character, or a word such as "guest" or "null". '
    "MoEngage may drop the events of this customer, or mix several customers up. "
    'Use ids such as "user-1": see the setting IDENTIFY.'
)


def _is_valid_id(text: object) -> bool:
    if not isinstance(text, str) or len(text) > MAX_IDENTIFIER_LENGTH:
        return False
    return text.isprintable() and not text.isspace() and text != ""


def _get_anonymous_id(request: HttpRequest) -> str:
    """Return the anonymous id that this request has created, or the id in its cookie, or a new id."""
    known: str | None = getattr(request, MINTED, None)
    if known is None and not hasattr(request, FORGOTTEN) and (known := read_anonymous_cookie(request)) is not None:
        get_newcomers().add_returned(known)
    # If two threads of a view create an id at the same time, setdefault() gives both the same id.
    return known or request.__dict__.setdefault(MINTED, f"anon-{uuid.uuid4().hex}")


def read_anonymous_cookie(request: HttpRequest) -> str | None:
    """Return the anonymous id in the request's cookie, or ``None`` without a cookie that this site signed."""
    name = COOKIE_NAMES[request.is_secure()] + get_settings().suffix
    raw = request.COOKIES.get(name, "")
    header = request.META.get("HTTP_COOKIE", "")
    if not header.isascii():
        # Another host of the domain can't set a cookie named "__Host-moe_id". But it can set a cookie with a no-break
        # space before this name, and Django strips the space. So search the header for the exact name.
        raw = (["", *re.findall(f"(?:^|;) ?{name}=([^;]*)", header)])[-1].strip()
    if not raw or len(raw) > _MAX_COOKIE_LENGTH or not raw.isascii():
        return None
    reader = HttpRequest()
    reader.COOKIES[name] = raw
    try:
        known = reader.get_signed_cookie(name, "", salt=SALT, max_age=ANONYMOUS_COOKIE_AGE) or ""
    except ValueError:
        # Another version of this package may have signed a text without a time.
        return None
    return known if _ANONYMOUS.fullmatch(known) else None


def _report_unknown(request: HttpRequest, path: str, error: Exception) -> None:
    request.__dict__[UNKNOWN] = True
    failure = HookError.build(path or "request.user", error)
    message = "The visitor can't be identified (%s), so the page shows its fallbacks and counts nothing."
    log_once(("identity", str(failure)), message, failure)


# Calls of the site's own functions. CONSENT, IDENTIFY and ATTRIBUTES name these functions by dotted paths.


class HookError(Exception):
    """A function of the site raised an exception or returned a wrong value.

    The message is safe to log. It never has the text of the site's exception, which may have data of the visitor.
    """

    @classmethod
    def build(cls, source: str, error: Exception) -> HookError:
        """Return the HookError for the function at the dotted path ``source`` that raised ``error``."""
        return error if isinstance(error, HookError) else cls(f"{source} raised {type(error).__name__}")


def call(path: str, request: Any, expected: type[Any] | tuple[type[Any], ...]) -> Any:
    """Call the function at ``path`` with ``request`` and return its result, an instance of ``expected``.

    Raises HookError.
    """
    try:
        function = import_string(path)
        result = (async_to_sync(function) if _is_async(function) else function)(request)
    except Exception as error:
        raise HookError.build(path, error) from None
    return _check(path, result, expected)


async def acall(path: str, request: Any, expected: type[Any] | tuple[type[Any], ...]) -> Any:
    """See call(). A sync function runs thread-sensitively, because it may read the session or the database."""
    try:
        function = import_string(path)
        if not _is_async(function):
            return await sync_to_async(protect_transactions()(call), thread_sensitive=True)(path, request, expected)
        result = await function(request)
    except Exception as error:
        raise HookError.build(path, error) from None
    return _check(path, result, expected)


def _is_async(function: Callable[..., Any]) -> bool:
    """Return whether ``function`` is an async function or an object with ``async def __call__``."""
    return _inspect(function if isinstance(function, Hashable) else type(function).__call__)


# Each page calls the same functions of the site. A hit takes 14 bytecodes, a miss 150.
@lru_cache(maxsize=32)
def _inspect(function: Callable[..., Any]) -> bool:
    return iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)


def _check(path: str, result: object, expected: type[Any] | tuple[type[Any], ...]) -> object:
    if not isinstance(result, expected):
        raise HookError(f"{path} returned a value of type {type(result).__name__}")
    return result

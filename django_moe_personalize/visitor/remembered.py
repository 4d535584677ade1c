"""Remember anonymous visitors by the request data that they depend on, so that most pages verify and clean nothing."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings as django_settings
from django.http import HttpRequest

from django_moe_personalize.conf import get_settings
from django_moe_personalize.runtime import Runtime, part, protect_transactions
from django_moe_personalize.visitor.attributes import (
    MAX_INPUT_LENGTH,
    MAX_VALUE_LENGTH,
    QUARTER_OF_AN_HOUR,
    encode_query,
    parse_query,
)
from django_moe_personalize.visitor.identity import COOKIE_CHANGES, COOKIE_NAMES, QUERY_COOKIE

if TYPE_CHECKING:
    from django_moe_personalize.visitor.gather import Visitor

MAX_REMEMBERED: Final = 8192
"""The number of entries for anonymous visitors in a process. A full memory is cleared. A visitor has two entries."""


class Remembered(dict[tuple[Any, ...], "Visitor"]):
    """The anonymous visitors that a process remembers, by the request data that they depend on."""

    def __init__(self) -> None:
        secure = django_settings.SECURE_PROXY_SSL_HEADER
        self._headers = (*_HEADERS, *([secure[0]] if secure else []))

    def list_headers(self, request: HttpRequest) -> tuple[Any, ...]:
        """Return the raw data of a request whose cookies no code has read yet."""
        return (*map(request.META.get, self._headers), int(time.time()) // QUARTER_OF_AN_HOUR)

    def list_names(self, request: HttpRequest, now: datetime) -> list[tuple[Any, ...]]:
        """Return the names under which to remember a visitor: the raw data, and then all that the visitor depends on.

        Return an empty list for a visitor that can't be remembered.
        """
        may_be_changed = not _READ.isdisjoint(request.__dict__)
        inputs = _list_inputs(request, now)
        if inputs is None:
            return []
        headers = (None,) if may_be_changed else self.list_headers(request)
        # Under ASGI the raw data lacks the scheme. The page may have another time than the present.
        is_complete = headers[0] is not None and headers[-1] == inputs[-1]
        return [headers, inputs] if is_complete and len(str(headers)) <= 2 * MAX_INPUT_LENGTH else [inputs]

    def keep(self, visitor: Visitor, *names: tuple[Any, ...]) -> None:
        """Remember a visitor. If the memory is full, forget all others."""
        if len(self) >= MAX_REMEMBERED:
            self.clear()
        self.update(dict.fromkeys(names, visitor))


_HEADERS: Final = (
    *("wsgi.url_scheme", "QUERY_STRING", "REMOTE_ADDR", "HTTP_COOKIE", "HTTP_USER_AGENT"),
    *("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_SEC_GPC"),
)


@part
def get_remembered(runtime: Runtime) -> Remembered:
    """Return the visitors that this process remembers."""
    return Remembered()


def recall(request: HttpRequest, runtime: Runtime) -> Visitor | None:
    """Return the visitor of an earlier request with the same data, or ``None``. This calls no function of the site.

    A page of a remembered visitor runs 40 bytecodes here instead of 400, because its cookies aren't even parsed.
    """
    if not _READ.isdisjoint(request.__dict__):
        return None
    remembered = get_remembered(runtime)
    # Empty, for example, on a site with an IDENTIFY function.
    return remembered.get(remembered.list_headers(request)) if remembered else None


_READ: Final = frozenset({"user", "COOKIES", *COOKIE_CHANGES})
"""If a request has one of these attributes, its raw data doesn't tell the visitor: code may have changed them."""


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
        if user is not None:
            with protect_transactions():
                if user.is_authenticated:
                    return None
    except Exception:
        # The user can't be read. _gather() logs the error.
        return None
    return is_secure, query, *texts, int(now.timestamp()) // QUARTER_OF_AN_HOUR

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
    list_inputs,
)
from django_moe_personalize.visitor.identity import COOKIE_CHANGES, COOKIE_NAMES

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

        Return an empty list for a visitor that can't be remembered: it depends on a user or a function of the site, or
        on a cookie that only the header shows.
        """
        settings, may_be_changed = get_settings(), not _READ.isdisjoint(request.__dict__)
        if settings.consent or settings.attributes or not COOKIE_CHANGES.isdisjoint(request.__dict__):
            return []
        is_long = len(request.META.get("QUERY_STRING", "")) > MAX_VALUE_LENGTH
        if is_long or not request.META.get("HTTP_COOKIE", "").isascii() or _may_be_known(request):
            return []
        is_secure = request.is_secure()
        cookie, gpc = request.COOKIES.get(COOKIE_NAMES[is_secure]), request.META.get("HTTP_SEC_GPC")
        inputs = (is_secure, cookie, gpc, *list_inputs(request, now, settings))
        headers = (None,) if may_be_changed else self.list_headers(request)
        # Under ASGI the raw data lacks the scheme. The page may have another time than the present.
        is_complete = headers[0] is not None and headers[-1] == inputs[-1]
        return [headers, inputs] if is_complete else [inputs]

    def keep(self, visitor: Visitor, *names: tuple[Any, ...]) -> None:
        """Remember a visitor, unless its request has very long data. If the memory is full, forget all others."""
        if len(self) >= MAX_REMEMBERED:
            self.clear()
        self.update((name, visitor) for name in names if len(str(name)) <= MAX_INPUT_LENGTH)


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


def _may_be_known(request: HttpRequest) -> bool:
    """Return whether the request has a user. A user that can't be read counts: gathering the visitor logs the error."""
    try:
        if (user := request.__dict__.get("user")) is not None:
            with protect_transactions():
                return bool(user.is_authenticated)
    except Exception:
        return True
    return False

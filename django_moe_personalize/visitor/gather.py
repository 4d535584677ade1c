"""Gather a visitor's consent, identity and attributes, only for a page that fetches or counts.

Anonymous visitors are remembered by the request data that they depend on, so most pages verify and clean nothing.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final

from django.conf import settings as django_settings
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import SimpleLazyObject

from django_moe_personalize.conf import get_settings
from django_moe_personalize.runtime import Runtime, part, protect_transactions
from django_moe_personalize.visitor.attributes import (
    MAX_INPUT_LENGTH,
    MAX_VALUE_LENGTH,
    QUARTER_OF_AN_HOUR,
    acollect_attributes,
    collect_attributes,
    list_inputs,
)
from django_moe_personalize.visitor.evidence import NO_VISITOR, Evidence, Visitor
from django_moe_personalize.visitor.identity import (
    COOKIE_CHANGES,
    COOKIE_NAMES,
    GRANTED,
    MINTED,
    QUERY_CHANGED,
    Consent,
    Identity,
    aget_consent,
    aget_identity,
    get_consent,
    get_identity,
)


def gather_visitor(request: HttpRequest, now: datetime, guess: Visitor | None = None) -> Visitor:
    """Return the visitor of the request at the moment ``now``, or NO_VISITOR. Never raises.

    If the identity and the consent are still those of ``guess``, return ``guess``.
    """
    if guess is not None or get_settings().identify:
        return _gather(request, now, guess)
    remembered = get_remembered()
    names = remembered.list_names(request, now)
    visitor = remembered.get(names[-1]) if names else None
    if visitor is None:
        visitor = _gather(request, now, None)
        # A request without a valid cookie gets a new anonymous id. Requests with the same data must not share this id.
        if not COOKIE_CHANGES.isdisjoint(request.__dict__):
            return visitor
    remembered.keep(visitor, *names)
    return visitor


def _gather(request: HttpRequest, now: datetime, guess: Visitor | None) -> Visitor:
    # Most sites have no CONSENT function, and most browsers don't send Sec-GPC.
    is_default = not get_settings().consent and "HTTP_SEC_GPC" not in request.META
    consent = GRANTED if is_default else get_consent(request)
    known = None if guess is None else guess.identity
    identity = get_identity(request, consent, known) if consent.fetch else None
    if identity is None:
        return NO_VISITOR
    if guess is not None and _is_same(guess, identity, consent):
        return guess
    visitor = Visitor(identity, collect_attributes(request, now=now, consent=consent), consent)
    return guess if guess is not None and _is_same(guess, identity, consent, visitor.attributes) else visitor


async def agather_visitor(request: HttpRequest, now: datetime, guess: Visitor | None = None) -> Visitor:
    """See gather_visitor()."""
    consent = await aget_consent(request)
    identity = await aget_identity(request, consent) if consent.fetch else None
    if identity is None:
        return NO_VISITOR
    if guess is not None and _is_same(guess, identity, consent):
        return guess
    visitor = Visitor(identity, await acollect_attributes(request, now=now, consent=consent), consent)
    return guess if guess is not None and _is_same(guess, identity, consent, visitor.attributes) else visitor


def _is_same(
    guess: Visitor, identity: Identity | None, consent: Consent, attributes: Mapping[str, str] | None = None
) -> bool:
    """Return whether the visitor is still ``guess``. Without an id, only the site's own attributes can tell this."""
    if (guess.identity, guess.consent) != (identity, consent):
        return False
    return bool(guess.identity.customer_id or not get_settings().attributes) or guess.attributes == attributes


def is_still(visitor: Visitor, request: HttpRequest) -> bool:
    """Return whether ``visitor`` has the identity of ``request.user``.

    This function never blocks. It returns False if only a function of the site or the database could tell.
    """
    settings, is_lazy = get_settings(), isinstance(request.__dict__.get("user"), SimpleLazyObject)
    if settings.identify or settings.consent or visitor is NO_VISITOR or is_lazy:
        return False
    return _is_same(visitor, get_identity(request, visitor.consent), visitor.consent)


MAX_REMEMBERED: Final = 8192
"""The number of entries for anonymous visitors in a process. A full memory is cleared. A visitor has two entries."""


class Remembered(dict[tuple[Any, ...], Visitor]):
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
        cookie, gpc = request.COOKIES.get(COOKIE_NAMES[is_secure] + settings.suffix), request.META.get("HTTP_SEC_GPC")
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


_gathering: Final = ContextVar["RequestVisitor | None"]("moe_personalize_gathering", default=None)
"""The request whose visitor this thread or task is gathering. Threads and tasks that start meanwhile inherit it."""

_UNSEEN: Final = object()


class RequestVisitor:
    """The visitor of one request, compared with the request at each read.

    The visitor that the middleware gathers before the view is a guess: the view may sign a user in or out, or read a
    token. So if the user has changed, or if IDENTIFY and CONSENT may give another answer, this class gathers the
    visitor again. A subclass drops in ``_drop()`` all that belongs to the visitor before.
    """

    # Class attributes as defaults: every request makes an object, and most requests change few attributes.
    now: datetime | None = None
    _auser: object = _UNSEEN
    _evidence: Evidence | None = None
    _gathered: asyncio.Event | None = None
    _has_new_id = False
    _is_closed = False
    _is_confirmed = False
    _is_doubted = False
    # The users aren't local variables, because error reports show these.
    _seen: tuple[object, object] = (_UNSEEN, _UNSEEN)
    _is_used = False
    user: object = _UNSEEN
    """The request's user when the visitor was gathered."""
    known: Mapping[str, Any] = {"user": object()}
    """The request's attributes, from the first read until the response is sealed. Otherwise no user matches."""
    _visitor: Visitor | None = None

    _request: weakref.ref[HttpRequest]
    runtime: Runtime

    def doubt(self) -> None:
        """Gather the visitor again at the next read, and compare. Call this when a user logs in or out."""
        request = self._request()
        self._has_new_id = self._has_new_id or (request is not None and MINTED in request.__dict__)
        self._is_doubted, self.user = self._visitor is not None, _UNSEEN
        if _gathering.get() is not self:
            # If another task is gathering the visitor, its result is outdated already.
            self._gathered = None

    def confirm(self, *, is_read: bool = True, again: bool = False) -> bool:
        """Find out whether the visitor is still the same. Return False if the visitor can't be known now.

        IDENTIFY and CONSENT are called at the first read, if the request or its session has changed, and ``again``.
        """
        if self._is_changed(is_read=is_read, again=again, may_wait=not is_in_event_loop()):
            self.doubt()
        if not self._is_doubted or self._find_visitor() is not None:
            return True
        if is_in_event_loop() and self._gathered is None:
            self.runtime.log_once("changed", _CHANGED)
        return False

    async def aconfirm(self, *, is_read: bool = True, again: bool = False) -> None:
        """See confirm()."""
        if self._is_changed(is_read=is_read, again=again, may_wait=True):
            self.doubt()
        if self._is_doubted:
            await self._agather()

    def _is_changed(self, *, is_read: bool = True, again: bool = False, may_wait: bool) -> bool:
        """Return whether the visitor may be another one. Without ``may_wait`` only the credentials tell."""
        again = again or (is_read and not self._is_confirmed)
        self._is_confirmed = self._is_confirmed or (is_read and may_wait)
        request, evidence = self._request(), self._evidence
        if self._visitor is None or self._is_doubted or self._is_closed or request is None:
            return False
        if evidence is None:
            return request.__dict__.get("user") is not self.user or request.__dict__.get("auser") is not self._auser
        if not evidence.has_same_credentials(request):
            return True
        return may_wait and (again or not evidence.holds(request))

    def _find_visitor(self) -> Visitor | None:
        """Return the visitor, NO_VISITOR if the page may not call MoEngage, or ``None`` if the visitor isn't known."""
        if self._visitor is not None and not self._is_doubted:
            return self._visitor
        request = self._request()
        if request is None or not self.runtime.settings.enabled or self._gathered is not None:
            return None
        if self._visitor is None and self.now is None and (visitor := recall(request, self.runtime)) is not None:
            self._visitor, self._is_used, self.user, self._auser = visitor, True, None, request.__dict__.get("auser")
            return visitor
        if _gathering.get() is self:
            return None
        self._seen = request.__dict__.get("user"), request.__dict__.get("auser")
        if not is_in_event_loop():
            token = _gathering.set(self)
            try:
                visitor = gather_visitor(request, self.now or timezone.now(), self._visitor)
            finally:
                _gathering.reset(token)
        elif self._visitor is None:
            self.runtime.log_once("gather", _UNGATHERED)
            return None
        elif is_still(self._visitor, request):
            visitor = self._visitor
        else:
            return None
        self._settle(request, visitor)
        return self._visitor

    async def _agather(self) -> None:
        """Gather the visitor in the first task of the page. Other tasks wait for the first task.

        A function of the site may run here and read an experience. That read returns the default.
        """
        while (self._visitor is None or self._is_doubted) and _gathering.get() is not self:
            if (request := self._request()) is None:
                return
            if self._gathered is not None:
                await self._gathered.wait()
                continue
            gathered, token = asyncio.Event(), _gathering.set(self)
            self._gathered, self._is_used = gathered, True
            self._seen = request.__dict__.get("user"), request.__dict__.get("auser")
            try:
                visitor = await agather_visitor(request, self.now or timezone.now(), self._visitor)
                if self._gathered is gathered:
                    self._settle(request, visitor)
            finally:
                _gathering.reset(token)
                gathered.set()
                if self._gathered is gathered and (self._visitor is None or self._is_doubted):
                    # This task was cancelled, so the next task gathers the visitor.
                    self._gathered = None

    def _settle(self, request: HttpRequest, visitor: Visitor) -> None:
        """Keep the visitor, with the users that the request had before this visitor was gathered."""
        if self._visitor is not None and not self._is_doubted:
            # Another thread of the view was faster.
            return
        before, self._visitor, self._is_doubted, self._is_used = self._visitor, visitor, False, True
        if before is not None and visitor is not before:
            if request.__dict__.get(MINTED) != visitor.identity.customer_id:
                # The visitor before was anonymous and new. A known customer gets no cookie.
                request.__dict__.pop(MINTED, None)
            if not visitor.consent.identify and request.__dict__.get(QUERY_CHANGED):
                # Without consent the parameters of this request aren't stored either.
                delattr(request, QUERY_CHANGED)
            self._drop()
        if self.runtime.settings.identify or self.runtime.settings.consent:
            self._evidence = Evidence(request)
        if self._evidence is None or self._is_confirmed:
            self.user, self._auser = self._seen

    def _drop(self) -> None:
        """Drop all that belongs to the visitor before."""


_UNGATHERED = (
    "request.personalization was used in async code before its visitor was known, so it is empty there. "
    "Await request.personalization.aload() or aget() first."
)

_CHANGED = (
    "request.personalization was used in async code after the user or the consent of the request had changed, so it "
    "is empty there. Await request.personalization.aload() or aget() after the change."
)


def is_in_event_loop() -> bool:
    """Return whether waiting here would block the event loop."""
    # Outside an event loop, get_running_loop() raises an exception. That takes ten times as long.
    return asyncio._get_running_loop() is not None

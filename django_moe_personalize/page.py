"""The private side of ``request.personalization``: a page's visitor, questions, answers and events.

``request.personalization`` is a small mapping over a ``Page``. The middleware and the template tags use the page
itself. Until a key is planned or read, a page doesn't gather the visitor and doesn't ask MoEngage.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final
from weakref import ref

from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.template import Template

from django_moe_personalize import planning, rendering, tracking
from django_moe_personalize.fetching import Flight, start_fetch
from django_moe_personalize.moengage.types import Event, Experience
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.tracking import PageTracker
from django_moe_personalize.visitor import (
    COOKIE_CHANGES,
    MINTED,
    NO_VISITOR,
    QUERY_CHANGED,
    RequestVisitor,
    Visitor,
    is_in_event_loop,
    set_anonymous_cookie,
    set_query_cookie,
)


class Page(RequestVisitor):
    """One request and its experiences. All waits of a page together take at most DEADLINE seconds."""

    is_id_due = False
    is_preview = False
    is_read = False
    is_streamed = False
    _budget: float | None = None
    _charged_until = 0.0
    _clicks: Sequence[Event] = ()
    _expected: tuple[str, ...] = ()
    _is_dropped = False
    _flights: Sequence[Flight] = ()
    _stamp = ""
    _tracker: PageTracker | None = None
    _waiting = 0
    plan: planning.Plan = planning.NO_PLAN

    def __init__(self, request: HttpRequest) -> None:
        # With a strong reference, only the garbage collector could free the request.
        self._request = ref(request)
        self.runtime = get_runtime()
        self._answers: dict[str, Experience | None] = {}

    # Planning

    def find(self, experience_key: str, template: Template | None) -> Experience | None:
        """Return the experience for a tag of ``template``. The first tag fetches all keys of the template."""
        if experience_key not in self._answers and template is not None and not self._find_flight(experience_key):
            self._expected = planning.find_template_keys(template)
            self._learn(*self._expected)
        return self.read(experience_key)

    @property
    def experience_keys(self) -> tuple[str, ...]:
        """The keys that this page has asked for."""
        asked = (key for flight in self._flights for key in flight.question.keys)
        return tuple(dict.fromkeys([*self._answers, *asked]))

    @property
    def planned_keys(self) -> tuple[str, ...]:
        """All keys that this page needs, as far as the package knows."""
        request = self._request()
        planned = () if request is None else planning.get_planned_keys(request, self.plan.view)
        return tuple(dict.fromkeys([*planned, *self._expected, *self.experience_keys]))

    # Starting

    def start(self, keys: tuple[str, ...]) -> None:
        """Start one fetch of the keys in the plan, before the view runs. See prefetch()."""
        if self._answers or self._flights or self._visitor is not None:
            # Another middleware has used the page.
            self.prefetch(*keys)
        elif (visitor := self._find_visitor()) is not None:
            self._start(visitor, keys)

    def prefetch(self, *experience_keys: str) -> None:
        """Start one fetch of the keys that this page hasn't asked for, and return immediately."""
        if self._visitor is not None:
            self.confirm(is_read=False)
        if (wanted := self._find_unasked(experience_keys)) and (visitor := self._find_visitor()) is not None:
            self._start(visitor, wanted)

    async def aprefetch(self, *experience_keys: str) -> None:
        """See prefetch()."""
        if self._visitor is not None:
            await self.aconfirm(is_read=False)
        wanted = self._find_unasked(experience_keys)
        if wanted and self._visitor is None:
            await self._agather()
            # Meanwhile another task may have asked for the keys, or the middleware may have sealed the response.
            wanted = self._find_unasked(experience_keys)
        if wanted and self._visitor is not None and not self._is_doubted:
            self._start(self._visitor, wanted)

    # Waiting

    def load(self, *experience_keys: str) -> None:
        """Fetch the keys and wait for the answers. Without keys, wait for all fetches of this page."""
        self.prefetch(*experience_keys)
        if not is_in_event_loop():
            for flight in self._find_flights(experience_keys):
                self._join(flight)

    async def aload(self, *experience_keys: str) -> None:
        """See load()."""
        await self.aprefetch(*experience_keys)
        for flight in self._find_flights(experience_keys):
            self._charge(+1)
            try:
                found = await flight.ajoin(self._get_budget())
            finally:
                self._charge(-1)
            self._keep_flight(flight, found)

    # Reading

    def read(self, key: str) -> Experience | None:
        """Return the experience, after a fetch if necessary, and make the page private.

        In an event loop, this method doesn't wait: it returns ``None`` for an experience that hasn't arrived.
        """
        request = self._request()
        if request is None or self._is_closed:
            return None
        if (
            request.__dict__.get("user") is not self.user
            or request.__dict__.get("auser") is not self._auser
            or (self._evidence is not None and not self._evidence.holds(request))
        ) and not self.confirm():
            self.mark_read(request)
            return None
        if not self.is_read:
            if not self.runtime.settings.enabled:
                return None
            self.mark_read(request)
        return self._answers[key] if key in self._answers else self._answer(request, key)

    def mark_read(self, request: HttpRequest) -> None:
        """Make the page private: only this visitor may get the response."""
        if not self.is_read:
            self.is_read = self._is_used = True
            self.known = request.__dict__
            rendering.keep_out_of_caches(request)

    async def aread(self, key: str) -> Experience | None:
        """See read()."""
        await self.aconfirm()
        request = self._request()
        if request is not None and key not in self._answers:
            await self.aprefetch(*planning.get_planned_keys(request, self.plan.view), key)
            await self.aload(key)
        return self.read(key)

    def _answer(self, request: HttpRequest, key: str) -> Experience | None:
        flight = self._find_flight(key)
        in_event_loop = is_in_event_loop()
        if flight is not None and (flight.done() or (in_event_loop and flight.poll())):
            self._keep(flight.question.keys, flight.result(0.0))
        elif in_event_loop and isinstance(key, str):
            self._learn(key, limit=planning.MAX_READ_KEYS)
            self.runtime.log_once(("unplanned", key), _UNPLANNED, key)
        else:
            if flight is None and isinstance(key, str):
                self.prefetch(*planning.get_planned_keys(request, self.plan.view), *self._expected, key)
                flight = self._find_flight(key)
            if flight is not None:
                self._join(flight)
        return self._answers.get(key)

    # The visitor

    @property
    def visitor(self) -> Visitor:
        """The visitor, gathered on the first use. Reading the visitor makes the page private."""
        request = self._request()
        if request is None or self._is_closed:
            return NO_VISITOR
        self.confirm()
        if (visitor := self._find_visitor()) is None:
            return NO_VISITOR
        self.mark_read(request)
        return visitor

    @property
    def tracker(self) -> PageTracker:
        """The tracker of this page. In a preview, or without the visitor's consent, the tracker records nothing."""
        if self._is_doubted and not self.confirm():
            return PageTracker(None)
        if self._tracker is None:
            request, visitor = self._request(), None if self._is_closed else self._visitor or self._find_visitor()
            if visitor is None or request is None:
                # Don't keep this tracker: the page may track once the visitor is known.
                return PageTracker(None)
            # Most sites set none of these attributes, and the call would take 60 bytecodes.
            is_preview = not tracking.PREVIEW_MARKS.isdisjoint(request.__dict__) and tracking.is_preview(request)
            customer_id = visitor.identity.customer_id if visitor.consent.track and not is_preview else None
            # Code may still have experiences of the visitor before. They don't count for this visitor.
            answers = self._answers if self._is_dropped else None
            is_early = request.method == "GET" and tracking.is_speculative(request)
            self._tracker = PageTracker(customer_id, self._get_stamp, answers, is_early)
        return self._tracker

    def _get_stamp(self) -> str:
        """Return the stamp of this page's tokens. Make the page private, because it will have a token."""
        self._stamp = self._stamp or tracking.draw_stamp()
        if (request := self._request()) is not None:
            self.mark_read(request)
        return self._stamp

    def _drop(self) -> None:
        """Leave the fetches to other pages, and drop the answers and the impressions of the visitor before.

        The page is for another visitor now, and may or may not show the old content. But a click has happened, so it
        counts, unless the browser never gets the anonymous id.
        """
        self.release()
        if not self.is_read and (request := self._request()) and "HTTP_AUTHORIZATION" in request.META:
            planning.get_route_memory(self.runtime).late_routes.add(planning.get_route(request))
        self._expected = tuple(dict.fromkeys([*self._expected, *self.experience_keys]))
        if self._tracker is not None and not self._has_new_id:
            self._clicks = [*self._clicks, *self._tracker.take(shown=False)]
        self._flights, self._answers, self._tracker = (), {}, None
        self._has_new_id, self._is_dropped = False, True

    def _finish_visitor(self, request: HttpRequest, response: HttpResponseBase) -> None:
        """Confirm the visitor for the last time, before the response gets a cookie and the page reports its events."""
        if self._is_changed(may_wait=not is_in_event_loop()):
            self.doubt()
        before = self._visitor
        if self._is_doubted and self._find_visitor() is not before and not response.streaming:
            # The page shows nothing to the new visitor. In an event loop this visitor may even be unknown.
            request.__dict__.pop(MINTED, None)
            self._drop()

    # The response

    def seal(self, response: HttpResponseBase) -> Sequence[Event]:
        """Mark ``response`` as private if the page read anything about its visitor, and return the events to report.

        Later reads return the default, because the server may have sent the headers already.
        """
        if next(self.plan.samples):
            self._look_for_leak(response)
        if not self._is_used:
            self._is_closed = True
            return ()
        if self._flights:
            self.release()
        request = self._request()
        if request is None or not (self.is_read or self._finish_unread(request, response)):
            self._is_closed, self.known = True, RequestVisitor.known
            return ()
        is_same = request.__dict__.get("user") is self.user and request.__dict__.get("auser") is self._auser
        if not is_same or (self._evidence is not None and not self._evidence.holds(request)):
            self._finish_visitor(request, response)
        rendering.seal_response(response, self.runtime.settings)
        if self.runtime.is_debug or not _LOADED_USERS.isdisjoint(request.__dict__):
            rendering.add_server_timing(request, response)
        if not COOKIE_CHANGES.isdisjoint(request.__dict__) and not tracking.is_preview(request):
            set_anonymous_cookie(request, response)
            tracking.note_new_id(request)
            set_query_cookie(request, response)
        if isinstance(response, StreamingHttpResponse):
            self.is_streamed = True
            end = partial(self._end, request, response)
            tracking.record_when_streamed(request, response, self.aload, end, self.runtime)
            return ()
        return self._end(request, response)

    def _look_for_leak(self, response: HttpResponseBase) -> None:
        # In strict mode the search raises an exception, and the page has no other response.
        self.release()
        request = self._request()
        if request is not None and tracking.find_leak(self.runtime, request, response, lambda: self._stamp):
            self.mark_read(request)

    def release(self) -> None:
        """Stop reading MoEngage's responses. Other pages or threads read them."""
        for flight in self._flights:
            flight.release()

    def _finish_unread(self, request: HttpRequest, response: HttpResponseBase) -> bool:
        """Finish a page that has read no experience, and return whether its response must be private nevertheless.

        This is so if the response sets a cookie, or if a streamed response may still read an experience.
        """
        has_asked = bool(self._flights or self._answers or self._expected)
        if has_asked and not response.streaming and request.method == "GET" and response.status_code < 500:
            # The page needed none of the keys that it fetched early.
            planning.get_route_memory(self.runtime).unlearn(request)
        return QUERY_CHANGED in request.__dict__ or (has_asked and response.streaming)

    def _end(self, request: HttpRequest, response: HttpResponseBase) -> Sequence[Event]:
        # An outer middleware may replace the response. A read there couldn't make the new response private.
        self._is_closed, self.known = True, RequestVisitor.known
        if self.is_streamed:
            # The content may have started fetches.
            self.release()
        tracker, self._tracker = self._tracker, None
        if not (tracker or self._clicks) or response.status_code >= 400 or not tracking.is_counted(request):
            return ()
        # With "returning" the browser must show first that it keeps cookies.
        if tracker is None or (MINTED in request.__dict__ and self.runtime.settings.anonymous_events == "returning"):
            return self._clicks
        events = tracker.take(shown=response.status_code == 200 and request.method == "GET")
        return [*self._clicks, *events] if self._clicks else events

    # Steps

    def _find_unasked(self, keys: Sequence[str]) -> tuple[str, ...]:
        if self._is_dropped:
            # Ask for this visitor also what the page has asked for the visitor before, in the same call.
            keys = (*keys, *self._expected)
        if not keys or self._is_closed or self._request() is None or not self.runtime.settings.enabled:
            return ()
        asked = self.experience_keys if self._flights or self._answers else ()
        return tuple([key for key in dict.fromkeys(keys) if key and isinstance(key, str) and key not in asked])

    def _find_flight(self, key: str) -> Flight | None:
        return next((flight for flight in self._flights if key in flight.question.keys), None)

    def _find_flights(self, keys: Sequence[str]) -> list[Flight]:
        return [f for f in self._flights if not keys or not set(keys).isdisjoint(f.question.keys)]

    def _start(self, visitor: Visitor, keys: tuple[str, ...]) -> None:
        if visitor is NO_VISITOR:
            self._answers.update(dict.fromkeys(keys))
            return
        answers, flight = start_fetch(self.runtime, visitor, keys)
        if flight is None:
            self._keep(keys, answers)
        else:
            self._flights = [*self._flights, flight]

    def _join(self, flight: Flight) -> None:
        self._charge(+1)
        try:
            found = flight.join(self._get_budget())
        finally:
            self._charge(-1)
        self._keep_flight(flight, found)

    def _keep_flight(self, flight: Flight, found: Mapping[str, Experience | None]) -> None:
        # Meanwhile another task may have found another visitor.
        if flight in self._flights:
            self._keep(flight.question.keys, found)

    def _keep(self, keys: tuple[str, ...], found: Mapping[str, Experience | None]) -> None:
        if keys is self.plan.keys and not self._answers:
            self._answers = dict(zip(keys, map(found.get, keys), strict=True))
            return
        brought = [key for key in keys if self._answers.setdefault(key, found.get(key)) is not None]
        if brought:
            # The next page of this route fetches these keys early.
            self._learn(*brought, limit=planning.MAX_READ_KEYS)

    def _learn(self, *keys: str, limit: int = planning.MAX_KEYS_A_ROUTE) -> None:
        if (request := self._request()) is not None:
            planning.get_route_memory(self.runtime).learn(request, *keys, limit=limit)

    def _get_budget(self) -> float:
        """Return how many seconds this page may still wait."""
        return self.runtime.settings.deadline if self._budget is None else self._budget

    def _charge(self, change: int) -> None:
        """Start or end one wait. If several tasks of a page wait at the same time, charge the time once."""
        now = time.monotonic()
        if self._waiting:
            self._budget = max(0.0, self._get_budget() - (now - self._charged_until))
        self._charged_until = now
        self._waiting += change


_LOADED_USERS: Final = frozenset({"_cached_user", "_acached_user"})
"""Attributes of a request whose user Django has loaded."""

_UNPLANNED = (
    "Experience %r was read in async code before its response arrived, so the page shows its default. "
    "Declare it with @personalize or EXPERIENCES, or await request.personalization.aload() first."
)

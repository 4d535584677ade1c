"""Context: ``Personalization``, the lazy mapping key → ``Experience`` of one request.

Nothing is gathered, asked or touched until something is planned or read.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar, overload

from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.template import Template
from django.utils import timezone

from django_moe_personalize import planning, tracking
from django_moe_personalize.conf import get_settings
from django_moe_personalize.fetching.fetch import Fetch, start_fetch
from django_moe_personalize.moengage.types import DataSource, Event, Experience, Offering
from django_moe_personalize.rendering import headers
from django_moe_personalize.runtime import log_once
from django_moe_personalize.tracking.page import PageTracker
from django_moe_personalize.visitor.attributes import has_stored_parameters
from django_moe_personalize.visitor.consent import Consent
from django_moe_personalize.visitor.gather import NOBODY, Visitor, agather_visitor, gather_visitor
from django_moe_personalize.visitor.identity import Identity, set_anonymous_cookie

T = TypeVar("T")


class Personalization(Mapping[str, Experience]):
    """The experiences of one request's visitor: ``request.personalization``.

    ``get(key)`` gives the experience or ``None``; in async code ``await aget(key)``. The first read
    asks for everything the page is known to need in one call; all reads of a page together wait at
    most DEADLINE seconds. ``now`` is the moment of the page, by default the real one: set it before
    the first read to preview another hour.
    """

    # Defaults of the class, since every page makes one of these and most change next to nothing.
    is_read = False
    now: datetime | None = None
    _budget: float | None = None
    _charged_until = 0.0
    _closed = False
    _expected: tuple[str, ...] = ()
    _gathering: tuple[asyncio.Task[Any] | None, asyncio.Event] | None = None
    _tracker: PageTracker | None = None
    _view: Callable[..., Any] | None = None
    _visitor: Visitor | None = None
    _waiting = 0

    def __init__(self, request: HttpRequest) -> None:
        # A strong reference back would make a cycle, and every request wait for the collector.
        self._request = weakref.ref(request)
        self._answers: dict[str, Experience | None] = {}
        self._fetches: list[Fetch] = []

    # Reading

    def __getitem__(self, experience_key: str) -> Experience:
        # A template looks up {{ personalization.identity }} as a key first; that is no question to the vendor.
        experience = None if hasattr(type(self), experience_key) else self._read(experience_key)
        if experience is None:
            raise KeyError(experience_key)
        return experience

    @overload
    def get(self, key: str, /) -> Experience | None: ...
    @overload
    def get(self, key: str, /, default: Experience) -> Experience: ...
    @overload
    def get(self, key: str, /, default: T) -> Experience | T: ...
    def get(self, key: str, /, default: Any = None) -> Any:
        """Return the experience, or ``default`` when this visitor has none of that key."""
        experience = self._read(key)
        return default if experience is None else experience

    @overload
    async def aget(self, key: str, /) -> Experience | None: ...
    @overload
    async def aget(self, key: str, /, default: T) -> Experience | T: ...
    async def aget(self, key: str, /, default: Any = None) -> Any:
        """See get(). A key that nothing planned is asked for here."""
        request = self._request()
        if request is not None and key not in self._answers:
            await self.aprefetch(*planning.get_planned_keys(request, self._view), key)
        return self.get(key, default)

    def __contains__(self, experience_key: object) -> bool:
        return isinstance(experience_key, str) and self._read(experience_key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter([key for key in self._list_keys() if self._read(key) is not None])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Personalization of {', '.join(self.experience_keys) or 'no experiences yet'}>"

    # Sentry would look through the mapping, which asks the vendor, while it reports what failed.
    __sentry_repr__ = __repr__

    # Asking

    def prefetch(self, *experience_keys: str) -> None:
        """Start asking for ``experience_keys``, in one call, and go on; the first read joins."""
        wanted = self._find_unasked(experience_keys)
        if wanted and self._can_gather():
            self._start(self._get_visitor(), wanted)

    def join(self) -> None:
        """Wait for what was asked, where a thread may: an async view under WSGI cannot wait later."""
        for fetch in self._fetches:
            self._wait(fetch)

    async def astart(self, *experience_keys: str) -> None:
        """See prefetch()."""
        if wanted := self._find_unasked(experience_keys):
            self._start(await self._aget_visitor(), wanted)

    async def aprefetch(self, *experience_keys: str) -> None:
        """Ask for ``experience_keys`` and wait, at most what is left of the page's deadline.

        As a task of its own it overlaps with what the view awaits besides.
        """
        await self.astart(*experience_keys)
        for fetch in [fetch for fetch in self._fetches if not set(experience_keys).isdisjoint(fetch.keys)]:
            self._charge(+1)
            try:
                answers = await fetch.aresult(self._get_budget())
            finally:
                self._charge(-1)
            self._settle(fetch, answers)

    def plan(self, view: Callable[..., Any]) -> tuple[str, ...]:
        """Return the keys worth asking for before ``view`` runs."""
        self._view = view
        request = self._request()
        if request is None or not get_settings().enabled:
            return ()
        return planning.get_early_keys(request, view)

    def expect(self, *experience_keys: str) -> None:
        """Plan keys that the page was seen to need: the next question carries them, and the route's next page."""
        if (request := self._request()) is not None:
            self._expected = experience_keys
            self._learn(request, *experience_keys)

    def is_asked(self, experience_key: str) -> bool:
        """Return whether an experience was asked for already."""
        return experience_key in self._answers or self._find_fetch(experience_key) is not None

    def find(self, experience_key: str, template: Template | None) -> Experience | None:
        """See get(); for a tag of ``template``, all of whose keys the first question carries."""
        if experience_key not in self._answers and template is not None and not self.is_asked(experience_key):
            self.expect(*planning.find_template_keys(template))
        return self._read(experience_key)

    # What was asked, by whom

    @property
    def experience_keys(self) -> tuple[str, ...]:
        """The keys asked for so far."""
        asked = (key for fetch in self._fetches for key in fetch.keys)
        return tuple(dict.fromkeys([*self._answers, *asked]))

    @property
    def identity(self) -> Identity:
        """Who is asking, as far as known and allowed."""
        return self._get_visitor().identity

    @property
    def consent(self) -> Consent:
        """What the visitor allows."""
        return self._get_visitor().consent

    @property
    def attributes(self) -> Mapping[str, str]:
        """The in-session attributes that are sent."""
        return self._get_visitor().attributes

    # Telling

    @property
    def tracker(self) -> PageTracker:
        """What this page view shows and hands out, as far as the visitor lets it be counted."""
        if self._tracker is None:
            if self._visitor is None and not self._can_gather():
                # Not kept: once the visitor is known there may be something to count.
                return PageTracker(None)
            visitor = self._get_visitor()
            self._tracker = PageTracker(visitor.identity.customer_id if visitor.consent.track else None)
        return self._tracker

    def track_impression(self, experience_key: str) -> None:
        """Count an impression of an experience that was shown; once a page view however often called."""
        if (experience := self.get(experience_key)) is not None:
            self.tracker.show(experience)

    def track_click(self, experience_key: str, *, element: str = "", offering: Offering | None = None) -> None:
        """Count a click on ``element`` (``b_id``), or on ``offering``, that this request stands for."""
        if (experience := self.get(experience_key)) is not None:
            self.tracker.click(experience, element=element, offering=offering)

    # The response

    def seal(self, response: HttpResponseBase) -> Sequence[Event]:
        """Mark ``response`` as this visitor's own if it read an experience; return the events it counts.

        What reads after this (a streaming response) gets the default where the headers are gone
        unsealed.
        """
        request = self._request()
        release_unread(self)
        if request is None or not (self.is_read or self._is_concerned(request, response)):
            self._closed = True
            return ()
        settings = get_settings()
        headers.seal_response(response, settings)
        waited = settings.deadline - self._get_budget()
        headers.add_server_timing(request, response, describe=self._describe, waited=waited)
        set_anonymous_cookie(request, response)
        if isinstance(response, StreamingHttpResponse):
            tracking.record_when_streamed(response, lambda: self._take_events(request, response))
            return ()
        # Whoever puts another page in place of this one does not know that it would be one visitor's.
        self._closed = True
        return self._take_events(request, response)

    def _is_concerned(self, request: HttpRequest, response: HttpResponseBase) -> bool:
        """Return whether a response that read nothing is one visitor's all the same, or may yet read."""
        if self._visitor is None and self._gathering is None:
            return False
        return has_stored_parameters(request) or (isinstance(response, StreamingHttpResponse) and bool(self._fetches))

    def _describe(self) -> str:
        came = [experience for experience in self._answers.values() if experience is not None]
        cached = sum(experience.source is DataSource.CACHE for experience in came)
        return f"{len(self.experience_keys)} asked, {len(came)} came, {cached} from the cache"

    def _take_events(self, request: HttpRequest, response: HttpResponseBase) -> Sequence[Event]:
        if self._tracker is None or response.status_code >= 400 or not tracking.is_counted(request):
            return ()
        return self._tracker.take(shown=response.status_code == 200 and request.method == "GET")

    # The steps

    def _read(self, key: str) -> Experience | None:
        request = self._request()
        if request is None or self._closed or not get_settings().enabled:
            return None
        self.is_read = True
        headers.keep_out_of_site_cache(request)
        if key not in self._answers:
            self._answer(request, key)
        return self._answers.get(key)

    def _answer(self, request: HttpRequest, key: str) -> None:
        """Fill in the answer of ``key``, asking and waiting where that is possible."""
        fetch = self._find_fetch(key)
        in_event_loop = _is_in_event_loop()
        if fetch is not None and (fetch.done or (in_event_loop and fetch.poll())):
            self._settle(fetch, fetch.result(0.0))
            return
        if in_event_loop:
            self._learn(request, key, limit=planning.MAX_READ_KEYS)
            log_once(("unplanned", key), _UNPLANNED, key)
            return
        if fetch is None:
            self.prefetch(*planning.get_planned_keys(request, self._view), *self._expected, key)
            fetch = self._find_fetch(key)
        if fetch is not None:
            self._wait(fetch)

    def _wait(self, fetch: Fetch) -> None:
        self._charge(+1)
        try:
            answers = fetch.result(self._get_budget())
        finally:
            self._charge(-1)
        self._settle(fetch, answers)

    def _learn(self, request: HttpRequest, *keys: str, limit: int = planning.MAX_KEYS_A_ROUTE) -> None:
        route = planning.get_route(request)
        if route is not None:
            planning.get_route_memory().learn(route, *keys, limit=limit)

    def _find_unasked(self, keys: Sequence[str]) -> tuple[str, ...]:
        if self._closed or self._request() is None or not get_settings().enabled:
            return ()
        asked = self.experience_keys if self._fetches or self._answers else ()
        return tuple([key for key in dict.fromkeys(keys) if key and isinstance(key, str) and key not in asked])

    def _find_fetch(self, key: str) -> Fetch | None:
        return next((fetch for fetch in self._fetches if key in fetch.keys), None)

    def _start(self, visitor: Visitor, keys: Sequence[str]) -> None:
        if visitor is NOBODY:
            self._answers.update(dict.fromkeys(keys))
        else:
            self._fetches.append(start_fetch(visitor, keys))

    def _settle(self, fetch: Fetch, answers: Mapping[str, Experience]) -> None:
        for key in fetch.keys:
            self._answers.setdefault(key, answers.get(key))
        if answers and (request := self._request()) is not None:
            # What somebody got is worth asking for early; a key that nobody gets is not.
            self._learn(request, *answers, limit=planning.MAX_READ_KEYS)

    def _get_budget(self) -> float:
        """Return the seconds that this page may still wait."""
        return get_settings().deadline if self._budget is None else self._budget

    def _charge(self, change: int) -> None:
        """Let one more wait, or one less; what several tasks wait for at the same time is taken off once."""
        now = time.monotonic()
        if self._waiting:
            self._budget = max(0.0, self._get_budget() - (now - self._charged_until))
        self._charged_until = now
        self._waiting += change

    def _list_keys(self) -> tuple[str, ...]:
        request = self._request()
        planned = () if request is None else planning.get_planned_keys(request, self._view)
        return tuple(dict.fromkeys([*planned, *self.experience_keys]))

    def _can_gather(self) -> bool:
        """Return whether the visitor is known or can be asked about without blocking the event loop."""
        if not get_settings().enabled:
            return False
        if self._visitor is None and _is_in_event_loop():
            log_once("gather", _UNGATHERED)
            return False
        return True

    def _get_visitor(self) -> Visitor:
        """Gather the visitor, once; NOBODY when nothing may be asked."""
        if self._visitor is not None:
            return self._visitor
        request = self._request()
        if request is None or self._gathering is not None or not self._can_gather():
            return NOBODY
        # A site's own provider that reads an experience meets this instead of itself.
        self._visitor = NOBODY
        self._visitor = gather_visitor(request, self.now or timezone.now())
        return self._visitor

    async def _aget_visitor(self) -> Visitor:
        """See _get_visitor(). Tasks of one request that ask at once wait for the first."""
        request = self._request()
        if self._visitor is None and self._gathering is None and request is not None:
            _, gathered = self._gathering = asyncio.current_task(), asyncio.Event()
            try:
                self._visitor = await agather_visitor(request, self.now or timezone.now())
            finally:
                if self._visitor is None:
                    # Cancelled, which says nothing of the visitor: who asks next gathers anew.
                    self._gathering = None
                gathered.set()
        elif self._visitor is None and self._gathering is not None:
            owner, gathered = self._gathering
            if owner is not asyncio.current_task():
                await gathered.wait()
                return await self._aget_visitor()
        return self._visitor or NOBODY


def release_unread(personalization: Personalization) -> None:
    """Leave to a thread what a page has not read by its end: nobody else might read it."""
    for fetch in personalization._fetches:
        fetch.release()


_UNPLANNED = (
    "Experience %r was read in async code before it was there, so its default is shown. "
    "Declare it with @personalize or EXPERIENCES, or await request.personalization.aget() first."
)

_UNGATHERED = (
    "request.personalization was used in async code before it knew its visitor; await its aprefetch() or aget() first."
)


def _is_in_event_loop() -> bool:
    """Return whether waiting here would stop every other request of the process."""
    # get_running_loop() says no by raising, which takes ten times as long, several times a page.
    return asyncio._get_running_loop() is not None

"""A page that also records when it did something. The debug toolbar's panel uses it instead of ``Page``."""

from __future__ import annotations

import time
from collections.abc import Sequence

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from django_moe_personalize.moengage.types import Event
from django_moe_personalize.page import Page
from django_moe_personalize.visitor import NO_VISITOR, Visitor


class RecordedPage(Page):
    """One request and its experiences, with a timeline. ``counted`` is ``None`` until the response is ready."""

    counted: Sequence[Event] | None = None

    def __init__(self, request: HttpRequest) -> None:
        super().__init__(request)
        self._began = self._wait_began = time.monotonic()
        self.timeline: list[tuple[float, str]] = []
        """What happened, each with the seconds since the request reached the middleware."""

    def note(self, text: str) -> None:
        """Add a line to the timeline."""
        self.timeline.append((time.monotonic() - self._began, text))

    def start(self, keys: tuple[str, ...]) -> None:
        """See Page.start()."""
        self.note(f"Known before the view: {', '.join(keys)}.")
        super().start(keys)

    def _start(self, visitor: Visitor, keys: tuple[str, ...]) -> None:
        flights = len(self._flights)
        super()._start(visitor, keys)
        if visitor is NO_VISITOR:
            what = "not asked, because the visitor's consent or identity doesn't allow it"
        elif len(self._flights) == flights:
            what = "answered at once from the memory of this process"
        else:
            what = "asked; the call goes to MoEngage if the site's cache has no answer"
        self.note(f"{', '.join(keys)}: {what}.")

    def _charge(self, change: int) -> None:
        super()._charge(change)
        if change > 0:
            self._wait_began = time.monotonic()
            return
        seconds = time.monotonic() - self._wait_began
        waiting = [flight for flight in self._flights if not flight.done()]
        why = "The deadline ended the wait" if waiting and self._get_budget() <= 0 else "The wait is over"
        self.note(f"{why}, after {seconds * 1000:.1f} ms.")

    def _end(self, request: HttpRequest, response: HttpResponseBase) -> Sequence[Event]:
        events = super()._end(request, response)
        self.counted = list(events)
        self.note(f"The response is ready: status {response.status_code}, {len(events)} events.")
        return events

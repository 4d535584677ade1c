"""Collect the impressions and clicks of one page, and pass their events to the delivery."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from django.http import HttpRequest, StreamingHttpResponse

from django_moe_personalize.conf import get_settings
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.moengage.types import Action, Event, Experience, Offering
from django_moe_personalize.runtime import Runtime, log_once
from django_moe_personalize.tracking.events import Impressions, build_event, build_offering_impressions
from django_moe_personalize.tracking.persons import is_counted
from django_moe_personalize.tracking.tokens import MAX_LINK_LENGTH, MAX_MARK_LENGTH, Token, derive_uuid, draw_stamp
from django_moe_personalize.tracking.watchdog import get_watchdog
from django_moe_personalize.visitor import MINTED

_NO_MARK = (
    "The context of the experience %r is too long for a token, so the browser reports neither its impressions nor its "
    "clicks. Shorten the names of the experience and its audience in MoEngage's dashboard."
)
_FEWER_ELEMENTS = (
    "The experience %r has %d data-moe-click elements, and a token has room for %d. Clicks on the other elements "
    "aren't counted, but impressions are. Shorten the names of the elements, or give several elements the same name."
)
_NO_LINK = (
    "A link of the experience %r has a context and a destination that are too long for a token. The link works, but "
    "its clicks aren't counted. Shorten the destination, or count the clicks with data-moe-click."
)


def note_new_id(request: HttpRequest) -> None:
    """Tell the watchdog about the anonymous id that this response gives to the browser, unless a robot gets the id."""
    anonymous_id = request.__dict__.get(MINTED)
    if anonymous_id is not None and is_counted(request):
        get_watchdog().add_new_id(anonymous_id)


class PageTracker:
    """The impressions and clicks of one page view by the visitor ``customer_id``. With ``None`` nothing counts.

    All tokens and marks of a page view start with the stamp from ``get_stamp``.

    An experience has one impression per page view, even if the page shows the experience several times.

    With ``answers`` (by key) only these experiences count. With ``is_early`` the visitor hasn't opened the page yet,
    so only the browser can report. Templates add the experiences that they show to ``rendered``. Only in the mode
    "render" this counts the impressions.
    """

    __slots__ = ("_answers", "_clicks", "_customer_id", "_impressions", "_shown", "get_stamp", "is_early", "rendered")

    def __init__(
        self,
        customer_id: str | None,
        get_stamp: Callable[[], str] = draw_stamp,
        answers: Mapping[str, Experience | None] | None = None,
        is_early: bool = False,
    ) -> None:
        self._customer_id = customer_id
        self.get_stamp = get_stamp
        self.is_early = is_early
        self._answers = answers
        self._impressions: dict[str, Event | None] = {}
        # The experiences whose impressions this page reports, by key.
        self._shown: dict[str, Experience] = {}
        self.rendered: dict[str, Experience] = self._shown if get_settings().impressions == "render" else {}
        self._clicks: list[Event] = []

    def get_impression(self, experience: Experience) -> Event | None:
        """Return the impression of ``experience`` in this page view. Every call returns the same event."""
        key = experience.experience_key
        if self._answers is not None and self._answers.get(key) is not experience:
            return None
        if key not in self._impressions:
            self._impressions[key] = build_event(Action.SHOWN, experience, self._customer_id)
        return self._impressions[key]

    def show(self, experience: Experience) -> None:
        """Count the impression of ``experience`` once in this page view."""
        self._shown.setdefault(experience.experience_key, experience)

    def click(self, experience: Experience, *, element: str = "", offering: Offering | None = None) -> None:
        """Count this request as a click."""
        event = build_event(Action.CLICKED, experience, self._customer_id, element=element, offering=offering)
        self._clicks += [] if event is None else [event]

    def sign_mark(self, experience: Experience, elements: Sequence[str]) -> str | None:
        """Return the token of a mark around ``experience``, or ``None`` if MoEngage can't count its impression.

        A token that is too long has only the first ``elements``, so the impression counts in any case.
        """
        stamp, event = self.get_stamp(), self.get_impression(experience)
        if event is None:
            return None
        token, key = Token.build(event, elements=elements), experience.experience_key
        while (text := token.sign(stamp, MAX_MARK_LENGTH)) is None and token.elements:
            token = token._replace(elements=token.elements[: len(token.elements) // 2])
        if text is None:
            log_once(("mark", key), _NO_MARK, key)
        elif len(token.elements) < len(elements):
            log_once(("mark", key), _FEWER_ELEMENTS, key, len(elements), len(token.elements))
        return text

    def sign_shown(self) -> list[str]:
        """Return the tokens of the impressions so far, for the script to report once a person opens the page."""
        stamp, events = self.get_stamp() if self._shown else "", self.build_impressions()
        return [text for event in events if (text := Token.build(event).sign(stamp, MAX_MARK_LENGTH))]

    def sign_click(
        self,
        experience: Experience,
        destination: str,
        *,
        element: str = "",
        offering: Offering | None = None,
        host: str = "",
    ) -> str | None:
        """Return the token of a link to ``destination``, or ``None`` if MoEngage can't count the click.

        The click has the same UUID as a click from Token.build_click(). So if the link and the mark around the link
        both report the click, the click counts once.
        """
        # The page becomes private also without a token, because the link shows that the visitor isn't tracked.
        stamp = self.get_stamp()
        event = build_event(Action.CLICKED, experience, self._customer_id, element=element, offering=offering)
        impression = self.get_impression(experience)
        if event is None or impression is None:
            return None
        if name := event.attributes.get("b_id"):
            event = replace(event, event_uuid=derive_uuid(impression.event_uuid, name))
        text = Token.build(event, destination=destination, host=host).sign(stamp, MAX_LINK_LENGTH)
        if text is None:
            log_once(("link", experience.experience_key), _NO_LINK, experience.experience_key)
        return text

    def build_impressions(self) -> list[Event]:
        """Return the events of the shown experiences and of their offerings. Every call has the same impressions."""
        events: list[Event] = []
        for experience in self._shown.values():
            if (event := self.get_impression(experience)) is not None:
                events += [event, *build_offering_impressions(experience.offerings, self._customer_id)]
        return events

    def take(self, *, shown: bool) -> Sequence[Event]:
        """Return the events to report, and clear the clicks. Impressions count only if the page was ``shown``."""
        clicks, self._clicks = self._clicks, []
        if not shown or not self._customer_id:
            return clicks
        if self.rendered and get_settings().impressions == "visible":
            # The watchdog compares these experiences with the impressions that the browser reports.
            get_watchdog().add_rendered_page(self.rendered)
        if not self._shown:
            return clicks
        if clicks or self._impressions or self._answers is not None or get_settings().offering_events:
            get_watchdog().add_rendered_page(self._shown)
            return [*clicks, *self.build_impressions()]
        return Impressions(self._customer_id, self._shown, int(time.time()))


def record(events: Sequence[Event], runtime: Runtime | None = None) -> None:
    """Pass ``events`` to the delivery of ``runtime``, by default of the current runtime. Never raises."""
    try:
        if events:
            get_delivery(runtime).record(events)
            get_watchdog(runtime).add_recorded_events(events)
    except Exception as error:
        _report_loss(error)


async def arecord(events: Sequence[Event], runtime: Runtime | None = None) -> None:
    """See record()."""
    try:
        if events:
            await get_delivery(runtime).arecord(events)
            get_watchdog(runtime).add_recorded_events(events)
    except Exception as error:
        _report_loss(error)


def _report_loss(error: Exception) -> None:
    message = "The delivery failed (%s), so events are lost. Check DELIVERY: run `manage.py check`."
    log_once(("delivery", type(error)), message, type(error).__name__)


def record_when_streamed(
    response: StreamingHttpResponse,
    load: Callable[[], Awaitable[None]],
    collect: Callable[[], Sequence[Event]],
    runtime: Runtime | None = None,
) -> None:
    """Record the events that ``collect()`` returns after the server has sent the whole ``response``.

    An async stream renders in the event loop, where a template can't wait. So the stream first waits for ``load()``.
    """

    def stream(content: Any) -> Iterator[bytes]:
        yield from content
        record(collect(), runtime)

    async def astream(content: Any) -> AsyncIterator[bytes]:
        await load()
        async for part in content:
            yield part
        await arecord(collect(), runtime)

    response.streaming_content = (astream if response.is_async else stream)(response.streaming_content)

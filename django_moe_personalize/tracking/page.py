"""Collect the impressions and clicks of one page, build their events, and pass the events to the delivery.

An event gets its UUID and its time when the impression or the click happens (contract §4).
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from django.http import HttpRequest, StreamingHttpResponse

from django_moe_personalize.conf import get_settings
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.moengage.types import Action, Event, Experience, Offering
from django_moe_personalize.runtime import Runtime, log_once
from django_moe_personalize.tracking.tokens import OFFERINGS, Token, derive_uuid, draw_stamp
from django_moe_personalize.tracking.watchdog import get_watchdog
from django_moe_personalize.visitor import MINTED

_MAX_USER_AGENT: Final = 512

ROBOTS: Final = re.compile(
    r"(?<!cu)bots?\b|crawl|spider|slurp|facebookexternalhit|preview|lighthouse|pingdom|monitoring", re.IGNORECASE
)
"""Matches the user agents of robots that identify themselves, but not of phones made by Cubot."""


PREVIEW_MARKS: Final = frozenset({"is_preview", "toolbar"})
"""The attributes that Wagtail and django CMS set on a request."""


# Most requests have one of a few user agents. A hit takes 0.1 µs, a miss 8.7 µs.
@functools.lru_cache(maxsize=1024)
def is_robot(user_agent: str) -> bool:
    """Return whether the user agent is that of a robot."""
    return ROBOTS.search(user_agent) is not None


def is_counted(request: HttpRequest) -> bool:
    """Return whether impressions and clicks of this request count. They don't for HEAD, a prefetch or a robot."""
    # Building request.headers would take 830 bytecodes and 8.4 µs.
    meta = request.META
    purpose = meta.get("HTTP_SEC_PURPOSE") or meta.get("HTTP_PURPOSE") or meta.get("HTTP_X_MOZ") or ""
    if request.method == "HEAD" or "prefetch" in purpose.lower():
        return False
    # Look only at the start of the user agent: a very long fake user agent would take too much time and memory.
    return not is_robot(meta.get("HTTP_USER_AGENT", "")[:_MAX_USER_AGENT])


def is_preview(request: HttpRequest) -> bool:
    """Return whether an editor previews this page: Wagtail sets ``is_preview``, django CMS the modes of its toolbar."""
    toolbar = getattr(request, "toolbar", None)
    modes = (getattr(toolbar, f"{mode}_mode_active", False) for mode in ("edit", "preview", "structure"))
    return getattr(request, "is_preview", False) is True or any(mode is True for mode in modes)


def note_new_id(request: HttpRequest) -> None:
    """Tell the watchdog about the anonymous id that this response gives to the browser, unless a robot gets the id."""
    anonymous_id = request.__dict__.get(MINTED)
    if anonymous_id is not None and is_counted(request):
        get_watchdog().add_new_id(anonymous_id)


def build_event(
    action: Action,
    experience: Experience,
    customer_id: str | None,
    *,
    element: str = "",
    offering: Offering | None = None,
) -> Event | None:
    """Return the event of an impression or a click that happens now, or ``None`` if MoEngage can't count it.

    MoEngage needs a customer id and the experience context. ``element`` is the clicked element (``b_id``). An
    impression has the contexts of all offerings of its experience. A click has the context of the clicked offering
    (contract §5).
    """
    if not customer_id or not experience.experience_context:
        return None
    context, more = experience.experience_context, dict[str, Any]()
    if action is Action.SHOWN and experience.offerings and not get_settings().offering_events:
        more[OFFERINGS] = [dict(shown.context) for shown in experience.offerings]
    if offering is not None:
        element = element or offering.offering_id
        if get_settings().offering_events:
            action, context = Action.OFFERING_CLICKED, {}
        more.update(offering.context)
    if element:
        more["b_id"] = element
    return Event(action, customer_id, {**context, **more} if more else context, int(time.time()))


def build_offering_impressions(offerings: Iterable[Offering], customer_id: str | None) -> list[Event]:
    """Return the impressions of the offerings, or an empty list if OFFERING_EVENTS is off."""
    if not customer_id or not get_settings().offering_events:
        return []
    now = int(time.time())
    return [Event(Action.OFFERING_SHOWN, customer_id, dict(shown.context), now) for shown in offerings]


class PageTracker:
    """The impressions and clicks of one page view by the visitor ``customer_id``. With ``None`` nothing counts.

    All tokens and marks of a page view start with the stamp from ``get_stamp``.

    An experience has one impression per page view, even if the page shows the experience several times.

    With ``answers`` (by key) only these experiences count.
    """

    __slots__ = ("_answers", "_clicks", "_customer_id", "_impressions", "_rendered", "_shown", "get_stamp")

    def __init__(
        self,
        customer_id: str | None,
        get_stamp: Callable[[], str] = draw_stamp,
        answers: Mapping[str, Experience | None] | None = None,
    ) -> None:
        self._customer_id = customer_id
        self.get_stamp = get_stamp
        self._answers = answers
        self._impressions: dict[str, Event | None] = {}
        self._rendered: dict[str, Experience] = {}
        self._shown: dict[str, list[Event]] = {}
        self._clicks: list[Event] = []

    def get_impression(self, experience: Experience) -> Event | None:
        """Return the impression of ``experience`` in this page view. Every call returns the same event."""
        key = experience.experience_key
        if self._answers is not None and self._answers.get(key) is not experience:
            return None
        if key not in self._impressions:
            self._impressions[key] = build_event(Action.SHOWN, experience, self._customer_id)
        return self._impressions[key]

    def add_rendered(self, experience: Experience) -> None:
        """Record that a template shows ``experience``. Only in the mode "render" this counts the impression."""
        mode = get_settings().impressions
        if mode == "render":
            self.show(experience)
        elif mode == "visible":
            # The watchdog compares these experiences with the impressions that the browser reports.
            self._rendered[experience.experience_key] = experience

    def show(self, experience: Experience) -> None:
        """Count the impression of ``experience`` once in this page view."""
        key = experience.experience_key
        if key in self._shown:
            return
        self._rendered[key] = experience
        if (event := self.get_impression(experience)) is not None:
            self._shown[key] = [event, *build_offering_impressions(experience.offerings, self._customer_id)]

    def click(self, experience: Experience, *, element: str = "", offering: Offering | None = None) -> None:
        """Count this request as a click."""
        event = build_event(Action.CLICKED, experience, self._customer_id, element=element, offering=offering)
        self._clicks += [] if event is None else [event]

    def sign_mark(self, experience: Experience, elements: Sequence[str]) -> str | None:
        """Return the token of a mark around ``experience``, or ``None`` if MoEngage can't count its impression."""
        stamp, event = self.get_stamp(), self.get_impression(experience)
        return None if event is None else Token.build(event, elements=elements).sign(stamp)

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
        return Token.build(event, destination=destination, host=host).sign(stamp)

    def take(self, *, shown: bool) -> list[Event]:
        """Return the events to report, and clear the clicks. Impressions count only if the page was ``shown``."""
        events, self._clicks = self._clicks, []
        if shown:
            if self._customer_id:
                get_watchdog().add_rendered_page(self._rendered.values())
            events += [event for group in self._shown.values() for event in group]
        return events


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

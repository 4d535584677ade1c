"""Track: impressions and clicks become events, travel in signed tokens, and are handed to the delivery.

An event's UUID and time are fixed when it happens (contract §4). A token carries what the event of
a later click needs: signed, expiring, bound to its visitor, and with the same UUID however often
it comes back, so that a replay counts nothing.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from django.http import HttpRequest, StreamingHttpResponse

from django_moe_personalize.conf import get_settings
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.moengage.types import Action, Event, Experience, Offering
from django_moe_personalize.runtime import log_once
from django_moe_personalize.tracking.tokens import OFFERINGS, Token, derive_uuid
from django_moe_personalize.tracking.watchdog import get_watchdog

_ROBOT = re.compile(
    r"(?<!cu)bots?\b|crawl|spider|slurp|facebookexternalhit|preview|lighthouse|pingdom|monitoring", re.IGNORECASE
)
"""Self-declared robots (and no Cubot, which makes telephones); what hides is not caught by a header."""

_MAX_REMEMBERED_USER_AGENT = 512
_MAX_USER_AGENT = 4096


def is_counted(request: HttpRequest) -> bool:
    """Return whether a person asked for this page to see it now: no HEAD, no prefetch, no declared robot."""
    # Not request.headers, which is made of all headers, and costs more than everything here.
    meta = request.META
    purpose = meta.get("HTTP_SEC_PURPOSE") or meta.get("HTTP_PURPOSE") or meta.get("HTTP_X_MOZ") or ""
    if request.method == "HEAD" or "prefetch" in purpose.lower():
        return False
    user_agent: str = meta.get("HTTP_USER_AGENT", "")[:_MAX_USER_AGENT]
    # Longer ones are nobody's: they would only fill the memory.
    is_remembered = len(user_agent) <= _MAX_REMEMBERED_USER_AGENT
    return not (_is_robot if is_remembered else _is_robot.__wrapped__)(user_agent)


@functools.lru_cache(maxsize=1024)
def _is_robot(user_agent: str) -> bool:
    return _ROBOT.search(user_agent) is not None


def build_event(
    action: Action,
    experience: Experience,
    customer_id: str | None,
    *,
    element: str = "",
    offering: Offering | None = None,
) -> Event | None:
    """Return the event of an impression or a click that happens now.

    ``element`` is the clicked element (``b_id``). The offerings' contexts ride on the impression
    of their experience; a clicked offering's is merged into the click (contract §5). ``None``
    when nobody could count it: no customer id, or an experience without a context.
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
    """Return the offerings' own impressions, which a workspace has only where OFFERING_EVENTS is on."""
    if not customer_id or not get_settings().offering_events:
        return []
    now = int(time.time())
    return [Event(Action.OFFERING_SHOWN, customer_id, dict(shown.context), now) for shown in offerings]


class PageTracker:
    """What one page view shows and hands out, for the visitor ``customer_id``; ``None``: nobody to count.

    An experience is shown once a page view, however often it is rendered, under one UUID.
    """

    __slots__ = ("_clicks", "_customer_id", "_impressions", "_rendered", "_shown")

    def __init__(self, customer_id: str | None) -> None:
        self._customer_id = customer_id
        self._impressions: dict[str, Event | None] = {}
        self._rendered: dict[str, Experience] = {}
        self._shown: dict[str, list[Event]] = {}
        self._clicks: list[Event] = []

    def get_impression(self, experience: Experience) -> Event | None:
        """Return the one impression of ``experience`` in this page view, fixed when first asked for."""
        key = experience.experience_key
        if key not in self._impressions:
            self._impressions[key] = build_event(Action.SHOWN, experience, self._customer_id)
        return self._impressions[key]

    def notice(self, experience: Experience) -> None:
        """Remember that the page shows ``experience``, whoever is to count it: if nobody does, the alarm says so."""
        self._rendered[experience.experience_key] = experience

    def show(self, experience: Experience) -> None:
        """Count the impression of ``experience``, once, if the page itself comes to count."""
        key = experience.experience_key
        if key in self._shown:
            return
        self.notice(experience)
        if (event := self.get_impression(experience)) is not None:
            self._shown[key] = [event, *build_offering_impressions(experience.offerings, self._customer_id)]

    def click(self, experience: Experience, *, element: str = "", offering: Offering | None = None) -> None:
        """Count a click that the request itself stands for."""
        event = build_event(Action.CLICKED, experience, self._customer_id, element=element, offering=offering)
        self._clicks += [] if event is None else [event]

    def sign_mark(self, experience: Experience, elements: Sequence[str]) -> str | None:
        """Return the token of a mark around ``experience``; ``None`` when there is nothing to count."""
        event = self.get_impression(experience)
        return None if event is None else Token.build(event, elements=elements).sign()

    def sign_click(
        self,
        experience: Experience,
        destination: str,
        *,
        element: str = "",
        offering: Offering | None = None,
        host: str = "",
    ) -> str | None:
        """Return the token of a link to ``destination``; ``None`` when there is nothing to count.

        An element is clicked once a page view, whether its link or its mark tells so, or both.
        """
        event = build_event(Action.CLICKED, experience, self._customer_id, element=element, offering=offering)
        impression = self.get_impression(experience)
        if event is None or impression is None:
            return None
        if name := event.attributes.get("b_id"):
            event = replace(event, event_uuid=derive_uuid(impression.event_uuid, name))
        return Token.build(event, destination=destination, host=host).sign()

    def take(self, *, shown: bool) -> list[Event]:
        """Return the events to record, once: the clicks, and what was shown if the page was."""
        events, self._clicks = self._clicks, []
        if shown:
            if self._customer_id:
                get_watchdog().add_page(self._rendered.values())
            events += [event for group in self._shown.values() for event in group]
        return events


def record(events: Sequence[Event]) -> None:
    """Hand ``events`` to the delivery; never raises."""
    try:
        if events:
            get_delivery().record(events)
            get_watchdog().add_events(events)
    except Exception as error:
        _report_loss(error)


async def arecord(events: Sequence[Event]) -> None:
    """See record()."""
    try:
        if events:
            await get_delivery().arecord(events)
            get_watchdog().add_events(events)
    except Exception as error:
        _report_loss(error)


def _report_loss(error: Exception) -> None:
    """Say once that there is nobody to hand events to: the settings changed under a running site."""
    log_once(("delivery", type(error)), "Events are lost: the delivery failed (%s).", type(error).__name__)


def record_when_streamed(response: StreamingHttpResponse, collect: Callable[[], Sequence[Event]]) -> None:
    """Record what ``collect()`` gives once the whole of ``response`` was sent."""

    def stream(content: Any) -> Iterator[bytes]:
        yield from content
        record(collect())

    async def astream(content: Any) -> AsyncIterator[bytes]:
        async for part in content:
            yield part
        await arecord(collect())

    response.streaming_content = (astream if response.is_async else stream)(response.streaming_content)

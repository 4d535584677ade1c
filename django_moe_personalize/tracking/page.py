"""Collect the impressions and clicks of one page, build their events (contract §4), and pass them to the delivery."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, overload

from django.http import HttpRequest, StreamingHttpResponse

from django_moe_personalize.conf import get_settings
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.moengage.json_values import encode
from django_moe_personalize.moengage.types import Action, Event, Experience, Offering, draw_uuid
from django_moe_personalize.runtime import Runtime, log_once
from django_moe_personalize.signals import EXPOSURE_SIGNALS
from django_moe_personalize.tracking.exposures import announce
from django_moe_personalize.tracking.persons import is_counted
from django_moe_personalize.tracking.tokens import (
    MAX_LINK_LENGTH,
    MAX_MARK_LENGTH,
    OFFERINGS,
    Token,
    derive_uuid,
    draw_stamp,
)
from django_moe_personalize.tracking.watchdog import get_watchdog
from django_moe_personalize.visitor import MINTED

MAX_OFFERING_IDS: Final = 1000
"""Characters of the list of shown offerings in an impression. The ids of more offerings are left out."""

_FEWER_OFFERINGS = (
    "The experience %r shows %d offerings, and an impression has room for the ids of %d. The impressions count, but "
    "don't name the other offerings. Show fewer offerings, or give them shorter ids."
)
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


def build_event(
    action: Action,
    experience: Experience,
    customer_id: str | None,
    *,
    element: str = "",
    offering: Offering | None = None,
    at: int | None = None,
    event_uuid: str = "",
) -> Event | None:
    """Return the event of an impression or a click at the Unix time ``at``, or ``None`` if MoEngage can't count it.

    The default time is now. MoEngage needs a customer id and the experience context. ``element`` is the clicked element
    (``b_id``). An impression has the ids of the offerings of its experience. A click has the context of the clicked
    offering (contract §5).
    """
    if not customer_id or not experience.experience_context:
        return None
    context: Mapping[str, Any] = experience.experience_context
    more: dict[str, Any] = {}
    if action is Action.SHOWN and experience.offerings and not get_settings().offering_events:
        more |= {OFFERINGS: ids} if (ids := _list_ids(experience)) else {}
    if offering is not None:
        element = element or offering.offering_id
        if get_settings().offering_events:
            action, context = Action.OFFERING_CLICKED, {}
        more |= _to_strings(offering.context)
    if element:
        more["b_id"] = element
    event_time = int(time.time()) if at is None else at
    attributes = {**context, **more} if more else context
    event = Event(action, customer_id, attributes, event_time, event_uuid or draw_uuid())
    event.experience_key = experience.experience_key
    return event


def _list_ids(experience: Experience) -> str:
    """Return the ids of the offerings, with commas between them. A comma in an id becomes ``%2C``."""
    key, offerings = experience.experience_key, experience.offerings
    ids = [offering.offering_id.replace("%", "%25").replace(",", "%2C") for offering in offerings]
    text = ",".join(filter(None, ids))
    if len(text) > MAX_OFFERING_IDS:
        text = text[: MAX_OFFERING_IDS + 1].rpartition(",")[0]
        log_once(("offerings", key), _FEWER_OFFERINGS, key, len(offerings), text.count(",") + bool(text))
    return text


def build_offering_impressions(offerings: Iterable[Offering], customer_id: str | None) -> list[Event]:
    """Return the impressions of the offerings, or an empty list if OFFERING_EVENTS is off."""
    if not customer_id or not get_settings().offering_events:
        return []
    now = int(time.time())
    return [Event(Action.OFFERING_SHOWN, customer_id, _to_strings(shown.context), now) for shown in offerings]


def _to_strings(context: Mapping[str, Any]) -> dict[str, str]:
    """Return the context of an offering as attributes of an event. Values other than strings become JSON."""
    return {name: value if isinstance(value, str) else encode(value) for name, value in context.items()}


class Impressions(Sequence[Event]):
    """The impressions of one page view. Their events are built on the first use, which may be in another thread."""

    _built: list[Event] | None = None

    def __init__(self, customer_id: str, shown: Mapping[str, Experience], event_time: int) -> None:
        self.shown = shown
        self._customer_id = customer_id
        self._event_time = event_time

    @property
    def _events(self) -> list[Event]:
        if self._built is None:
            # To draw a UUID for each event would take 40 bytecodes more. The other 106 bits are random for each page.
            customer_id, at, stem = self._customer_id, self._event_time, draw_uuid()[:-4]
            self._built = [
                event
                for place, each in enumerate(self.shown.values())
                if (event := build_event(Action.SHOWN, each, customer_id, at=at, event_uuid=f"{stem}{place:04x}"))
            ]
        return self._built

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    @overload
    def __getitem__(self, place: int) -> Event: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Event]: ...
    def __getitem__(self, place: Any) -> Any:
        return self._events[place]

    def __len__(self) -> int:
        return len(self._events)

    def __bool__(self) -> bool:
        # Without this method, a test for events would build them in the page.
        return True


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

    @property
    def customer_id(self) -> str | None:
        """The visitor's id, or ``None`` if nothing counts."""
        return self._customer_id

    def show(self, experience: Experience) -> None:
        """Count the impression of ``experience`` once in this page view."""
        self._shown.setdefault(experience.experience_key, experience)

    def list_shown(self) -> dict[str, Experience]:
        """Return the experiences that the page has shown so far, by key."""
        return {**self.rendered, **self._shown}

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


def record(
    events: Sequence[Event],
    runtime: Runtime | None = None,
    request: HttpRequest | None = None,
    stream: StreamingHttpResponse | None = None,
) -> None:
    """Pass ``events`` to the delivery of ``runtime``, by default of the current runtime. Never raises.

    With a ``request``, the signals of the events follow after its response, or after its ``stream``. ``events`` aren't
    empty.
    """
    try:
        if EXPOSURE_SIGNALS:
            announce(events, request, runtime, stream)
        get_delivery(runtime).record(events)
        get_watchdog(runtime).add_recorded_events(events)
    except Exception as error:
        report_loss(error)


async def arecord(
    events: Sequence[Event],
    runtime: Runtime | None = None,
    request: HttpRequest | None = None,
    stream: StreamingHttpResponse | None = None,
) -> None:
    """See record()."""
    try:
        if EXPOSURE_SIGNALS:
            announce(events, request, runtime, stream)
        await get_delivery(runtime).arecord(events)
        get_watchdog(runtime).add_recorded_events(events)
    except Exception as error:
        report_loss(error)


def report_loss(error: Exception) -> None:
    """Log once that the delivery failed."""
    message = "The delivery failed (%s), so events are lost. Check DELIVERY: run `manage.py check`."
    log_once(("delivery", type(error)), message, type(error).__name__)


def record_when_streamed(
    request: HttpRequest,
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
        if events := collect():
            record(events, runtime, request, response)

    async def astream(content: Any) -> AsyncIterator[bytes]:
        await load()
        async for part in content:
            yield part
        if events := collect():
            await arecord(events, runtime, request, response)

    response.streaming_content = (astream if response.is_async else stream)(response.streaming_content)

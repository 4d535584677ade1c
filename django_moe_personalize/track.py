"""Track: impressions and clicks become events, travel in signed tokens, and are handed to the delivery.

An event's UUID and time are fixed when it happens (contract §4). A token carries what the event of
a later click needs: signed, expiring, bound to its visitor, and with the same UUID however often
it comes back, so that a replay counts nothing.
"""

from __future__ import annotations

import functools
import hashlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from django.conf import settings as django_settings
from django.core import signing
from django.http import HttpRequest, StreamingHttpResponse
from django.utils.crypto import constant_time_compare, salted_hmac

from django_moe_personalize.alarm import alarm
from django_moe_personalize.callables import log_once
from django_moe_personalize.conf import get_settings
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.moengage.types import Action, Event, Experience, Offering

TOKEN_MAX_AGE = 24 * 60 * 60
"""Seconds for which a click or a beacon of a page still counts."""

MAX_TOKEN_LENGTH = 3000
"""Characters; gunicorn refuses a request line over 4,094, and other servers have their own limits."""

OFFERINGS = "offerings"
"""The attribute of an impression under which the contexts of the offerings shown with it ride."""

_SALT = "moe_personalize.track.1"

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
                alarm.add_page(self._rendered.values())
            events += [event for group in self._shown.values() for event in group]
        return events


def record(events: Sequence[Event]) -> None:
    """Hand ``events`` to the delivery; never raises."""
    try:
        if events:
            get_delivery().record(events)
            alarm.add_events(events)
    except Exception as error:
        _report_loss(error)


async def arecord(events: Sequence[Event]) -> None:
    """See record()."""
    try:
        if events:
            await get_delivery().arecord(events)
            alarm.add_events(events)
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


class Token(NamedTuple):
    """What a page hands out to be told about later: one event, bound to its visitor.

    A link's token stands for its click and has a ``destination`` (on ``host``, where the template's
    author named another site). A mark's stands for the impression, and for the clicks on its
    ``elements``. An ``expired`` token counts nothing.
    """

    event_uuid: str
    action: str
    attributes: Mapping[str, Any]
    binding: str
    destination: str = ""
    host: str = ""
    elements: Sequence[str] = ()
    expired: bool = False

    def __repr__(self) -> str:
        return f"<Token {self.action} {self.event_uuid}>"

    @classmethod
    def build(cls, event: Event, *, destination: str = "", host: str = "", elements: Sequence[str] = ()) -> Token:
        """Return the token that stands for ``event``; it holds no customer id."""
        binding = bind_visitor(event.customer_id)
        return cls(event.event_uuid, event.action.value, event.attributes, binding, destination, host, elements)

    def sign(self) -> str | None:
        """Return the token as URL-safe text, compressed when that helps; ``None`` when it is too long."""
        text = signing.dumps(self[:-1], salt=_SALT, compress=True)
        if len(text) > MAX_TOKEN_LENGTH:
            log_once("token", "An experience's context is too long for a token; its clicks are not tracked.")
            return None
        return text

    def belongs_to(self, customer_id: str) -> bool:
        """Return whether the visitor of the page is the one who sends the token back."""
        keys = (django_settings.SECRET_KEY, *django_settings.SECRET_KEY_FALLBACKS)
        return any(constant_time_compare(self.binding, bind_visitor(customer_id, secret)) for secret in keys)

    def build_event(self, customer_id: str) -> Event:
        """Return the event this token stands for: with its own UUID, happening now."""
        return Event(Action(self.action), customer_id, self.attributes, int(time.time()), self.event_uuid)

    def build_click(self, customer_id: str, element: str) -> Event:
        """Return the click on ``element`` of a mark: one in a page view, however often it is reported."""
        attributes = {name: value for name, value in self.attributes.items() if name != OFFERINGS}
        if element:
            attributes["b_id"] = element
        event_uuid = derive_uuid(self.event_uuid, element)
        return Event(Action.CLICKED, customer_id, attributes, int(time.time()), event_uuid)


def read_token(text: str) -> Token:
    """Return the token that ``sign`` made. Raises ``signing.BadSignature`` for anything else."""
    if not text.isascii():
        raise signing.BadSignature("not a token")
    try:
        return Token(*signing.loads(text, salt=_SALT, max_age=TOKEN_MAX_AGE))
    except signing.SignatureExpired:
        return Token(*signing.loads(text, salt=_SALT))._replace(expired=True)


def bind_visitor(customer_id: str, secret: str | bytes | None = None) -> str:
    """Return what tells a visitor from another without telling who it is."""
    return salted_hmac(f"{_SALT}.visitor", customer_id, secret=secret, algorithm="sha256").hexdigest()[:32]


def derive_uuid(event_uuid: str, element: str) -> str:
    """Return the UUID v4 of a click on ``element`` in the page view that ``event_uuid`` stands for."""
    text = f"{event_uuid}/{element}".encode("utf-8", "surrogatepass")
    return str(uuid.UUID(bytes=hashlib.blake2b(text, digest_size=16).digest(), version=4))

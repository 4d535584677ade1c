"""Build the events of impressions and clicks (contract §4)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, overload

from django_moe_personalize.conf import get_settings
from django_moe_personalize.moengage.json_values import encode
from django_moe_personalize.moengage.types import Action, Event, Experience, Offering, draw_uuid
from django_moe_personalize.runtime import log_once
from django_moe_personalize.tracking.tokens import OFFERINGS

MAX_OFFERING_IDS: Final = 1000
"""Characters of the list of shown offerings in an impression. The ids of more offerings are left out."""

_FEWER_OFFERINGS = (
    "The experience %r shows %d offerings, and an impression has room for the ids of %d. The impressions count, but "
    "don't name the other offerings. Show fewer offerings, or give them shorter ids."
)


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
    return Event(action, customer_id, {**context, **more} if more else context, event_time, event_uuid or draw_uuid())


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

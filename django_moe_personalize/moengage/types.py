"""The values in requests and responses: experiences, offerings, metadata and events (contract §2–§6)."""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from django_moe_personalize.moengage.json_values import (
    Budget,
    as_list,
    as_object,
    as_text,
    encode,
    freeze,
    parse_or,
    thaw,
    write_text,
)

MAX_KEYS = 25
"""The most experience keys in one fetch (contract §2)."""

OFFERING_VALUES = 3
"""How many values more an offering takes from the budget of a response, because to build an offering takes 10 µs."""

MAX_ELEMENTS = 100
"""The most elements in one events call (contract §4). An element has all events of one customer."""


class DataSource(enum.Enum):
    """Where an experience came from: from the cache, or over the network."""

    CACHE = "cache"
    NETWORK = "network"


class ExperienceStatus(enum.Enum):
    """The status of an experience in MoEngage's dashboard. The API writes it as ``Active`` (contract §3)."""

    ACTIVE = "active"
    PAUSED = "paused"
    SCHEDULED = "scheduled"
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> ExperienceStatus:
        return next((m for m in cls if isinstance(value, str) and m.value == value.lower()), cls.UNKNOWN)


class FailureReason(enum.Enum):
    """Why a visitor doesn't get an experience (contract §6)."""

    USER_IN_CAMPAIGN_CONTROL_GROUP = "USER_IN_CAMPAIGN_CONTROL_GROUP"
    USER_IN_GLOBAL_CONTROL_GROUP = "USER_IN_GLOBAL_CONTROL_GROUP"
    USER_NOT_IN_SEGMENT = "USER_NOT_IN_SEGMENT"
    INVALID_EXPERIENCE_KEY = "INVALID_EXPERIENCE_KEY"
    MAX_LIMIT_BREACHED = "MAX_LIMIT_BREACHED"
    EXPERIENCE_NOT_ACTIVE = "EXPERIENCE_NOT_ACTIVE"
    EXPERIENCE_EXPIRED = "EXPERIENCE_EXPIRED"
    PERSONALIZATION_FAILED = "PERSONALIZATION_FAILED"
    UNKNOWN = "UNKNOWN"

    @classmethod
    def _missing_(cls, value: object) -> FailureReason:
        return cls.UNKNOWN


class Action(enum.Enum):
    """The visitor's action that an event reports (contract §4).

    ``TRACKED`` stands for all events of the site's own, which have names and go to the Data API (contract §8). A
    workspace can report the actions of offerings only after MoEngage has enabled these actions (contract §5).
    """

    SHOWN = "MOE_PERSONALIZATION_MESSAGE_SHOWN"
    CLICKED = "MOE_PERSONALIZATION_MESSAGE_CLICKED"
    OFFERING_SHOWN = "MOE_OFFERING_SHOWN"
    OFFERING_CLICKED = "MOE_OFFERING_CLICKED"
    TRACKED = "TRACKED"


CONVERSION = "event"
"""The type of a conversion's element. The element of an impression or a click has no type."""

UUID_ATTRIBUTE = "event_uuid"
"""The attribute of a conversion with its UUID: the Data API has no field for it (contract §8)."""


@dataclass(frozen=True, slots=True)
class Offering(Mapping[str, Any]):
    """One offering: a product, coupon or tier that a decision policy of MoEngage picks for a visitor (contract §5).

    An offering is a mapping of ``content``, which a marketer wrote: ``offering["title"]`` in Python and
    ``offer.title`` in templates read ``content``. ``context`` is the ``offering_context``. ``raw`` is the complete
    entry from MoEngage.

    In Python, ``offering.context`` is the attribute, and ``offering["context"]`` is the content with this name. In
    templates, the content hides an attribute or a method with the same name. An offering is always true. An offering
    isn't hashable, because its values are dicts.
    """

    offering_id: str
    content: Mapping[str, Any]
    context: Mapping[str, Any] = field(default_factory=dict, repr=False)
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, name: str) -> Any:
        return self.content[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)

    def __bool__(self) -> bool:
        return True

    def to_dict(self) -> dict[str, Any]:
        """Return the offering as plain data for ``json.dumps()``, without ``raw``."""
        return {"offering_id": self.offering_id, "content": thaw(self.content), "context": thaw(self.context)}


@dataclass(frozen=True, slots=True)
class Experience(Mapping[str, Any]):
    """One experience that MoEngage decided for one visitor (contract §2).

    An experience is a mapping of ``payload``: ``experience["Title"]`` in Python and ``hero.Title`` in templates read
    ``payload``. ``payload`` maps each variable to its value, with the type from ``data_type``. Events need the
    complete ``experience_context``, so don't change it.

    One variable is different: ``experience["offerings"]`` is the tuple of all offerings, so that
    ``{% for offer in hero.offerings %}`` works in templates. ``experience.payload["offerings"]`` is the value from
    MoEngage.

    In Python, ``experience.source`` is the attribute, and ``experience["source"]`` is the variable with this name. In
    templates, a variable hides an attribute or a method with the same name. An experience is always true, so that
    ``if hero:`` tests whether the experience exists. An experience isn't hashable, because its values are dicts.
    """

    experience_key: str
    payload: Mapping[str, Any]
    experience_context: Mapping[str, Any] = field(default_factory=dict, repr=False)
    source: DataSource = DataSource.NETWORK
    offerings: tuple[Offering, ...] = ()

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, name: str) -> Any:
        value = self.payload[name]
        return self.offerings if name == "offerings" else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.payload)

    def __len__(self) -> int:
        return len(self.payload)

    def __bool__(self) -> bool:
        return True

    def to_dict(self) -> dict[str, Any]:
        """Return the experience as plain data for ``json.dumps()``.

        The offerings are under ``offerings``, so ``payload`` leaves out the variables that contain offerings.
        """
        return {
            "experience_key": self.experience_key,
            "payload": {name: thaw(value) for name, value in self.payload.items() if not self._has_offering_in(value)},
            "experience_context": thaw(self.experience_context),
            "source": self.source.value,
            "offerings": [offering.to_dict() for offering in self.offerings],
        }

    def _has_offering_in(self, value: object) -> bool:
        return any(offering in self.offerings for offering in read_offerings(value, Budget()))


def find_offerings(payload: Mapping[str, Any], budget: Budget | None = None) -> Iterator[Offering]:
    """Yield the offerings in all variables of a payload (contract §5).

    Raises OversizeError if the JSON in texts has more values than ``budget``, by default a new one.
    """
    budget = budget or Budget()
    for value in payload.values():
        yield from read_offerings(value, budget)


def read_offerings(value: object, budget: Budget) -> Iterator[Offering]:
    """Yield the offerings in one variable: in an array, in ``{"offerings": […]}``, or in a string with such JSON."""
    entries = _parse_container(value, budget)
    if isinstance(entries, dict):
        entries = entries.get("offerings")
    for entry in map(as_object, as_list(entries)):
        if context := as_object(entry.get("offering_context")):
            content = _parse_container(entry.get("offering_content"), budget)
            if isinstance(content, dict) and content.get("type") == "json" and "payload" in content:
                content = _parse_container(content["payload"], budget)
            budget.spend_more(OFFERING_VALUES)
            offering_id = as_text(entry.get("dp_offering_id")) or as_text(context.get("moe_offering_id"))
            yield Offering(offering_id, freeze(as_object(content)), freeze(context), freeze(entry))


def _parse_container(value: object, budget: Budget) -> object:
    """Return the parsed value if ``value`` is a string with a JSON object or array, otherwise ``value``."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        return parse_or(None, value, budget)
    return value


@dataclass(frozen=True, slots=True)
class ExperienceFailure:
    """The experience keys that a visitor doesn't get for one reason."""

    reason: FailureReason
    experience_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnreadableExperience(ExperienceFailure):
    """An experience that MoEngage sent, but that the package can't read. ``problem`` says why, without its content."""

    problem: str = ""


@dataclass(frozen=True, slots=True)
class ExperiencesResult:
    """The result of a fetch: the experiences by key, and the reasons why other keys have no experience."""

    experiences: Mapping[str, Experience] = field(default_factory=dict)
    failures: tuple[ExperienceFailure, ...] = ()


@dataclass(frozen=True, slots=True)
class ExperienceMeta:
    """Key, name and status of one experience in the dashboard (contract §3)."""

    experience_key: str
    experience_name: str
    status: ExperienceStatus


@dataclass(frozen=True, slots=True)
class ExperiencesMetadata:
    """The list of experiences in a workspace."""

    source: DataSource
    experiences: tuple[ExperienceMeta, ...]


def draw_uuid() -> str:
    """Return a new random UUID v4 in the usual form (RFC 9562)."""
    # This takes 48 bytecodes and 1.0 µs. str(uuid.uuid4()) takes 145 and 2.8 µs. A page draws several UUIDs.
    data = os.urandom(16)
    text = data.hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{'89ab'[data[8] >> 6]}{text[17:20]}-{text[20:]}"


# Not frozen: a frozen dataclass takes 28 bytecodes and 0.9 µs more for each event, and a page makes several events.
@dataclass(slots=True, unsafe_hash=True)
class Event:
    """One impression or click (contract §4).

    ``event_time`` is Unix time in whole seconds. A retry sends the same ``event_uuid``. ``attributes`` is the
    experience context. A click adds ``b_id``. The repr shows no personal data. Don't change an event, because the
    event remembers its JSON. ``dataclasses.replace()`` makes a changed copy.
    """

    is_conversion: ClassVar[bool] = False

    action: Action
    customer_id: str = field(repr=False)
    attributes: Mapping[str, Any] = field(repr=False)
    event_time: int
    event_uuid: str = field(default_factory=draw_uuid)
    platform: str = "web"
    # For the site's own signals. MoEngage doesn't get it.
    experience_key: str = field(default="", repr=False, compare=False)
    _element: str = field(default="", init=False, repr=False, compare=False)

    @property
    def element(self) -> str:
        """The event as an element of the events body: compact ASCII JSON with one action (contract §4).

        Raises TypeError or ValueError for a value that JSON can't express.
        """
        return self._element or self._write()

    def _write(self) -> str:
        attributes = getattr(self.attributes, "_json", "") or encode(self.attributes)
        # The f-string takes 65 bytecodes and 0.5 µs. write_json() takes 115 and 4.5 µs.
        self._element = (
            f'{{"customer_id":{write_text(self.customer_id)},"actions":[{{"action":"{self.action._value_}",'
            f'"moe_event_uuid":{write_text(self.event_uuid)},"event_time":{int.__repr__(self.event_time)},'
            f'"platform":{write_text(self.platform)},"attributes":{attributes}}}]}}'
        )
        return self._element

    @property
    def size(self) -> int:
        """About how many bytes the event takes in memory and in a request."""
        try:
            return len(self._element or self._write())
        except (TypeError, ValueError):
            # JSON can't express this event. The event takes memory until a delivery tries to send it.
            return 100 + len(self.customer_id) + len(repr(self.attributes))

    def move(self, event_time: int) -> Event:
        """Return this event, with the same UUID, at another time."""
        return replace(self, event_time=event_time)

    @classmethod
    def read(cls, element: str) -> Event:
        """Parse the JSON text of an event. Raises LookupError, TypeError or ValueError if the text isn't an event."""
        content = json.loads(element)
        (action,) = content["actions"]
        attributes, platform = action["attributes"], action["platform"]
        event: Event
        if content.get("type") == CONVERSION:
            uuid, at = attributes.pop(UUID_ATTRIBUTE), int(action["user_time"]) // 1000
            kind, name = Action.TRACKED, action["action"]
            event = Conversion(kind, content["customer_id"], attributes, at, uuid, platform, name=name)
        else:
            at, uuid = action["event_time"], action["moe_event_uuid"]
            event = cls(Action(action["action"]), content["customer_id"], attributes, at, uuid, platform)
        event._element = element
        return event


@dataclass(slots=True, unsafe_hash=True)
class Conversion(Event):
    """One event of the site's own, such as an order (contract §8). ``name`` is its name in MoEngage."""

    is_conversion: ClassVar[bool] = True

    name: str = ""

    def _write(self) -> str:
        attributes = encode({**self.attributes, UUID_ATTRIBUTE: self.event_uuid})
        # Milliseconds in texts, as in MoEngage's example.
        at = f'"{self.event_time}000"'
        self._element = (
            f'{{"type":"{CONVERSION}","customer_id":{write_text(self.customer_id)},"actions":[{{'
            f'"action":{write_text(self.name)},"attributes":{attributes},"platform":{write_text(self.platform)},'
            f'"current_time":{at},"user_time":{at}}}]}}'
        )
        return self._element

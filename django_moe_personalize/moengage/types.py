"""What travels on the wire, as frozen values (contract §2–§6).

Named tuples where nothing speaks against it: a frozen dataclass takes five times as long to import.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from django_moe_personalize.moengage.frozen import encode

MAX_KEYS = 25
"""Experience keys in one fetch (contract §2)."""

MAX_ELEMENTS = 100
"""Elements, that is users, in one events call (contract §4)."""


class DataSource(enum.Enum):
    """Where an answer came from."""

    CACHE = "cache"
    NETWORK = "network"


class ExperienceStatus(enum.Enum):
    """The state of an experience in the dashboard; the wire writes it capitalised (contract §3)."""

    ACTIVE = "active"
    PAUSED = "paused"
    SCHEDULED = "scheduled"
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> ExperienceStatus:
        return next((m for m in cls if isinstance(value, str) and m.value == value.lower()), cls.UNKNOWN)


class FailureReason(enum.Enum):
    """Why an experience is absent (contract §6)."""

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
    """What an event says happened (contract §4).

    The two of offerings are taken only in a workspace for which the vendor has turned them on
    (contract §5).
    """

    SHOWN = "MOE_PERSONALIZATION_MESSAGE_SHOWN"
    CLICKED = "MOE_PERSONALIZATION_MESSAGE_CLICKED"
    OFFERING_SHOWN = "MOE_OFFERING_SHOWN"
    OFFERING_CLICKED = "MOE_OFFERING_CLICKED"


@dataclass(frozen=True, slots=True)
class Offering:
    """A product, coupon or tier picked by a decision policy (contract §5).

    ``content`` is the marketer's payload, ``context`` the ``offering_context``, ``raw`` the whole
    entry as it came. ``offering["title"]`` and, in templates, ``offer.title`` read ``content``.
    """

    offering_id: str
    content: Mapping[str, Any]
    context: Mapping[str, Any] = field(repr=False)
    raw: Mapping[str, Any] = field(repr=False)

    def __getitem__(self, name: str) -> Any:
        return self.content[name]

    def __contains__(self, name: object) -> bool:
        return name in self.content

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)


@dataclass(frozen=True, slots=True)
class Experience:
    """One experience as decided for one visitor (contract §2).

    ``payload`` maps a variable to its unwrapped value, typed by ``data_type``;
    ``experience_context`` is opaque, whole, and what events are made of.
    ``experience["Title"]`` and, in templates, ``hero.Title`` read ``payload``;
    ``hero.offerings`` is always the tuple of offerings, also where the marketer gave a
    variable that name (``payload["offerings"]`` has it as it came).
    """

    experience_key: str
    payload: Mapping[str, Any]
    experience_context: Mapping[str, Any] = field(default_factory=dict, repr=False)
    source: DataSource = DataSource.NETWORK
    offerings: tuple[Offering, ...] = ()

    def __getitem__(self, name: str) -> Any:
        if name == "offerings":
            return self.offerings
        return self.payload[name]

    def __contains__(self, name: object) -> bool:
        return name == "offerings" or name in self.payload

    def __iter__(self) -> Iterator[str]:
        return iter(self.payload)


class ExperienceFailure(NamedTuple):
    """Keys that are absent for one reason."""

    reason: FailureReason
    experience_keys: tuple[str, ...]


class ExperiencesResult(NamedTuple):
    """What a fetch gave: ``experiences`` by key, and why the others are absent."""

    experiences: Mapping[str, Experience] = MappingProxyType({})
    failures: tuple[ExperienceFailure, ...] = ()


class ExperienceMeta(NamedTuple):
    """One row of the metadata (contract §3)."""

    experience_key: str
    experience_name: str
    status: ExperienceStatus


class ExperiencesMetadata(NamedTuple):
    """Which experiences the workspace has."""

    source: DataSource
    experiences: tuple[ExperienceMeta, ...]


def draw_uuid() -> str:
    """Return a new random UUID v4 (RFC 9562), in the usual form."""
    # As uuid.uuid4() does it, without the object, which takes twice as long as the rest: a page makes several.
    data = os.urandom(16)
    text = data.hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{'89ab'[data[8] >> 6]}{text[17:20]}-{text[20:]}"


_write_text = json.encoder.encode_basestring_ascii
_write_integer = int.__repr__


class _Remembering:
    # No field, and so no part of what an event is: not compared, not shown, not copied into a message.
    _element = ""


# Not frozen, though nobody changes one: a page makes several, and freezing takes three times as long.
@dataclass(slots=True)
class Event(_Remembering):
    """One impression or click, fixed at the moment it happened (contract §4).

    Not to be changed once it is made: its JSON is remembered; ``dataclasses.replace()`` makes another.
    ``event_time`` is Unix time in whole seconds; ``event_uuid`` stays the same on a retry;
    ``attributes`` is the experience context, plus ``b_id`` in a click. Personal fields are not in
    the repr.
    """

    action: Action
    customer_id: str = field(repr=False)
    attributes: Mapping[str, Any] = field(repr=False)
    event_time: int
    event_uuid: str = field(default_factory=draw_uuid)
    platform: str = "web"

    @property
    def element(self) -> str:
        """The event as an element of an events body (contract §4): compact JSON in ASCII, written when first asked for.

        Raises TypeError or ValueError for what JSON does not have.
        """
        if not self._element:
            # By hand, because most of it is the context, whose text is known already.
            self._element = (
                f'{{"customer_id":{_write_text(self.customer_id)},"actions":[{{"action":"{self.action._value_}",'
                f'"moe_event_uuid":{_write_text(self.event_uuid)},"event_time":{_write_integer(self.event_time)},'
                f'"platform":{_write_text(self.platform)},"attributes":{encode(self.attributes)}}}]}}'
            )
        return self._element

    @classmethod
    def read(cls, element: str) -> Event:
        """Return the event that was written as ``element``; raises LookupError, TypeError or ValueError if none was."""
        content = json.loads(element)
        (action,) = content["actions"]
        event = cls(
            Action(action["action"]),
            content["customer_id"],
            action["attributes"],
            action["event_time"],
            action["moe_event_uuid"],
            action["platform"],
        )
        event._element = element
        return event

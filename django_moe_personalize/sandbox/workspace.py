"""Read the workspace from a JSON file. The file has the data that you would edit in MoEngage's dashboard."""

from __future__ import annotations

import dataclasses
import enum
import json
import logging
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from django_moe_personalize.sandbox.audiences import EVERYONE, Audience, Scalar
from django_moe_personalize.sandbox.payloads import Payload, read_offerings, read_payload
from django_moe_personalize.sandbox.reading import Problems, Section, Value, nearest, refuse_constant, shown
from django_moe_personalize.sandbox.reading import WorkspaceError as WorkspaceError
from django_moe_personalize.sandbox.rule_reader import read_rule

SHIPPED = Path(__file__).with_name("workspace.json")
"""The file for sites that name no other workspace file. It describes an example shop."""

STATUSES = ("Active", "Paused", "Scheduled")

logger = logging.getLogger("django_moe_personalize")


class State(enum.Enum):
    """The state of an experience at a moment. It follows from the experience's status and schedule."""

    ACTIVE = "Active"
    PAUSED = "Paused"
    SCHEDULED = "Scheduled"
    EXPIRED = "Expired"


@dataclass(frozen=True, slots=True)
class Variation:
    """One variation. ``payloads`` has the payload for each locale, and the default payload under ``""``."""

    variation_id: str
    name: str
    weight: float
    payloads: Mapping[str, Payload]


@dataclass(frozen=True, slots=True)
class Content:
    """The content for one audience. The weights decide which share of the audience gets each variation."""

    audience: Audience
    variations: tuple[Variation, ...]


@dataclass(frozen=True, slots=True)
class Definition:
    """One experience of the file. A visitor gets the first entry of ``contents`` whose audience the visitor is in."""

    key: str
    name: str
    status: str
    contents: tuple[Content, ...]
    control_group: float = 0.0
    start: datetime | None = None
    end: datetime | None = None

    def state(self, now: float) -> State:
        """Return the state at Unix time ``now``. A paused experience stays paused. Then the schedule decides."""
        if self.status == "Paused":
            return State.PAUSED
        if self.end is not None and now >= self.end.timestamp():
            return State.EXPIRED
        if self.start is None:
            return State(self.status)
        return State.ACTIVE if now >= self.start.timestamp() else State.SCHEDULED


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace without mistakes. Percentages are 0 to 100. ``locales`` are in lower case."""

    workspace_id: str
    api_key: str = field(repr=False)
    data_api_key: str = field(repr=False)
    definitions: Mapping[str, Definition]
    customers: Mapping[str, Mapping[str, Scalar]] = field(repr=False)
    rules: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The rules of the named audiences, as the file has them."""
    global_control_group: float = 0.0
    locales: tuple[str, ...] = ()
    identity_resolution: tuple[str, ...] = ("u_em", "u_mb")
    offering_actions: bool = False


@dataclass(frozen=True, slots=True)
class _Shared:
    """The parts of the file to which its experiences may refer."""

    audiences: Mapping[str, Audience]
    offerings: Mapping[str, Mapping[str, Any]]
    locales: tuple[str, ...]


def load_workspace(path: str | Path | None = None) -> Workspace:
    """Return the workspace in the file at ``path``, by default in the shipped file.

    Raises WorkspaceError with all mistakes and their places. For broken JSON the place is a line and a column.
    """
    file = SHIPPED if path is None else Path(path)
    try:
        text = file.read_bytes()
    except OSError as error:
        raise WorkspaceError([f"{file}: cannot be read: {error.strerror}. Check the path."]) from error
    return read_workspace(text, name=file.name)


def read_workspace(text: str | bytes, *, name: str) -> Workspace:
    """Return the workspace in the text of a file. Raises WorkspaceError as load_workspace() does."""
    try:
        data = json.loads(text, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise WorkspaceError([f"{name}: {place}: not valid JSON: {error.msg}"]) from error
    except (ValueError, RecursionError) as error:
        raise WorkspaceError([f"{name}: not valid JSON: {error}"]) from error
    return parse_workspace(data, name=name)


class WorkspaceFile:
    """A workspace file that may change while the sandbox runs. Threads may share the object.

    The constructor raises WorkspaceError for a file with a mistake. Later mistakes are logged: then ``workspace`` stays
    the last workspace without mistakes, and ``problems`` has the mistakes. ``changed_at`` is the Unix time of the last
    change.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = SHIPPED if path is None else Path(path)
        self._stamp = self._read_stamp()
        self.problems: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self.workspace = load_workspace(self.path)
        self.changed_at = self._stamp[0] / 1e9

    def refresh(self) -> Workspace:
        """Return the workspace. Read the file again if it has changed: to find out takes some 2 µs."""
        if self._read_stamp() != self._stamp:
            with self._lock:
                # Another thread may have read the new file already.
                if (stamp := self._read_stamp()) != self._stamp:
                    self._read()
                    self._stamp = stamp
        return self.workspace

    def _read_stamp(self) -> tuple[int, int]:
        try:
            status = self.path.stat()
        except OSError:
            return 0, -1
        return status.st_mtime_ns, status.st_size

    def _read(self) -> None:
        try:
            fresh = load_workspace(self.path)
        except WorkspaceError as error:
            self.problems = error.problems
            logger.error("The sandbox can't use the new workspace file, so it keeps the old workspace: %s", error)
            return
        # Clients were built with the credentials of the start.
        old = self.workspace
        self.workspace = dataclasses.replace(fresh, **{name: getattr(old, name) for name in _CREDENTIALS})
        self.changed_at = time.time()
        if self.problems:
            self.problems = ()
            logger.warning("The workspace file %s has no mistakes now, so the sandbox uses it.", self.path.name)


def parse_workspace(data: object, *, name: str = "workspace") -> Workspace:
    """Return the workspace that decoded JSON describes. Raises WorkspaceError. Its problems begin with ``name``."""
    problems = Problems(name)
    root = Section(Value(data, "", problems), _WORKSPACE_FIELDS)
    locales = tuple(map(_normalize, root.get("locales", []).texts()))
    audiences = {name: Audience(name, read_rule(value)) for name, value in root.get("audiences", {}).members().items()}
    shared = _Shared(audiences, read_offerings(root.get("offerings", {})), locales)
    workspace_id, api_key = (root.require(name, "missing").text() for name in ("workspace_id", "api_key"))
    workspace = Workspace(
        workspace_id=workspace_id,
        api_key=api_key,
        data_api_key=root.get("data_api_key", api_key or "none").text(),
        definitions=_read_definitions(root.get("experiences", []), shared),
        customers=_read_customers(root.get("customers", {})),
        rules={name: value.data for name, value in root.get("audiences", {}).members().items()},
        global_control_group=root.get("global_control_group", 0).percent(),
        locales=locales,
        identity_resolution=root.get("identity_resolution", ["u_em", "u_mb"]).texts(),
        offering_actions=root.get("offering_actions", False).flag(),
    )
    problems.raise_any()
    return workspace


_WORKSPACE_FIELDS = (
    "workspace_id",
    "api_key",
    "data_api_key",
    "global_control_group",
    "locales",
    "identity_resolution",
    "offering_actions",
    "customers",
    "audiences",
    "offerings",
    "experiences",
)
_CREDENTIALS = ("workspace_id", "api_key", "data_api_key")
_CONTENT_FIELDS = ("audience", "variations", "payload", "locales")
_EXPERIENCE_FIELDS = ("key", "name", "status", "control_group", "start", "end", "content", *_CONTENT_FIELDS)
_VARIATION_FIELDS = ("name", "weight", "payload", "locales")


def _normalize(locale: str) -> str:
    return locale.lower().replace("_", "-")


def _read_customers(value: Value) -> dict[str, dict[str, Scalar]]:
    return {
        customer_id: {name: attribute.scalar() for name, attribute in customer.members().items()}
        for customer_id, customer in value.members().items()
    }


def _read_sections(value: Value, fields: Collection[str], what: str = "") -> list[Section]:
    return [Section(entry, fields) for entry in value.entries(what)]


def _read_definitions(value: Value, shared: _Shared) -> dict[str, Definition]:
    definitions: dict[str, Definition] = {}
    for section in _read_sections(value, _EXPERIENCE_FIELDS):
        definition = _read_definition(section, shared)
        if definition.key in definitions and definition.key:
            section.members["key"].add(f"an earlier experience has the key {shown(definition.key)} too")
        definitions[definition.key] = definition
    return definitions


def _read_definition(section: Section, shared: _Shared) -> Definition:
    key = section.require("key", section.value.place).text()
    start, end = _read_moment(section, "start"), _read_moment(section, "end")
    if start is not None and end is not None and end <= start:
        section.members["end"].wrong('must be later than "start"')
    return Definition(
        key=key,
        name=section.get("name", key or "-").text(),
        status=section.get("status", "Active").choice(STATUSES),
        contents=_read_contents(section, shared),
        control_group=section.get("control_group", 0).percent(),
        start=start,
        end=end,
    )


def _read_moment(section: Section, name: str) -> datetime | None:
    if name not in section:
        return None
    try:
        moment = datetime.fromisoformat(section.members[name].data)
    except (TypeError, ValueError):
        moment = datetime.min
    if moment.tzinfo is None:
        section.members[name].wrong('must be an ISO 8601 time with a zone such as "2026-12-01T18:00:00+01:00"')
        return None
    return moment


def _read_contents(section: Section, shared: _Shared) -> tuple[Content, ...]:
    """Return the entries of "content". Without "content", the experience's own members describe a single entry."""
    sections = [section]
    if "content" in section:
        sections = _read_sections(section.members["content"], _CONTENT_FIELDS, "entries")
        own = [name for name in _CONTENT_FIELDS if name in section]
        if own:
            section.members[own[0]].add('cannot be next to "content". Move it into an entry of "content".')
    contents: list[Content] = []
    for entry in sections:
        first = 1 + sum(len(content.variations) for content in contents)
        audience = _read_audience(entry.get("audience", EVERYONE.name), shared)
        contents.append(Content(audience, _read_variations(entry, shared, first)))
    return tuple(contents)


def _read_audience(value: Value, shared: _Shared) -> Audience:
    if isinstance(value.data, Mapping):
        rule = {name: each.data for name, each in value.members().items()}
        return Audience(f"Inline {shown(rule)}", read_rule(value))
    audiences = {EVERYONE.name: EVERYONE, **shared.audiences}
    if not isinstance(value.data, str):
        value.wrong("must be the name of an audience or a rule")
    elif value.data not in audiences:
        value.add(f"unknown audience {shown(value.data)}{nearest(value.data, audiences)}")
    else:
        return audiences[value.data]
    return EVERYONE


def _read_variations(section: Section, shared: _Shared, first: int) -> tuple[Variation, ...]:
    """Return the variations, with ids from ``first`` on. Without "variations", "payload" is the only variation."""
    if "variations" not in section:
        return (Variation(str(first), "", 1.0, _read_payloads(section, shared)),)
    for name in ("payload", "locales"):
        if name in section:
            section.members[name].add('cannot be next to "variations". Move it into a variation.')
    entries = _read_sections(section.members["variations"], _VARIATION_FIELDS, "variations")
    return tuple(
        Variation(
            variation_id=str(first + index),
            name=entry.members["name"].text() if "name" in entry else "",
            weight=entry.get("weight", 1).weight(),
            payloads=_read_payloads(entry, shared),
        )
        for index, entry in enumerate(entries)
    )


def _read_payloads(section: Section, shared: _Shared) -> dict[str, Payload]:
    default = read_payload(section.require("payload", {}), shared.offerings)
    payloads = {"": default}
    for locale, value in section.get("locales", {}).members().items():
        code = _normalize(locale)
        if code not in shared.locales:
            value.add(f'not in the "locales" of the workspace{nearest(code, shared.locales)}')
        payloads[code] = default | read_payload(value, shared.offerings)
    return payloads

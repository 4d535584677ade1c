"""The workspace: what a MoEngage dashboard would hold, read from one hand-editable JSON file."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from django_moe_personalize.sandbox.payloads import Payload, read_offerings, read_payload
from django_moe_personalize.sandbox.reading import Problems, Section, WorkspaceError, nearest, shown
from django_moe_personalize.sandbox.rule_reader import read_rule
from django_moe_personalize.sandbox.rules import Rule, Scalar

__all__ = [
    "EVERYONE",
    "Audience",
    "Content",
    "Definition",
    "State",
    "Variation",
    "Workspace",
    "WorkspaceError",
    "load_workspace",
    "parse_workspace",
]

SHIPPED = Path(__file__).with_name("workspace.json")
"""The workspace of the example shop, used when a site names no other."""

STATUSES = ("Active", "Paused", "Scheduled")


class State(enum.Enum):
    """Where an experience stands at a moment: its status and its schedule together."""

    ACTIVE = "Active"
    PAUSED = "Paused"
    SCHEDULED = "Scheduled"
    EXPIRED = "Expired"


@dataclass(frozen=True, slots=True)
class Audience:
    """A named rule; without a rule it is everyone."""

    name: str
    rule: Rule | None = None

    @property
    def audience_id(self) -> str:
        """A short id that follows from the name."""
        return hashlib.sha256(self.name.encode("utf-8", "replace")).hexdigest()[:6].upper()


EVERYONE = Audience("All users")


@dataclass(frozen=True, slots=True)
class Variation:
    """One content of an experience; ``payloads`` maps a locale ("" is the default) to its wire form."""

    variation_id: str
    name: str
    weight: float
    payloads: Mapping[str, Payload]


@dataclass(frozen=True, slots=True)
class Content:
    """What one audience gets: variations that share it by weight."""

    audience: Audience
    variations: tuple[Variation, ...]


@dataclass(frozen=True, slots=True)
class Definition:
    """One experience as authored. Of its contents the first whose audience matches is served."""

    key: str
    name: str
    status: str
    contents: tuple[Content, ...]
    control_group: float = 0.0
    start: datetime | None = None
    end: datetime | None = None

    def state(self, now: float) -> State:
        """Return the state at Unix time ``now``: paused first, then the schedule, then the status."""
        if self.status == "Paused":
            return State.PAUSED
        if self.end is not None and now >= self.end.timestamp():
            return State.EXPIRED
        if self.start is None:
            return State(self.status)
        return State.ACTIVE if now >= self.start.timestamp() else State.SCHEDULED


@dataclass(frozen=True, slots=True)
class Workspace:
    """All a sandbox knows, checked. Percentages are 0 to 100; ``locales`` are lower-case."""

    workspace_id: str
    api_key: str = field(repr=False)
    definitions: Mapping[str, Definition]
    customers: Mapping[str, Mapping[str, Scalar]] = field(repr=False)
    global_control_group: float = 0.0
    locales: tuple[str, ...] = ()
    identity_resolution: tuple[str, ...] = ("u_em", "u_mb")
    offering_actions: bool = False


@dataclass(frozen=True, slots=True)
class _Shared:
    """What every experience of the file may refer to."""

    audiences: Mapping[str, Audience]
    offerings: Mapping[str, Mapping[str, Any]]
    locales: tuple[str, ...]


def load_workspace(path: str | Path | None = None) -> Workspace:
    """Return the workspace in the file at ``path``, or the shipped one.

    Raises WorkspaceError with every mistake and its place; broken JSON with line and column.
    """
    file = SHIPPED if path is None else Path(path)
    try:
        data = json.loads(file.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise WorkspaceError([f"{file}: cannot be read: {error.strerror}"]) from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise WorkspaceError([f"{file.name}: {place}: not valid JSON: {error.msg}"]) from error
    except (ValueError, RecursionError) as error:
        raise WorkspaceError([f"{file.name}: not valid JSON: {error}"]) from error
    return parse_workspace(data, name=file.name)


def parse_workspace(data: object, *, name: str = "workspace") -> Workspace:
    """Return the workspace described by decoded JSON; ``name`` begins each problem of a WorkspaceError."""
    problems = Problems(name)
    root = Section(data, "", problems, fields=_WORKSPACE_FIELDS)
    locales = tuple(locale.lower().replace("_", "-") for locale in root.texts("locales"))
    shared = _Shared(_read_audiences(root), read_offerings(root), locales)
    workspace = Workspace(
        workspace_id=root.text("workspace_id"),
        api_key=root.text("api_key"),
        definitions=_read_definitions(root, shared),
        customers=_read_customers(root),
        global_control_group=root.percent("global_control_group"),
        locales=locales,
        identity_resolution=root.texts("identity_resolution", ("u_em", "u_mb")),
        offering_actions=root.flag("offering_actions"),
    )
    problems.raise_any()
    return workspace


_WORKSPACE_FIELDS = (
    "workspace_id",
    "api_key",
    "global_control_group",
    "locales",
    "identity_resolution",
    "offering_actions",
    "customers",
    "audiences",
    "offerings",
    "experiences",
)
_CONTENT_FIELDS = ("audience", "variations", "payload", "locales")
_EXPERIENCE_FIELDS = ("key", "name", "status", "control_group", "start", "end", "content", *_CONTENT_FIELDS)
_VARIATION_FIELDS = ("name", "weight", "payload", "locales")


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _read_audiences(root: Section) -> dict[str, Audience]:
    return {
        name: Audience(name, read_rule(value, place, root.problems)) for name, place, value in root.members("audiences")
    }


def _read_customers(root: Section) -> dict[str, dict[str, Scalar]]:
    customers: dict[str, dict[str, Scalar]] = {}
    for customer_id, place, value in root.members("customers"):
        section = Section(value, place, root.problems, fields=value if isinstance(value, Mapping) else ())
        for name, attribute in section.data.items():
            if not isinstance(attribute, (str, int, float)):
                section.wrong(name, "must be a string, a number, true or false")
        customers[customer_id] = dict(section.data)
    return customers


def _read_definitions(root: Section, shared: _Shared) -> dict[str, Definition]:
    definitions: dict[str, Definition] = {}
    for place, value in root.items("experiences"):
        section = Section(value, place, root.problems, fields=_EXPERIENCE_FIELDS)
        definition = _read_definition(section, shared)
        if definition.key in definitions and definition.key:
            section.wrong("key", "must be unique: an earlier experience has it")
        definitions[definition.key] = definition
    return definitions


def _read_definition(section: Section, shared: _Shared) -> Definition:
    key = section.text("key")
    start, end = _read_moment(section, "start"), _read_moment(section, "end")
    if start is not None and end is not None and end <= start:
        section.wrong("end", 'must be later than "start"')
    return Definition(
        key=key,
        name=section.text("name", key),
        status=section.choice("status", STATUSES, "Active"),
        contents=_read_contents(section, shared),
        control_group=section.percent("control_group"),
        start=start,
        end=end,
    )


def _read_moment(section: Section, name: str) -> datetime | None:
    if name not in section:
        return None
    text = section.data[name]
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        moment = datetime.min
    if moment.tzinfo is None:
        section.wrong(name, 'must be an ISO 8601 time with a zone such as "2026-12-01T18:00:00+01:00"')
        return None
    return moment


def _read_contents(section: Section, shared: _Shared) -> tuple[Content, ...]:
    """Return the contents: those in "content", or the one written in the experience itself."""
    sections = [
        Section(value, place, section.problems, fields=_CONTENT_FIELDS) for place, value in section.items("content")
    ]
    own = [name for name in _CONTENT_FIELDS if name in section]
    if "content" not in section:
        sections = [section]
    elif own:
        section.problems.add(section.at(own[0]), 'cannot stand beside "content": move it into an entry there')
    elif not sections:
        section.problems.add(section.at("content"), "must hold at least one entry")
    contents: list[Content] = []
    for entry in sections:
        first = 1 + sum(len(content.variations) for content in contents)
        contents.append(Content(_read_audience(entry, shared), _read_variations(entry, shared, first)))
    return tuple(contents)


def _read_audience(section: Section, shared: _Shared) -> Audience:
    value = section.data.get("audience", EVERYONE.name)
    if isinstance(value, Mapping):
        name = f"Inline {shown({k: v for k, v in value.items() if k != '//'})}"
        return Audience(name, read_rule(value, section.at("audience"), section.problems))
    if isinstance(value, str):
        if value in shared.audiences:
            return shared.audiences[value]
        if value != EVERYONE.name:
            names = (*shared.audiences, EVERYONE.name)
            section.problems.add(section.at("audience"), f"unknown audience {shown(value)}{nearest(value, names)}")
    else:
        section.wrong("audience", "must be the name of an audience or a rule")
    return EVERYONE


def _read_variations(section: Section, shared: _Shared, first: int) -> tuple[Variation, ...]:
    """Return the variations, numbered on from ``first``; a lone payload is one variation."""
    if "variations" not in section:
        return (_read_variation(section, shared, first, 0, name=""),)
    for name in ("payload", "locales"):
        if name in section:
            section.problems.add(section.at(name), 'cannot stand beside "variations": move it into one of them')
    entries = list(section.items("variations"))
    if section.data["variations"] == []:
        section.problems.add(section.at("variations"), "must hold at least one entry")
    return tuple(
        _read_variation(
            Section(value, place, section.problems, fields=_VARIATION_FIELDS), shared, first, index, name=None
        )
        for index, (place, value) in enumerate(entries)
    )


def _read_variation(section: Section, shared: _Shared, first: int, index: int, *, name: str | None) -> Variation:
    """``name`` is given for a payload that stands in its content or experience, whose name is not its own."""
    if "payload" not in section:
        section.problems.add(section.place, '"payload" is missing')
    payload = read_payload(section.data.get("payload", {}), section.at("payload"), section.problems, shared.offerings)
    payloads = {"": payload}
    for locale, place, value in section.members("locales"):
        code = locale.lower().replace("_", "-")
        if code not in shared.locales:
            section.problems.add(place, f'not among the "locales" of the workspace{nearest(code, shared.locales)}')
        payloads[code] = payload | read_payload(value, place, section.problems, shared.offerings)
    letter = chr(ord("A") + index % 26)
    return Variation(
        variation_id=str(first + index),
        name=section.text("name", letter) if name is None else letter,
        weight=section.weight("weight") if name is None else 1.0,
        payloads=payloads,
    )

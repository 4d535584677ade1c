"""The experiences and audiences of the workspace, as the first page shows them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from django_moe_personalize.sandbox.workspace import Definition, State, Workspace
from django_moe_personalize.workbench.answers import Share, list_shares


@dataclass(frozen=True, slots=True)
class Row:
    """One variation, with its content. ``rule`` is the rule of the audience as the file has it."""

    audience: str
    rule: str
    share: Share
    title: str
    payload: str
    locales: str


@dataclass(frozen=True, slots=True)
class ExperienceView:
    """One experience with its variations, in the order in which the sandbox checks their audiences."""

    definition: Definition
    state: State
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class AudienceView:
    """A named audience, and the keys of the experiences that use it."""

    name: str
    rule: str
    used_by: Sequence[str]


def list_experiences(workspace: Workspace, now: float) -> list[ExperienceView]:
    """Return the experiences of the workspace at Unix time ``now``."""
    return [
        ExperienceView(definition, definition.state(now), _list_rows(workspace, definition))
        for definition in workspace.definitions.values()
    ]


def list_audiences(workspace: Workspace) -> list[AudienceView]:
    """Return the named audiences of the workspace."""
    return [AudienceView(name, _describe(rule), _list_users(workspace, name)) for name, rule in workspace.rules.items()]


def _list_users(workspace: Workspace, audience: str) -> list[str]:
    return [
        key
        for key, definition in workspace.definitions.items()
        if any(content.audience.name == audience for content in definition.contents)
    ]


def _list_rows(workspace: Workspace, definition: Definition) -> list[Row]:
    rows = []
    for content in definition.contents:
        audience = content.audience.name
        inline = audience.startswith("Inline {") and audience not in workspace.rules
        rule = audience.removeprefix("Inline ") if inline else _describe(workspace.rules.get(audience))
        for share in list_shares(content):
            locales = ", ".join(filter(None, share.variation.payloads))
            values = {name: each["value"] for name, each in share.variation.payloads[""].items()}
            title = next((value for value in values.values() if value and isinstance(value, str)), "Payload")
            payload = json.dumps(values, indent=2, ensure_ascii=False)
            rows.append(Row("A rule of its own" if inline else audience, rule, share, title, payload, locales))
    return rows


def _describe(rule: object) -> str:
    """Return a rule as the file has it, or ``""`` for everyone."""
    return "" if rule is None else json.dumps(rule, ensure_ascii=False)

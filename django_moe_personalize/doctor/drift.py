"""Compare the experiences that a site uses with those of the workspace. Calls MoEngage, or the sandbox if it's on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from django_moe_personalize.checks.usages import Usage, find_schema_place
from django_moe_personalize.client import get_engine
from django_moe_personalize.conf.readers import suggest
from django_moe_personalize.doctor.asking import ask
from django_moe_personalize.moengage.client import read_fetch
from django_moe_personalize.moengage.types import Experience, ExperiencesMetadata, ExperienceStatus
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.sandbox.workspace import Definition, State
from django_moe_personalize.schemas import ExperienceSchema, get_schemas

MISSING = "missing"
"""In place of a status: the workspace doesn't have an experience that the site uses."""

Payloads = dict[str, list[Experience]]
"""By key: the experiences that visitors get, or all variations of the sandbox's workspace file."""


@dataclass(frozen=True, slots=True)
class Row:
    """One experience of the workspace or of the site, with its usages."""

    experience_key: str
    name: str
    status: str
    usages: tuple[Usage, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One difference between the site and the workspace, with all places of the site that it concerns."""

    experience_key: str
    message: str
    fix: str
    usages: tuple[Usage, ...]


def list_rows(metadata: ExperiencesMetadata, usages: Sequence[Usage]) -> list[Row]:
    """Return the experiences of the workspace, and then those that only the site has."""
    used: dict[str, list[Usage]] = {}
    for usage in usages:
        used.setdefault(usage.experience_key, []).append(usage)
    rows = [
        Row(meta.experience_key, meta.experience_name, meta.status.value, tuple(used.pop(meta.experience_key, ())))
        for meta in metadata.experiences
    ]
    return [*rows, *(Row(key, "", _find_missing_status(key), tuple(found)) for key, found in used.items())]


def _find_missing_status(key: str) -> str:
    """Return ``expired`` for an experience of the sandbox that has ended. MoEngage doesn't list such experiences."""
    engine = get_engine()
    definition = None if engine is None else engine.workspace.definitions.get(key)
    is_expired = engine is not None and definition is not None and definition.state(engine.clock()) is State.EXPIRED
    return "expired" if is_expired else MISSING


def find_problems(rows: Sequence[Row], payloads: Payloads) -> Iterator[Problem]:
    """Yield the problems of each experience that the site uses, and then those of each schema."""
    known = [row.experience_key for row in rows if row.status != MISSING]
    for row in rows:
        key = row.experience_key
        if row.usages and row.status == MISSING:
            fix = suggest(key, known, "Correct the key, or create the experience in the dashboard.")
            yield Problem(key, f"The workspace has no experience {key!r}, or it has ended.", fix, row.usages)
        elif row.usages and row.status == "expired":
            fix = "Extend its schedule, or remove it from the site."
            yield Problem(key, f"Experience {key!r} has ended, so visitors see the fallback.", fix, row.usages)
        elif row.usages and row.status == ExperienceStatus.PAUSED.value:
            fix = "Activate it in the dashboard, or remove it from the site."
            yield Problem(key, f"Experience {key!r} is paused, so visitors see the fallback.", fix, row.usages)
    for schema in get_schemas():
        yield from _find_problems_of_schema(schema, payloads.get(schema.key, []))


def _find_problems_of_schema(schema: type[ExperienceSchema], experiences: Sequence[Experience]) -> Iterator[Problem]:
    for mistake in schema.find_mistakes():
        yield Problem(schema.key, mistake.message, mistake.hint, (_place(schema, mistake.variable),))
    found: dict[str, list[str]] = {}
    for experience in experiences:
        for name, problem in schema.find_problems(experience):
            found.setdefault(name, []).append(problem)
    for name, problems in found.items():
        share = f" in {len(problems)} of {len(experiences)} payloads" if len(experiences) > 1 else ""
        message = f"The variable {name!r} of experience {schema.key!r} {problems[0]}{share}."
        fix = f"Correct the content in the dashboard, or the schema {schema.__name__}."
        yield Problem(schema.key, message, fix, (_place(schema, name),))


def _place(schema: type[ExperienceSchema], variable: str) -> Usage:
    return Usage(schema.key, "schema", *find_schema_place(schema, variable))


def collect_payloads(rows: Sequence[Row], customers: Sequence[str]) -> Payloads:
    """Return the payloads to compare with the schemas.

    The sandbox in this process has all variations in its workspace file. MoEngage gives those of an unknown visitor and
    of the ``customers``. Raises APIError.
    """
    wanted = [schema.key for schema in get_schemas()]
    if (engine := get_engine()) is not None:
        definitions = engine.workspace.definitions
        return {key: list(_read_definition(definitions[key])) for key in wanted if key in definitions}
    active = [row.experience_key for row in rows if row.status == ExperienceStatus.ACTIVE.value]
    keys = [key for key in wanted if key in active]
    found: Payloads = {key: [] for key in keys}
    for customer_id in [None, *customers] if keys else ():
        for key, experience in ask(get_runtime(), keys, customer_id=customer_id).experiences.items():
            if all(experience.payload != other.payload for other in found[key]):
                found[key].append(experience)
    return found


def _read_definition(definition: Definition) -> Iterator[Experience]:
    for content in definition.contents:
        for variation in content.variations:
            for payload in variation.payloads.values():
                entry = {"payload": payload, "experience_context": {"moe_variation_id": variation.variation_id}}
                body = json.dumps({"experiences": {definition.key: entry}})
                yield from read_fetch(body.encode()).experiences.values()

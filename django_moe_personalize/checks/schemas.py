"""Check the schemas of a site: their keys, annotations and defaults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from django_moe_personalize.checks.usages import Usage, find_schema_place
from django_moe_personalize.conf import Settings
from django_moe_personalize.schemas import ExperienceSchema, get_classes

NUMBERS: Final = {"annotation": "E021", "default": "E022"}


def check_schemas(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield E020 for a missing, wrong or repeated key, E021 for a wrong annotation, E022 for a wrong default."""
    first: dict[object, type[ExperienceSchema]] = {}
    for schema in get_classes():
        name, place = schema.__name__, _describe(schema)
        if not isinstance(schema.key, str):
            hint = 'Write key = "hero-banner", with the key in the dashboard.'
            yield "E020", f"The key of the schema {name} isn't a string ({place}).", hint
        elif schema.key and first.setdefault(schema.key, schema) is not schema:
            other = first[schema.key]
            message = f"The schemas {other.__name__} and {name} have the same key {schema.key!r} ({place})."
            yield "E020", message, f"Remove one of them. The other is in {_describe(other)}."
        elif not schema.key and not schema.__subclasses__():
            hint = 'Write key = "hero-banner", with the key in the dashboard, or remove the class.'
            yield "E020", f"The schema {name} has no key, and no other schema inherits from it ({place}).", hint
        for mistake in schema.find_mistakes():
            yield (
                NUMBERS[mistake.kind],
                f"{mistake.message[:-1]} ({_describe(schema, mistake.variable)}).",
                mistake.hint,
            )


def _describe(schema: type[ExperienceSchema], variable: str = "key") -> str:
    return Usage("", "", *find_schema_place(schema, variable)).place

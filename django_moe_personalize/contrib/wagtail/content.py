"""Find the experience keys in StreamFields: in the stored content, and in the definitions of the blocks."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from django.apps import apps
from django.db import DatabaseError, models
from wagtail.blocks import BaseStreamBlock, BaseStructBlock, Block, ListBlock
from wagtail.fields import StreamField
from wagtail.models import Page

from django_moe_personalize.checks.finders import Usage
from django_moe_personalize.contrib.wagtail.blocks import ExperienceBlock


def find_keys(block: Block | None, raw: Any) -> Iterator[str]:
    """Yield the keys in the stored form of a block's value. This needs no query, because it builds no values."""
    if isinstance(block, ExperienceBlock) and isinstance(raw, Mapping) and (key := raw.get("experience_key")):
        yield key
    if isinstance(block, BaseStructBlock) and isinstance(raw, Mapping):
        for name, child in block.child_blocks.items():
            yield from find_keys(child, raw.get(name))
    elif isinstance(block, ListBlock) and isinstance(raw, Sequence):
        for item in raw:
            # Old versions of Wagtail stored the values of a list without ids.
            is_new = isinstance(item, Mapping) and item.keys() >= {"id", "type", "value"}
            yield from find_keys(block.child_block, item["value"] if is_new else item)
    elif isinstance(block, BaseStreamBlock) and isinstance(raw, Sequence):
        for item in raw:
            yield from find_keys(block.child_blocks.get(item.get("type")), item.get("value"))


def iterate_blocks(block: Block) -> Iterator[Block]:
    """Yield a block and all blocks inside."""
    yield block
    inner = getattr(block, "child_block", None)
    for child in [*getattr(block, "child_blocks", {}).values(), *([inner] if inner else [])]:
        yield from iterate_blocks(child)


@functools.cache
def list_fields(model: type[models.Model]) -> tuple[StreamField, ...]:
    """Return the StreamFields of a model that may have experiences."""
    fields = [field for field in model._meta.concrete_fields if isinstance(field, StreamField)]
    return tuple(
        field
        for field in fields
        if any(isinstance(block, ExperienceBlock) for block in iterate_blocks(field.stream_block))
    )


def find_stored_keys(stored: models.Model) -> list[str]:
    """Return the keys in the StreamFields of a page or of another object, without a query."""
    fields = [field for field in list_fields(type(stored)) if field.attname in stored.__dict__]
    return [key for field in fields for key in find_keys(field.stream_block, field.value_from_object(stored).raw_data)]


def find_in_wagtail() -> Iterator[Usage]:
    """Yield the keys in the definitions of the blocks, and in the live pages and other objects."""
    for model in apps.get_models():
        own = [field for field in list_fields(model) if field.model is model]
        for block in [block for field in own for block in iterate_blocks(field.stream_block)]:
            if isinstance(block, ExperienceBlock) and (key := block.get_default().get("experience_key")):
                yield _find_definition(key, block, model)
        # A database that doesn't exist yet, for example in CI, has no content.
        with suppress(DatabaseError):
            yield from _find_stored(model) if own else ()


def _find_definition(key: str, block: Block, model: type[models.Model]) -> Usage:
    from django_moe_personalize.checks.python_code import find_constants
    from django_moe_personalize.checks.usages import find_definition

    for name in (type(block).__module__, model.__module__):
        for _, file, line in find_constants(sys.modules[name], {key}):
            return Usage(key, "wagtail", file, line)
    return Usage(key, "wagtail", *find_definition(model))


def _find_stored(model: type[models.Model]) -> Iterator[Usage]:
    names = {field.name for field in model._meta.get_fields()}
    # A draft is shown to no visitor.
    for stored in model._default_manager.filter(**({"live": True} if "live" in names else {})).iterator():
        place = f'{model._meta.verbose_name} {stored.pk} "{stored}"'
        if isinstance(stored, Page):
            place = f'page {stored.pk} "{stored.title}" {stored.full_url or ""}'.rstrip()
        yield from (Usage(key, "wagtail", place, 0) for key in find_stored_keys(stored))

"""Find the experience keys in the templates of Django's template language, with the line on which each is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, cast

from django.template import Engine, Origin, Template
from django.template.base import FilterExpression
from django.template.loader_tags import ExtendsNode, IncludeNode

from django_moe_personalize.checks.finders import Usage, report_unread
from django_moe_personalize.checks.template_leaks import get_engines, read_sources
from django_moe_personalize.planning import get_literal

MAX_DEPTH: Final = 20
"""Templates that include each other. They may do so endlessly."""

Names = Mapping[str, Usage]
"""The variables that a tag sets to a literal, each as the usage that it would be."""


def find_in_templates() -> Iterator[Usage]:
    """Yield the keys in all templates. A variable counts if ``{% include … with %}`` or ``{% with %}`` has its text."""
    for engine in get_engines():
        for name, source in read_sources(engine).items():
            # An include may give a key to a template with the tags.
            if any(word in source for word in ("experience", "personalize_state", "include")):
                for template in _load(engine, name, source):
                    yield from _walk(engine, template.nodelist, {}, 0)


def _load(engine: Engine, name: str, source: str) -> Iterator[Template]:
    """Yield a template. If it extends its own name, then yield the next template of this name too."""
    template, shadowing = None, list[Origin]()
    try:
        template = engine.get_template(name)
    except Exception as error:  # A tag of another library may raise anything.
        report_unread(name, source, error)
    while template is not None:
        yield template
        shadowing.append(template.origin)
        parents = [
            get_literal(cast(Any, node.parent_name)) for node in template.nodelist if isinstance(node, ExtendsNode)
        ]
        template = None
        with suppress(Exception):
            template = engine.find_template(name, skip=shadowing)[0] if name in parents else None


def _walk(engine: Engine, nodes: Iterable[Any], names: Names, depth: int) -> Iterator[Usage]:
    for node in nodes:
        # A node of another library may raise anything.
        with suppress(Exception):
            yield from _look_at(engine, node, names, depth)


def _look_at(engine: Engine, node: Any, names: Names, depth: int) -> Iterator[Usage]:
    if hasattr(node, "experience_key") or hasattr(node, "island_key"):
        found = _build_usage(node, node.key) or names.get(str(node.key.var))
        if found is not None and found.file:
            yield found
        for function, arguments in node.key.filters:
            # {% experience key|default:"hero-banner" %}
            texts = [text for is_variable, text in arguments if not is_variable and "default" in function.__name__]
            yield from (Usage(str(text), "template", str(node.origin.name), node.token.lineno) for text in texts)
    added = {name: _build_usage(node, value) for name, value in getattr(node, "extra_context", {}).items()}
    names = {**names, **{name: value or _UNKNOWN for name, value in added.items()}}
    if isinstance(node, IncludeNode) and (name := get_literal(node.template)) and depth < MAX_DEPTH:
        handed = {key: value for key, value in names.items() if key in added or not node.isolated_context}
        # Without a text for its variables, the template has only the keys that it has anyway.
        if handed:
            yield from _walk(engine, engine.get_template(name).nodelist, handed, depth + 1)
    for child in node.child_nodelists:
        yield from _walk(engine, getattr(node, child, ()), names, depth)


_UNKNOWN: Final = Usage("", "", "", 0)


def _build_usage(node: Any, expression: FilterExpression) -> Usage | None:
    """Return the usage of a quoted literal. With a filter such as ``default`` it is the literal too."""
    text = expression.var
    return Usage(text, "template", str(node.origin.name), node.token.lineno) if isinstance(text, str) else None

"""Find one visitor's content inside Django's ``{% cache %}``, which shows it to everybody.

The tags refuse to stand there in the same template. What an include, a child's block, a partial, an
inclusion tag or a variable brings in is found here for a system check, by following literal names
through the compiled templates, whatever the response's headers say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.template import Engine, Node, Template
from django.template.base import TextNode, VariableNode
from django.template.library import InclusionNode
from django.template.loader_tags import BlockNode, ExtendsNode, IncludeNode
from django.templatetags.cache import CacheNode

from django_moe_personalize.planning import get_literal
from django_moe_personalize.templatetags.moe_personalize import (
    ClickURLNode,
    ExperienceNode,
    ExperienceValueNode,
    NamedValueNode,
)

_CACHE = re.compile(r"\{%\s*cache\b")
_OURS = re.compile(r"\{%\s*load\b[^%]*\bmoe_personalize\b")
_EXTENDS = re.compile(r"\{%\s*extends\b")
_QUOTED = re.compile(r""""[^"]*"|'[^']*'""")

Names = frozenset[str]
Blocks = dict[str, list[BlockNode]]


@dataclass(frozen=True, slots=True)
class Leak:
    """A ``{% cache %}`` that holds what is meant for one visitor; both places are ``file, line n``."""

    place: str
    found: str
    found_at: str


def find_leaks(engine: Engine) -> list[Leak]:
    """Return the leaks in the templates below the engine's folders; what does not compile is left out.

    Reads every file, and compiles only where one of them has ``{% cache %}``: then those that have it
    or use our tags, and where a block stands in a fragment those that could fill it.
    """
    sources: dict[str, str] = {}
    for name, source in read_sources(engine):
        sources.setdefault(name, source)
    if not any(map(_CACHE.search, sources.values())):
        return []
    search = _Search(engine)
    patterns = [_CACHE, _OURS]
    if any(search.has_block_in_fragment(name) for name, source in sources.items() if _CACHE.search(source)):
        patterns.append(_EXTENDS)
    for name, source in sources.items():
        if any(pattern.search(source) for pattern in patterns):
            search.walk_page(name)
    return list(search.found)


def read_sources(engine: Engine) -> Iterator[tuple[str, str]]:
    """Yield the name and the source of every template; of two that share a name the one it means comes first."""
    loaders: list[Any] = list(engine.template_loaders)
    for loader in loaders:
        # The cached loader has others.
        loaders += getattr(loader, "loaders", [])
        for folder in map(Path, getattr(loader, "get_dirs", list)()):
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                with suppress(OSError, UnicodeDecodeError):
                    yield path.relative_to(folder).as_posix(), path.read_text(engine.file_charset)


class _Search:
    """Pages, walked from their outermost parent as they are rendered; every branch counts, taken or not."""

    def __init__(self, engine: Engine) -> None:
        self.found: dict[Leak, None] = {}
        self._engine = engine
        self._templates: dict[str, Template | None] = {}
        self._seen: set[tuple[int, int]] = set()

    def walk_page(self, name: str) -> None:
        """Find the leaks of the page of that name; ``personalization`` is what our context processor gives it."""
        self._seen.clear()
        if (template := self._load(name)) is not None:
            self.found.update(dict.fromkeys(self._walk_template(template, frozenset({"personalization"}), None)))

    def has_block_in_fragment(self, name: str) -> bool:
        """Return whether other templates could put something into a fragment of this one."""
        template = self._load(name)
        fragments: list[Any] = [] if template is None else list(template.nodelist.get_nodes_by_type(CacheNode))
        return any(fragment.nodelist.get_nodes_by_type(BlockNode) for fragment in fragments)

    def _load(self, name: str) -> Template | None:
        if name not in self._templates:
            self._templates[name] = None
            # Whatever a tag's compilation raises, the page that needs it says so itself.
            with suppress(Exception):
                self._templates[name] = self._engine.get_template(name)
        return self._templates[name]

    def _walk_template(self, template: Template, names: Names, fragment: CacheNode | None) -> Iterator[Leak]:
        """Yield the leaks of ``template``, where ``names`` are variables with one visitor's content."""
        if (id(template), id(fragment)) in self._seen:
            return
        self._seen.add((id(template), id(fragment)))
        family = [template]
        while (parent := self._find_parent(family[-1])) is not None and parent not in family:
            family.append(parent)
        blocks: Blocks = {}
        found: list[Any] = [block for member in family for block in member.nodelist.get_nodes_by_type(BlockNode)]
        for block in found:
            blocks.setdefault(block.name, []).append(block)
        yield from self._walk(family[-1].nodelist, names, fragment, blocks)

    def _walk(self, nodes: Any, names: Names, fragment: CacheNode | None, blocks: Blocks) -> Iterator[Leak]:
        for node in nodes:
            if fragment is not None and _is_personal(node, names):
                yield Leak(_describe(fragment), _quote(node), _describe(node))
            else:
                yield from self._walk_below(node, names | _find_names(node, names), fragment, blocks)
            if isinstance(node, NamedValueNode):
                names |= {node.name}

    def _walk_below(self, node: Node, names: Names, fragment: CacheNode | None, blocks: Blocks) -> Iterator[Leak]:
        if isinstance(node, CacheNode):
            fragment = fragment or node
            # A fragment that is kept apart by a variable is meant for it.
            names -= {name for name in names for vary in node.vary_on if _mentions(vary.token, {name})}
        for template in self._find_templates(node):
            yield from self._walk_template(template, names, fragment)
        for part in blocks.get(node.name, []) if isinstance(node, BlockNode) else [node]:
            for attribute in part.child_nodelists:
                yield from self._walk(getattr(part, attribute, ()), names, fragment, blocks)

    def _find_parent(self, template: Template) -> Template | None:
        for node in template.nodelist:
            parent: Any = getattr(node, "parent_name", None)
            if isinstance(node, ExtendsNode) and (name := get_literal(parent)) is not None:
                return self._load(name)
        return None

    def _find_templates(self, node: Any) -> list[Any]:
        """Return what ``node`` renders besides its own nodes: an include, an inclusion tag, a partial of Django 6."""
        name = None
        if isinstance(node, IncludeNode):
            name = get_literal(node.template)
        elif isinstance(node, InclusionNode):
            name = node.filename if isinstance(node.filename, str) else None
        found: list[Any] = [] if name is None else [self._load(name)]
        # Before Django 6.0 no node has one.
        with suppress(AttributeError, KeyError):
            found.append(node.partial_mapping[node.partial_name])
        return [template for template in found if template is not None]


def _find_names(node: Any, names: Names) -> Names:
    """Return the variables that ``node`` sets for what is inside it, out of those in ``names`` or of ours."""
    found = {node.name} if isinstance(node, ExperienceNode) else set()
    found |= {name for name, value in getattr(node, "extra_context", {}).items() if _mentions(value.token, names)}
    if _mentions(_read(node), names):
        found |= set(getattr(node, "loopvars", ()))
    return frozenset(found)


def _is_personal(node: Node, names: Names) -> bool:
    if isinstance(node, ExperienceNode | ExperienceValueNode | ClickURLNode):
        return True
    # The conditions of {% elif %} stand in no token of a node's own.
    conditions = " ".join(repr(condition) for condition, _ in getattr(node, "conditions_nodelists", ()))
    return not isinstance(node, TextNode | CacheNode | BlockNode) and _mentions(_read(node) + conditions, names)


def _read(node: Node) -> str:
    """Return what the template says there, without what stands in quotes."""
    return "" if node.token is None else _QUOTED.sub("", node.token.contents)


def _mentions(text: str, names: Names | set[str]) -> bool:
    """Return whether one of the variables is read, as ``hero``, ``hero.Title`` or ``request.personalization``."""
    return any(re.search(rf"(?<![\w.])(?:request\.)?{re.escape(name)}\b(?!\s*=)", text) for name in names)


def _quote(node: Any) -> str:
    opening, closing = ("{{", "}}") if isinstance(node, VariableNode) else ("{%", "%}")
    return f"{opening} {node.token.contents} {closing}"


def _describe(node: Any) -> str:
    return f"{node.origin.name}, line {node.token.lineno}"

"""Find one visitor's content inside Django's ``{% cache %}``, which shows it to all visitors.

Our tags refuse to render directly inside ``{% cache %}``. This module finds the content that an include, a block of a
child, a partial, an inclusion tag or a variable brings into it. It follows the literal names in compiled templates.

A site's templates may contain any third-party node. One that can't be inspected is skipped, and never raises.
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
    """A ``{% cache %}`` with one visitor's content in it. ``place`` and ``found_at`` are ``file, line n``."""

    place: str
    found: str
    found_at: str


def find_leaks(engine: Engine) -> list[Leak]:
    """Return the leaks in the templates of the engine's folders. Never raises.

    It reads every file. It compiles templates only if one of them has ``{% cache %}``: those with that tag, those that
    load our tags and, if a ``{% cache %}`` contains a block, those that could fill the block.
    """
    sources: dict[str, str] = {}
    for name, source in read_sources(engine):
        sources.setdefault(name, source)
    with_cache = [name for name, source in sources.items() if _CACHE.search(source)]
    if not with_cache:
        return []
    search = _Search(engine)
    patterns = [_CACHE, _OURS]
    if any(search.has_block_in_cache(name) for name in with_cache):
        patterns.append(_EXTENDS)
    for name, source in sources.items():
        if any(pattern.search(source) for pattern in patterns):
            search.walk_page(name)
    return list(search.found)


def read_sources(engine: Engine) -> Iterator[tuple[str, str]]:
    """Yield the name and the source of every template that can be read. Of two with one name, the first counts."""
    loaders: list[Any] = []
    with suppress(Exception):
        loaders += engine.template_loaders
    for loader in loaders:
        with suppress(Exception):
            # The cached loader contains other loaders.
            loaders += getattr(loader, "loaders", None) or []
            for folder in map(Path, getattr(loader, "get_dirs", list)()):
                for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                    with suppress(OSError, UnicodeDecodeError):
                        yield path.relative_to(folder).as_posix(), path.read_text(engine.file_charset)


class _Search:
    """Walk pages from their outermost parent, in the order of rendering. Every branch counts, taken or not."""

    def __init__(self, engine: Engine) -> None:
        self.found: dict[Leak, None] = {}
        self._engine = engine
        self._templates: dict[str, Template | None] = {}
        self._seen: set[tuple[int, int]] = set()

    def walk_page(self, name: str) -> None:
        """Find the leaks of a page. The context processor gives every page the variable ``personalization``."""
        self._seen.clear()
        if (template := self._load(name)) is not None:
            for leak in self._walk_template(template, frozenset({"personalization"}), None):
                self.found[leak] = None

    def has_block_in_cache(self, name: str) -> bool:
        """Return whether another template could put content into a ``{% cache %}`` of this one."""
        template = self._load(name)
        fragments = [] if template is None else _find_nodes(template, CacheNode)
        return any(_find_nodes(fragment, BlockNode) for fragment in fragments)

    def _load(self, name: str) -> Template | None:
        if name not in self._templates:
            self._templates[name] = None
            # Compiling a tag may raise anything. The page that needs the template reports that.
            with suppress(Exception):
                self._templates[name] = self._engine.get_template(name)
        return self._templates[name]

    def _walk_template(self, template: Template, names: Names, fragment: CacheNode | None) -> Iterator[Leak]:
        """Yield the leaks of ``template``. ``names`` are the variables with one visitor's content."""
        if (id(template), id(fragment)) in self._seen:
            return
        self._seen.add((id(template), id(fragment)))
        family = [template]
        while (parent := self._find_parent(family[-1])) is not None and parent not in family:
            family.append(parent)
        blocks: Blocks = {}
        for block in [block for member in family for block in _find_nodes(member, BlockNode)]:
            blocks.setdefault(block.name, []).append(block)
        yield from self._walk(family[-1].nodelist, names, fragment, blocks)

    def _walk(self, nodes: Any, names: Names, fragment: CacheNode | None, blocks: Blocks) -> Iterator[Leak]:
        for node in nodes:
            # A third-party node may have these attributes with another meaning. Then the walk skips this node.
            with suppress(Exception):
                if fragment is not None and _is_personal(node, names):
                    yield Leak(_describe(fragment), _quote(node), _describe(node))
                else:
                    yield from self._walk_below(node, names | _find_names(node, names), fragment, blocks)
            if isinstance(node, NamedValueNode):
                names |= {node.name}

    def _walk_below(self, node: Node, names: Names, fragment: CacheNode | None, blocks: Blocks) -> Iterator[Leak]:
        if isinstance(node, CacheNode):
            fragment = fragment or node
            # {% cache 60 x hero.Title %} stores one fragment for each value, so this variable is no leak inside it.
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
        """Return the templates that ``node`` renders: of an include, an inclusion tag or a partial of Django 6."""
        name = None
        if isinstance(node, IncludeNode):
            name = get_literal(node.template)
        elif isinstance(node, InclusionNode):
            name = node.filename if isinstance(node.filename, str) else None
        found: list[Any] = [] if name is None else [self._load(name)]
        # Only a partial has these attributes, and before Django 6.0 there are no partials.
        with suppress(Exception):
            found.append(node.partial_mapping[node.partial_name])
        return [template for template in found if template is not None]


def _find_nodes(parent: Any, kind: type[Node]) -> list[Any]:
    with suppress(Exception):  # see _Search._walk()
        return list(parent.nodelist.get_nodes_by_type(kind))
    return []


def _find_names(node: Any, names: Names) -> Names:
    """Return the variables with one visitor's content that ``node`` sets for its children."""
    found = {node.name} if isinstance(node, ExperienceNode) else set()
    with suppress(Exception):  # see _Search._walk()
        if _mentions(_read_contents(node), names):
            found |= set(getattr(node, "loopvars", ()))
        found |= {name for name, value in node.extra_context.items() if _mentions(value.token, names)}
    return frozenset(found)


def _is_personal(node: Node, names: Names) -> bool:
    if isinstance(node, ExperienceNode | ExperienceValueNode | ClickURLNode):
        return True
    # No token of a node has the conditions of {% elif %}.
    conditions = " ".join(repr(condition) for condition, _ in getattr(node, "conditions_nodelists", ()))
    return not isinstance(node, TextNode | CacheNode | BlockNode) and _mentions(
        _read_contents(node) + conditions, names
    )


def _read_contents(node: Node) -> str:
    """Return the text of the node's tag in the template, without quoted strings."""
    return "" if node.token is None else _QUOTED.sub("", node.token.contents)


def _mentions(text: str, names: Names | set[str]) -> bool:
    """Return whether ``text`` reads one of the variables: ``hero``, ``hero.Title`` or ``request.personalization``."""
    return any(re.search(rf"(?<![\w.])(?:request\.)?{re.escape(name)}\b(?!\s*=)", text) for name in names)


def _quote(node: Any) -> str:
    opening, closing = ("{{", "}}") if isinstance(node, VariableNode) else ("{%", "%}")
    return f"{opening} {node.token.contents} {closing}"


def _describe(node: Any) -> str:
    return f"{node.origin.name}, line {node.token.lineno}"

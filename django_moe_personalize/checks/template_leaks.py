"""Find one visitor's content inside Django's ``{% cache %}``, which would show this content to all visitors.

Our tags refuse to render directly inside ``{% cache %}``. This module also finds content that comes from an include, a
block of a child template, a partial, an inclusion tag or a variable. It follows the literal names in compiled
templates. It skips a third-party node that it can't inspect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.template import Engine, Node, Template, engines
from django.template.backends.django import DjangoTemplates
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
_PAGE = re.compile(r"\{%\s*(cache|extends|load\b[^%]*\bmoe_personalize)\b")
_QUOTED = re.compile(r""""[^"]*"|'[^']*'""")

Names = frozenset[str]
Blocks = dict[str, list[BlockNode]]
Leak = tuple[str, str, str]
"""A tag or variable inside ``{% cache %}``, its place, and the place of the ``{% cache %}``, as ``file, line n``."""


def get_engines() -> list[Engine]:
    """Return the engines of Django's template language. If TEMPLATES has a mistake, Django's own checks report it."""
    with suppress(Exception):
        return [backend.engine for backend in engines.all() if isinstance(backend, DjangoTemplates)]
    return []


def find_leaks(engine: Engine) -> Iterable[Leak]:
    """Return the leaks in the templates of the engine's folders. Never raises.

    Reads every file. If one has ``{% cache %}``, compiles each template that has ``{% cache %}``, loads our tags, or
    extends another template.
    """
    sources = read_sources(engine)
    if not any(map(_CACHE.search, sources.values())):
        return ()
    search = _Search(engine)
    pages = [name for name, source in sources.items() if _PAGE.search(source)]
    return dict.fromkeys(leak for name in pages for leak in search.walk_page(name))


def read_sources(engine: Engine) -> dict[str, str]:
    """Return the source of each readable template by name. If two templates have the same name, use the first."""
    sources: dict[str, str] = {}
    loaders: list[Any] = []
    with suppress(Exception):
        loaders += engine.template_loaders
    for loader in loaders:
        with suppress(Exception):
            for folder in map(Path, loader.get_dirs()):
                for path in sorted(filter(Path.is_file, folder.rglob("*"))):
                    with suppress(OSError, UnicodeDecodeError):
                        sources.setdefault(path.relative_to(folder).as_posix(), path.read_text(engine.file_charset))
    return sources


class _Search:
    """Walk pages from their outermost parent, in the order of rendering. Follow all branches of conditions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._templates: dict[Any, Template | None] = {None: None}
        self._seen: set[tuple[int, int]] = set()

    def walk_page(self, name: str) -> Iterator[Leak]:
        """Yield the leaks of a page. The context processor gives every page the variable ``personalization``."""
        self._seen.clear()
        yield from self._walk_template(self._load(name), frozenset({"personalization"}), None)

    def _load(self, name: Any) -> Template | None:
        if name not in self._templates:
            self._templates[name] = None
            # Compiling a tag may raise any exception. The page that uses the template reports the mistake.
            with suppress(Exception):
                self._templates[name] = self._engine.get_template(name)
        return self._templates[name]

    def _walk_template(self, template: Template | None, names: Names, fragment: CacheNode | None) -> Iterator[Leak]:
        """Yield the leaks of ``template``. ``names`` are the variables with one visitor's content."""
        if template is None or (id(template), id(fragment)) in self._seen:
            return
        self._seen.add((id(template), id(fragment)))
        family = [template]
        for member in family:
            # A template extends at most one other template. The name may lead to no template, or in a circle.
            parents = [self._load(get_literal(node.parent_name)) for node in _find_nodes(member, ExtendsNode)]
            family += [parent for parent in parents if parent is not None and parent not in family]
        blocks: Blocks = {}
        for block in [block for member in family for block in _find_nodes(member, BlockNode)]:
            blocks.setdefault(block.name, []).append(block)
        yield from self._walk(family[-1].nodelist, names, fragment, blocks)

    def _walk(self, nodes: Any, names: Names, fragment: CacheNode | None, blocks: Blocks) -> Iterator[Leak]:
        for node in nodes:
            # A third-party node may give the attributes used here another meaning. If a node raises, skip it.
            with suppress(Exception):
                if fragment is not None and _is_personal(node, names):
                    yield _quote(node), _describe(node), _describe(fragment)
                else:
                    yield from self._walk_below(node, names | _find_names(node, names), fragment, blocks)
            if isinstance(node, NamedValueNode):
                names |= {node.name}

    def _walk_below(self, node: Node, names: Names, fragment: CacheNode | None, blocks: Blocks) -> Iterator[Leak]:
        if isinstance(node, CacheNode):
            fragment = fragment or node
            # {% cache 60 x hero.Title %} stores one fragment for each value of hero.Title, which is safe.
            names -= {name for name in names for vary in node.vary_on if _mentions(vary.token, {name})}
        for template in self._find_templates(node):
            yield from self._walk_template(template, names, fragment)
        for part in blocks.get(node.name, []) if isinstance(node, BlockNode) else [node]:
            for attribute in part.child_nodelists:
                yield from self._walk(getattr(part, attribute, ()), names, fragment, blocks)

    def _find_templates(self, node: Any) -> list[Template | None]:
        """Return the templates that ``node`` renders if it is an include, an inclusion tag or a partial (Django 6)."""
        found: list[Template | None] = []
        if isinstance(node, IncludeNode):
            found.append(self._load(get_literal(node.template)))
        elif isinstance(node, InclusionNode) and isinstance(node.filename, str):
            found.append(self._load(node.filename))
        # Only a partial has these attributes. Django 5.2 has no class for partials, so isinstance() can't tell.
        with suppress(Exception):
            found.append(node.partial_mapping[node.partial_name])
        return found


def _find_nodes(parent: Any, kind: type[Node]) -> list[Any]:
    with suppress(Exception):  # A node of another library may raise anything.
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
    # The token of an {% if %} doesn't contain the conditions of its {% elif %}.
    conditions = " ".join(repr(condition) for condition, _ in getattr(node, "conditions_nodelists", ()))
    is_plain = isinstance(node, TextNode | CacheNode | BlockNode)
    return not is_plain and _mentions(_read_contents(node) + conditions, names)


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

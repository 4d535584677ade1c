"""Find one visitor's content inside ``{% cache %}`` and similar tags, which would show this content to all visitors.

Our tags refuse to render directly inside such a tag. This module also finds content that comes from an include, a
block of a child template, a partial, an inclusion tag or a variable. It follows the literal names in compiled
templates. Where it can't follow, such as into ``{% include name %}`` or the tag of another library, it reports a gap.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from django.template import Engine, Node, NodeList, Origin, Template, TemplateDoesNotExist, TemplateSyntaxError, engines
from django.template.backends.django import DjangoTemplates
from django.template.base import TextNode, Token, TokenType, VariableNode
from django.template.library import InclusionNode, SimpleNode
from django.template.loader_tags import BlockNode, ExtendsNode, IncludeNode
from django.templatetags.cache import CacheNode
from django.templatetags.i18n import BlockTranslateNode

from django_moe_personalize.checks.foreign_code import may_render
from django_moe_personalize.planning import get_literal
from django_moe_personalize.templatetags.caches import PLACEHOLDERS, is_cache
from django_moe_personalize.templatetags.moe_personalize import (
    ClickURLNode,
    ExperienceNode,
    ExperienceValueNode,
    IdentityNode,
    NamedValueNode,
    ScriptsNode,
    StateNode,
)

_PAGE = re.compile(r"\{%\s*(extends|experience)\b|personaliz")
_PERSONAL = ExperienceNode | ExperienceValueNode | ClickURLNode | ScriptsNode | StateNode | IdentityNode
_QUOTED = re.compile(r""""[^"]*"|'[^']*'""")
_ASSIGNED = re.compile(r"\s(?:as|asvar)\s+(\w+)(?:\s+silent)?\s*$")
_HANDED_IN = frozenset({"children", "slot"})
"""The variables with the content that a template passes to a component of slippers or cotton."""

Names = frozenset[str]
Blocks = Mapping[str, list[BlockNode]]


class Leak(NamedTuple):
    """A tag or variable inside a tag that caches. A place is ``file, line n``.

    If ``certain`` is false, the check can't look into ``found``, so ``found`` may have one visitor's content.
    """

    cache: str
    cache_place: str
    found: str
    place: str
    certain: bool


class _Scope(NamedTuple):
    """What a node is rendered with: the variables with one visitor's content, the literals, and the tag that caches.

    ``assigned`` are more such variables, which the tags of this template have set so far (``{% url … as name %}``).
    """

    assigned: set[str]
    names: Names = frozenset({"personalization"})
    literals: Mapping[str, str] = MappingProxyType({})
    cache: Node | None = None
    blocks: Blocks = MappingProxyType({})
    overridden: tuple[BlockNode, ...] = ()
    """The blocks of the parents that ``{{ block.super }}`` shows here."""


def get_engines() -> list[Engine]:
    """Return the engines of Django's template language. If TEMPLATES has a mistake, Django's own checks report it."""
    with suppress(Exception):
        return [backend.engine for backend in engines.all() if isinstance(backend, DjangoTemplates)]
    return []


def find_leaks(engine: Engine) -> Iterable[Leak]:
    """Return the leaks in the templates of the engine's folders. Never raises.

    Reads every file. If one has a tag that caches, compiles each template that has such a tag, uses our tags or
    variables, or extends another template.
    """
    sources = read_sources(engine)
    caches = _compile_pattern(engine)
    cached = [name for name, source in sources.items() if caches.search(source)]
    if not cached:
        return ()
    search = _Search(engine, cached)
    pages = [*cached, *(name for name, source in sources.items() if _PAGE.search(source))]
    return dict.fromkeys(leak for name in dict.fromkeys(pages) for leak in search.walk_page(name))


def find_leaks_of_components(engine: Engine) -> Iterator[Leak]:
    """Yield the leaks in components of django-components that store what they render (``Cache.enabled``)."""
    library: Any = sys.modules.get("django_components")
    with suppress(Exception):
        for component in library.all_components() if library else ():
            with suppress(Exception):
                yield from _find_leaks_of_component(engine, component) if component.Cache.enabled else ()


def _find_leaks_of_component(engine: Engine, component: Any) -> Iterator[Leak]:
    source, file = component.template, component.template_file
    template = engine.get_template(file) if file else Template(source, Origin(component.__module__), engine=engine)
    cache: Any = Node()
    cache.origin, cache.token = template.origin, Token(TokenType.BLOCK, "component", lineno=1)
    for leak in _Search(engine, [])._walk_template(template, _Scope(set(), cache=cache)):
        yield leak._replace(cache=f"{component.__name__}.Cache", cache_place=component.__module__)


def _compile_pattern(engine: Engine) -> re.Pattern[str]:
    """Return a pattern that matches all tags that may cache. A library may register such a tag under any name."""
    names = {"cache"}
    with suppress(Exception):
        for library in [*engine.template_libraries.values(), *engine.template_builtins]:
            names |= {re.escape(name) for name, function in library.tags.items() if is_cache(name, function)}
    return re.compile(r"\{%\s*(\S*cach|(" + "|".join(names) + r")\b)")


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

    def __init__(self, engine: Engine, cached: list[str]) -> None:
        self._engine = engine
        self._cached = cached
        self._templates: dict[Any, Template | None] = {}
        self._seen: set[Any] = set()

    def walk_page(self, name: str) -> Iterator[Leak]:
        """Yield the leaks of a page. The context processor gives every page the variable ``personalization``."""
        self._seen.clear()
        with suppress(Exception):
            yield from self._walk_template(self._load(name), _Scope(set()))

    def _load(self, name: str) -> Template | None:
        """Return the template, or ``None`` if it is missing or broken: then the page that uses it shows nothing."""
        if name not in self._templates:
            with suppress(TemplateDoesNotExist, TemplateSyntaxError):
                self._templates[name] = self._engine.get_template(name)
        return self._templates.setdefault(name, None)

    def _walk_template(self, template: Template | None, scope: _Scope) -> Iterator[Leak]:
        state = (id(template), id(scope.cache), scope.names, tuple(sorted(scope.literals.items())))
        if template is None or state in self._seen:
            return
        self._seen.add(state)
        family, unknown = [template], None
        for member in family:
            # A template extends at most one other template. The name may lead to no template, or in a circle.
            for node in _find_nodes(member.nodelist, ExtendsNode):
                name = _find_literal(node.parent_name, scope)
                parent = None if name is None else self._load(name)
                unknown = node if name is None else None
                family += [parent] if parent is not None and parent not in family else []
        blocks: dict[str, list[BlockNode]] = {}
        for block in [block for member in family for block in _find_nodes(member.nodelist, BlockNode)]:
            blocks.setdefault(block.name, []).append(block)
        scope = scope._replace(blocks=blocks, assigned=set())
        if unknown is not None:
            yield from self._try_parents(unknown, scope)
        yield from self._walk(family[-1].nodelist, scope)

    def _try_parents(self, extends: Node, scope: _Scope) -> Iterator[Leak]:
        """Yield a gap for each template that caches a block, if the child of an unknown parent fills this block."""
        for cache in self._find_caches():
            names = {block.name for block in _find_nodes([cache], BlockNode)}
            filled = [block for name in names for block in scope.blocks.get(name, ())]
            if any(leak for block in filled for leak in self._walk(block.nodelist, scope._replace(cache=cache))):
                yield _build_leak(cache, extends, certain=False)

    def _find_caches(self) -> Iterator[Node]:
        for name in self._cached:
            with suppress(Exception):
                template = self._load(name)
                yield from filter(_is_cache, _find_nodes(template.nodelist if template else (), Node))

    def _walk(self, nodes: Any, scope: _Scope) -> Iterator[Leak]:
        for node in nodes:
            try:
                yield from self._look_at(node, scope)
            except Exception:
                # A node of another library may raise anything.
                if scope.cache is not None:
                    yield _build_leak(scope.cache, node, certain=False)
            scope.assigned.update(_find_assigned(node, scope.names | scope.assigned))

    def _look_at(self, node: Any, scope: _Scope) -> Iterator[Leak]:
        scope = scope._replace(names=scope.names | scope.assigned)
        if scope.cache is not None and _is_personal(node, scope.names):
            yield _build_leak(scope.cache, node, certain=True)
            return
        scope, nodelists, templates = _enter(node, scope), _find_nodelists(node), list[Template | None]()
        # The content of a tag that caches is in its nodelists, except for a tag such as {% cached_include %}.
        is_plain = scope.cache is None or (scope.cache is node and nodelists)
        try:
            templates = self._find_templates(node, scope)
            is_unknown = not is_plain and _is_unknown(node)
        except Exception:
            is_unknown = not is_plain
        if is_unknown and scope.cache is not None:
            yield _build_leak(scope.cache, node, certain=False)
        for template in templates:
            yield from self._walk_template(template, scope)
        if isinstance(node, BlockNode) and node.name in scope.blocks:
            yield from self._walk_blocks(scope.blocks[node.name], scope)
        elif scope.cache is not None and isinstance(node, VariableNode) and "block.super" in _read_contents(node):
            yield from self._walk_blocks(scope.overridden, scope)
        else:
            for nodelist in nodelists:
                yield from self._walk(nodelist, scope)

    def _walk_blocks(self, blocks: Sequence[BlockNode], scope: _Scope) -> Iterator[Leak]:
        """Yield the leaks of a block and of the parents' blocks with the same name."""
        for number, block in enumerate(blocks, start=1):
            yield from self._walk(block.nodelist, scope._replace(overridden=tuple(blocks[number:])))

    def _find_templates(self, node: Any, scope: _Scope) -> list[Template | None]:
        """Return the templates that an include, an inclusion tag or a partial renders. Raises LookupError for a gap."""
        if isinstance(node, IncludeNode | ExtendsNode):
            name = _find_literal(node.template if isinstance(node, IncludeNode) else node.parent_name, scope)
            if name is None:
                raise LookupError
            return [self._load(name)] if isinstance(node, IncludeNode) else []
        if isinstance(node, InclusionNode):
            names = node.filename if isinstance(node.filename, list | tuple) else [node.filename]
            return [self._load_any(name) for name in names]
        # Django 5.2 has no class for the partials of Django 6.0.
        return [node.partial_mapping[node.partial_name]] if type(node).__name__ == "PartialNode" else []

    def _load_any(self, template: Any) -> Template | None:
        template = getattr(template, "template", template)
        if isinstance(template, str):
            return self._load(template)
        if not isinstance(template, Template):
            raise LookupError
        return template


def _is_cache(node: Any) -> bool:
    tag = _read_contents(node).partition(" ")[0]
    # Django renders the template of an inclusion tag for each page.
    if isinstance(node, TextNode | VariableNode | InclusionNode) or not is_cache(tag, type(node)):
        return False
    return tag not in PLACEHOLDERS or bool(_find_nodelists(node))


def _is_unknown(node: Any) -> bool:
    """Return whether a node of another library may render a template, or content from outside of its template."""
    if isinstance(node, VariableNode):
        filters = [function for function, _ in node.filter_expression.filters]
        is_given = _mentions(_read_contents(node), {"request"}) and any(map(may_render, filters))
        return is_given or str(node.filter_expression.var) in _HANDED_IN
    kind: Any = type(node)
    if isinstance(node, SimpleNode | InclusionNode):
        # Without the context or the request, the function knows no visitor.
        function = node.func
        return (node.takes_context or _mentions(_read_contents(node), {"request"})) and may_render(function)
    names = frozenset({"nodelist", *(name for name, value in vars(node).items() if isinstance(value, NodeList))})
    # A library may have replaced the methods of Django's nodes.
    return not kind.__module__.startswith("django.") and may_render(kind.render, kind, names)


def _enter(node: Any, scope: _Scope) -> _Scope:
    """Return the scope of the children of ``node``."""
    names, literals, cache = scope.names, dict(scope.literals), scope.cache
    if isinstance(node, ExperienceNode):
        names |= {node.name}
    with suppress(Exception):  # see _Search._walk()
        if _mentions(_read_contents(node), names):
            names |= set(getattr(node, "loopvars", ()))
        for name, value in node.extra_context.items():
            literals.pop(name, None)
            if (literal := _find_literal(value, scope)) is not None:
                literals[name] = literal
            found = {f"{name}.personalization"} if value.token.endswith("request") else set()
            names |= {name} if _mentions(value.token, scope.names) else found
    if _is_cache(node):
        cache = cache or node
        if isinstance(node, CacheNode):
            # {% cache 60 x hero.Title %} stores one fragment for each value of hero.Title, which is safe.
            varied = [str(getattr(vary, "token", "")) for vary in node.vary_on]
            names -= {name for name in names for text in varied if _mentions(text, {name})}
    return scope._replace(names=names, literals=literals, cache=cache)


def _find_assigned(node: Any, names: Names) -> set[str]:
    """Return the variable with one visitor's content that ``node`` sets for the nodes after it."""
    if isinstance(node, NamedValueNode):
        return {node.name}
    contents = _read_contents(node)
    return set(_ASSIGNED.findall(contents)) if _mentions(contents, names) else set()


def _find_literal(expression: Any, scope: _Scope) -> str | None:
    """Return the text of a quoted literal, or of a variable that a ``{% with %}`` sets to a literal."""
    literal = get_literal(expression)
    return literal if literal is not None or expression.filters else scope.literals.get(str(expression.var))


def _find_nodelists(node: Any) -> list[NodeList]:
    """Return the children of a node. Some nodes have nodelists that ``child_nodelists`` doesn't name."""
    found = list(getattr(node, "__dict__", {}).values())
    with suppress(Exception):  # A node of another library may raise anything.
        found += [value for name in node.child_nodelists if id(value := getattr(node, name, ())) not in map(id, found)]
    return [value for value in found if isinstance(value, NodeList)]


def _find_nodes(nodes: Any, kind: type[Node]) -> list[Any]:
    return [found for node in nodes for found in _iterate(node) if isinstance(found, kind)]


def _iterate(node: Any) -> Iterator[Any]:
    yield node
    for nodelist in _find_nodelists(node):
        with suppress(Exception):
            for child in nodelist:
                yield from _iterate(child)


def _is_personal(node: Any, names: Names) -> bool:
    if isinstance(node, _PERSONAL):
        return True
    texts = [_read_contents(node)]
    # The token of an {% if %} doesn't contain the conditions of its {% elif %}.
    with suppress(Exception):
        texts += [repr(condition) for condition, _ in node.conditions_nodelists]
    if isinstance(node, BlockTranslateNode):
        texts += [part.contents for part in [*node.singular, *node.plural] if part.token_type is TokenType.VAR]
    is_plain = isinstance(node, TextNode | CacheNode | BlockNode)
    return not is_plain and _mentions(" ".join(texts), names)


def _read_contents(node: Any) -> str:
    """Return the text of the node's tag in the template, without quoted strings."""
    with suppress(Exception):
        return _QUOTED.sub("", node.token.contents)
    return ""


def _mentions(text: str, names: Iterable[str]) -> bool:
    """Return whether ``text`` reads one of the variables: ``hero``, ``hero.Title`` or ``request.personalization``."""
    path = r"(?<![\w.])(?:[\w.]*\brequest\.)?"
    return any(re.search(rf"{path}{re.escape(name)}\b(?!\s*=)", text) for name in names)


def _build_leak(cache: Node, node: Any, *, certain: bool) -> Leak:
    tag = f"{{% {_read_contents(cache).partition(' ')[0]} %}}"
    found = f"a {type(node).__name__}"
    with suppress(Exception):
        opening, closing = ("{{", "}}") if isinstance(node, VariableNode) else ("{%", "%}")
        found = f"{opening} {node.token.contents} {closing}"
    return Leak(tag, _describe(cache), found, _describe(node), certain)


def _describe(node: Any) -> str:
    with suppress(Exception):
        return f"{node.origin.name}, line {node.token.lineno}"
    return "an unknown place"

"""Find the texts for which a name or an expression stands in Python code, without running the code."""

from __future__ import annotations

import ast
import sys
from collections import ChainMap
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from django.conf import settings as django_settings

MAX_DEPTH: Final = 10
"""Names that are followed from one name. Names may refer to each other endlessly."""

Scope = ChainMap[str, ast.AST | None]
"""What each name stands for: an expression, a class, an import, or ``None`` for a parameter."""


class Text(NamedTuple):
    """A text in the code, at the place where it is written."""

    value: str
    file: str
    line: int


@cache
def _parse(path: Path, stamp: int) -> ast.Module:
    # A file that Python can't read is empty here. Importing it raises the same exception.
    with suppress(OSError, SyntaxError, ValueError):
        return ast.parse(path.read_bytes())
    return ast.Module([], [])


def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file. A file that can't be read is empty."""
    try:
        return _parse(path, path.stat().st_mtime_ns)
    except OSError:
        return ast.Module([], [])


class Module:
    """The names of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = parse(path)
        self.scope: Scope = ChainMap(bind(self.tree))
        self._stars = [node for name, node in self.scope.items() if name.startswith("*")]

    def find_texts(self, node: ast.AST | None, scope: Scope, depth: int = 0) -> Iterator[Text]:
        """Yield the texts of an expression: of a text, a list, or a name that stands for them."""
        if depth > MAX_DEPTH:
            return
        match node:
            case ast.Constant(value=str(value)):
                yield Text(value, str(self.path), node.lineno)
            case ast.List() | ast.Tuple() | ast.Set():
                for item in node.elts:
                    yield from self.find_texts(item, scope, depth)
            case ast.Starred() | ast.NamedExpr():
                yield from self.find_texts(node.value, scope, depth)
            case (
                ast.BinOp(left=ast.List() | ast.Tuple() as one, op=ast.Add(), right=other)
                | ast.BinOp(left=one, op=ast.Add(), right=ast.List() | ast.Tuple() as other)
                | ast.IfExp(body=one, orelse=other)
            ):
                yield from self.find_texts(one, scope, depth)
                yield from self.find_texts(other, scope, depth)
            case ast.Subscript(slice=member):
                module, found, inner = self.find(node.value, scope)
                for key, item in zip(found.keys, found.values, strict=True) if isinstance(found, ast.Dict) else ():
                    # A key that is computed may be any member.
                    if not isinstance(member, ast.Constant) or ast.dump(member) == ast.dump(key or member):
                        yield from module.find_texts(item, inner, depth + 1)
            case ast.Name() | ast.Attribute():
                # The text of a member of an Enum is its value.
                is_value = isinstance(node, ast.Attribute) and node.attr == "value"
                module, found, inner = self.find(node.value if is_value else node, scope)  # type: ignore[union-attr]
                yield from module.find_texts(found, inner, depth + 1)

    def find(self, node: ast.AST | None, scope: Scope, depth: int = 0) -> tuple[Module, ast.AST | None, Scope]:
        """Return what a dotted name stands for, with its module and its scope."""
        found: ast.AST | None = None
        if isinstance(node, ast.Name):
            # A name that stands for itself (x = x) has its value from outside.
            found, scope = scope.get(node.id), self._find_outer(scope, node.id)
        elif isinstance(node, ast.Attribute) and depth < MAX_DEPTH:
            module, owner, inner = self.find(node.value, scope, depth + 1)
            if isinstance(owner, ast.ClassDef):
                return module, bind(owner).get(node.attr), inner.new_child(bind(owner))
            if isinstance(owner, ast.Module):
                return module.find(ast.Name(node.attr), module.scope, depth + 1)
        if isinstance(node, ast.Name) and depth < MAX_DEPTH:
            is_import = isinstance(found, ast.Import | ast.ImportFrom)
            # A name that the module doesn't set may be from an import of all names.
            for each in [found] if is_import else self._stars if found is None else []:
                module, value, inner = self._follow(each, node.id, depth)  # type: ignore[arg-type]
                if value is not None or is_import:
                    return module, value, inner
        return self, found, scope

    def _find_outer(self, scope: Scope, name: str) -> Scope:
        while name not in scope.maps[0] and len(scope.maps) > 1:
            scope = scope.parents
        return scope

    def _follow(self, node: ast.Import | ast.ImportFrom, name: str, depth: int) -> tuple[Module, ast.AST | None, Scope]:
        """Return what an imported name stands for: a whole module, or a name of a module."""
        imported = next((one.name for one in node.names if (one.asname or one.name) == name), "*")
        if isinstance(node, ast.Import):
            module = self._open(imported, 0)
            return (module, module.tree, module.scope) if module else (self, None, self.scope)
        name_of_module = f"{node.module or ''}.{imported}".strip(".")
        if name_of_module == "django.conf.settings":
            name_of_module = getattr(django_settings, "SETTINGS_MODULE", None) or ""
        if (inner := self._open(name_of_module, node.level)) is not None:
            return inner, inner.tree, inner.scope
        module = self._open(node.module or "", node.level)
        if module is None:
            return self, None, self.scope
        return module.find(ast.Name(name if imported == "*" else imported), module.scope, depth + 1)

    def _open(self, name: str, level: int) -> Module | None:
        """Return the module of an import statement, or ``None`` for a module that has no file of Python."""
        loaded = getattr(sys.modules.get(name), "__file__", None) if not level else None
        # The settings may have no module, and a broken import may have too many dots.
        folders = [*self.path.parents][level - 1 : level] if level else map(Path, sys.path if name else ())
        files = [folder.joinpath(*name.split("."), *end) for folder in folders for end in (["__init__"], [])]
        for file in [Path(loaded)] if loaded else [file.with_name(f"{file.name}.py") for file in files]:
            if file.suffix == ".py" and file.is_file():
                return open_module(file.resolve())
        return None


@cache
def _open_module(path: Path, stamp: int) -> Module:
    return Module(path)


def open_module(path: Path) -> Module:
    """Return the names of a file."""
    return _open_module(path, path.stat().st_mtime_ns)


def bind(owner: ast.AST) -> dict[str, ast.AST | None]:
    """Return what the names of a module, a class or a function stand for, without those of the functions inside."""
    names: dict[str, ast.AST | None] = {}
    if isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        parameters = [node.arg for node in ast.walk(owner.args) if isinstance(node, ast.arg)]
        # The class of a method gives "self" and "cls" a value.
        names |= dict.fromkeys({*parameters} - {"self", "cls"})
        positional = [node.arg for node in [*owner.args.posonlyargs, *owner.args.args]]
        names |= zip(positional[::-1], owner.args.defaults[::-1], strict=False)
        names |= zip([node.arg for node in owner.args.kwonlyargs], owner.args.kw_defaults, strict=True)
    queue = list(ast.iter_child_nodes(owner))
    for node in queue:
        match node:
            case ast.Assign():
                names.update((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()) | ast.NamedExpr(target=ast.Name(id=name)):
                names[name] = node.value
            case ast.For(target=ast.Name(id=name)) | ast.AsyncFor(target=ast.Name(id=name)):
                names[name] = node.iter
            case ast.comprehension(target=ast.Name(id=name)):
                names[name] = node.iter
            case ast.ClassDef():
                names[node.name] = node
            case ast.Import() | ast.ImportFrom():
                found = [one.asname or one.name for one in node.names]
                names.update((f"*{node.lineno}" if name == "*" else name, node) for name in found)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            queue += ast.iter_child_nodes(node)
    return names

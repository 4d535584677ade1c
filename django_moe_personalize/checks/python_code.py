"""Find experience keys in the Python code of a site, without running the code."""

from __future__ import annotations

import ast
import sys
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final

from django.apps import apps
from django.conf import settings as django_settings

READS: Final = frozenset({"get", "aget", "prefetch", "aprefetch", "load", "aload", "track_impression", "track_click"})
"""The methods of ``request.personalization`` that take keys."""

CALLS: Final = frozenset(
    {"personalize", "fetch_experience", "afetch_experience", "fetch_experiences", "afetch_experiences"}
)
"""The package's functions that take keys."""

_ARGUMENTS: Final = frozenset({"experience_key", "experience_keys", "experiences", "key"})
_SKIPPED: Final = frozenset({"migrations", "tests", "node_modules", "site-packages", "dist-packages", "venv"})
_PACKAGE: Final = Path(__file__).resolve().parents[1]


def list_files() -> list[Path]:
    """Return the Python files of the site's own apps, and those next to ROOT_URLCONF. Leave out tests."""
    found: dict[Path, None] = {}
    for config in apps.get_app_configs():
        folder = Path(config.path).resolve()
        if _SKIPPED.isdisjoint(folder.parts) and _PACKAGE not in (folder, *folder.parents):
            found |= dict.fromkeys(path for path in sorted(folder.rglob("*.py")) if _is_own(path, folder))
    # If ROOT_URLCONF has a mistake, Django's own checks report it.
    with suppress(Exception):
        folder = Path(str(import_module(django_settings.ROOT_URLCONF).__file__)).resolve().parent
        found |= dict.fromkeys(path for path in sorted(folder.glob("*.py")) if _is_own(path, folder))
    return list(found)


def _is_own(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    is_test = path.name in ("tests.py", "conftest.py") or path.name.startswith("test_")
    return not is_test and _SKIPPED.isdisjoint(parts) and not any(part.startswith(".") for part in parts)


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


def find_keys_in_code(path: Path) -> Iterator[tuple[str, int]]:
    """Yield each key in a file, with its line."""
    tree = parse(path)
    if "personaliz" in path.read_text(errors="replace"):
        yield from _Finder(tree).find()


class _Finder:
    """Look through one module. A name that the module sets to a text stands for this text."""

    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self._constants: dict[str, ast.Constant] = {}
        self._names = {"personalization"}
        self._mixins = {"PersonalizeMixin"}
        self._calls = {name: name for name in CALLS}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                self._learn(node.targets, node.value)
            elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
                self._learn([node.target], node.value)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("django_moe_personalize"):
                self._calls |= {one.asname: one.name for one in node.names if one.asname and one.name in CALLS}
                self._mixins |= {one.asname for one in node.names if one.asname and one.name in self._mixins}

    def _learn(self, targets: Iterable[ast.expr], value: ast.expr) -> None:
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            self._constants.update(dict.fromkeys(names, value))
        elif _name(value) == "personalization":
            self._names.update(names)

    def find(self) -> Iterator[tuple[str, int]]:
        """Yield the keys with their lines."""
        for node in ast.walk(self._tree):
            for value in self._list_values(node):
                items = value.elts if isinstance(value, ast.List | ast.Tuple | ast.Set) else [value]
                for item in items:
                    literal = self._constants.get(item.id) if isinstance(item, ast.Name) else item
                    if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
                        yield literal.value, item.lineno

    def _list_values(self, node: ast.AST) -> list[ast.expr]:
        """Return the expressions in which ``node`` has keys."""
        match node:
            case ast.Subscript() if self._is_personalization(node.value):
                return [node.slice]
            case ast.Compare(ops=[ast.In() | ast.NotIn()]) if self._is_personalization(node.comparators[0]):
                return [node.left]
            case ast.Call(func=ast.Attribute(attr=name)) if self._is_personalization(node.func.value):  # type: ignore[attr-defined]
                values = [*node.args, *(pair.value for pair in node.keywords if pair.arg in _ARGUMENTS)]
                first = values[:1] if name in ("get", "aget", "track_impression", "track_click") else values
                return first if name in READS else []
            case ast.Call() if self._calls.get(_name(node.func)):
                return [*node.args, *(pair.value for pair in node.keywords if pair.arg in _ARGUMENTS)]
            case ast.Call(func=ast.Attribute(attr="as_view")):
                return [pair.value for pair in node.keywords if pair.arg == "experiences"]
            case ast.ClassDef() if self._is_mixed(node):
                return [statement.value for statement in node.body if _sets(statement, "experiences")]  # type: ignore[attr-defined]
        return []

    def _is_personalization(self, node: ast.expr) -> bool:
        return _name(node) in self._names if isinstance(node, ast.Name) else _name(node) == "personalization"

    def _is_mixed(self, node: ast.ClassDef) -> bool:
        if is_mixed := any(_name(base) in self._mixins for base in node.bases):
            # A later class of this module may inherit from this class.
            self._mixins.add(node.name)
        return is_mixed


def _name(node: ast.expr) -> str:
    """Return the last name of a dotted path."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _sets(statement: ast.stmt, name: str) -> bool:
    """Return whether a statement of a class sets the attribute ``name`` to a value, or annotates it."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    is_set = isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None
    return is_set and any(isinstance(target, ast.Name) and target.id == name for target in targets)


def find_variable(file: str, qualname: str, name: str) -> int:
    """Return the line on which a class sets or annotates ``name``, or 0."""
    for node in ast.walk(parse(Path(file))):
        if isinstance(node, ast.ClassDef) and node.name == qualname.rpartition(".")[2]:
            for statement in node.body:
                targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", 0)]
                if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                    return statement.lineno
    return 0


def find_constants(module: ModuleType, wanted: Container[object]) -> list[tuple[str, str, int]]:
    """Return each of the ``wanted`` texts with its file and its line, in a module and the modules of which it is made.

    Settings often begin with ``from mysite.base import *``.
    """
    found: list[tuple[str, str, int]] = []
    modules = [module]
    for current in modules:
        path = Path(getattr(current, "__file__", None) or "").resolve()
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in wanted:
                found.append((node.value, str(path), node.lineno))
            elif isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                base = current.__name__.rsplit(".", node.level)[0] + "." if node.level else ""
                more = sys.modules.get(f"{base}{node.module or ''}".rstrip("."))
                modules += [more] if more is not None and more not in modules else []
    return found

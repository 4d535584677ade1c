"""Find experience keys in the Python code of a site, without running the code."""

from __future__ import annotations

import ast
import sys
from collections.abc import Container, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final

from django.apps import apps
from django.conf import settings as django_settings

from django_moe_personalize.checks.python_names import MAX_DEPTH, Module, Scope, Text, bind, open_module, parse

READS: Final = frozenset({"get", "aget", "prefetch", "aprefetch", "load", "aload", "track_impression", "track_click"})
"""The methods of ``request.personalization`` that take keys."""

CALLS: Final = frozenset(
    {"personalize", "fetch_experience", "afetch_experience", "fetch_experiences", "afetch_experiences"}
)
"""The package's functions that take keys."""

_ARGUMENTS: Final = frozenset({"experience_key", "experience_keys", "experiences", "key"})
_SKIPPED: Final = frozenset({"migrations", "tests", "node_modules", "site-packages", "dist-packages", "venv"})
_PACKAGE: Final = Path(__file__).resolve().parents[1]
_MIXINS: Final = _PACKAGE / "mixins.py"


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


def find_keys_in_code(path: Path) -> Iterator[Text]:
    """Yield each key that a file uses, at the place where the key is written. This may be in another file."""
    if "personaliz" in (text := path.read_text(errors="replace")) or "experiences" in text:
        yield from _Finder(open_module(path)).find()


class _Finder:
    """Look through one module. A name that is set to a text, or to a list of texts, stands for them."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._calls = {name: name for name in CALLS}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("django_moe_personalize"):
                self._calls |= {one.asname: one.name for one in node.names if one.asname and one.name in CALLS}

    def find(self) -> Iterator[Text]:
        """Yield the keys with their places."""
        queue: list[tuple[ast.AST, Scope]] = [(self._module.tree, self._module.scope)]
        for node, outer in queue:
            scope = outer
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
                scope = outer.new_child(bind(node))
            if isinstance(node, ast.ClassDef):
                scope.maps[0].update(self=node, cls=node)
            queue += [(child, scope) for child in ast.iter_child_nodes(node)]
            for value in self._list_values(node, outer):
                yield from self._module.find_texts(value, scope)

    def _list_values(self, node: ast.AST, scope: Scope) -> list[ast.expr]:
        """Return the expressions in which ``node`` has keys."""
        match node:
            case ast.Subscript() if self._is_personalization(node.value, scope):
                return [node.slice]
            case ast.Compare(ops=[ast.In() | ast.NotIn()]) if self._is_personalization(node.comparators[0], scope):
                return [node.left]
            case ast.Call(func=ast.Attribute(attr=name, value=owner)) if self._is_personalization(owner, scope):
                values = [*node.args, *(pair.value for pair in node.keywords if pair.arg in _ARGUMENTS)]
                first = values[:1] if name in ("get", "aget", "track_impression", "track_click") else values
                return first if name in READS else []
            case ast.Call() if self._calls.get(_name(node.func)):
                return [*node.args, *(pair.value for pair in node.keywords if pair.arg in _ARGUMENTS)]
            case ast.Call(func=ast.Attribute(attr="as_view")):
                return [pair.value for pair in node.keywords if pair.arg == "experiences"]
            case ast.ClassDef() if _is_mixed(self._module, node, scope):
                return [statement.value for statement in node.body if _sets(statement, "experiences")]  # type: ignore[attr-defined]
        return []

    def _is_personalization(self, node: ast.AST | None, scope: Scope) -> bool:
        if isinstance(node, ast.Name) and node.id != "personalization":
            # Almost all calls are of other objects, so don't follow imports.
            node = scope.get(node.id)
        return _name(node) == "personalization"


def _is_mixed(module: Module, node: ast.ClassDef, scope: Scope, depth: int = 0) -> bool:
    """Return whether a class inherits from PersonalizeMixin, also by way of classes in other files."""
    for base in node.bases:
        owner, found, inner = module.find(base, scope)
        if isinstance(found, ast.ClassDef):
            is_own = owner.path == _MIXINS and found.name == "PersonalizeMixin"
            if is_own or (depth < MAX_DEPTH and _is_mixed(owner, found, inner, depth + 1)):
                return True
    return False


def _name(node: ast.AST | None) -> str:
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
    """Return each of the ``wanted`` texts with its file and its line, in a module and the site's modules it imports.

    Settings often begin with ``from mysite.base import *``.
    """
    found: list[tuple[str, str, int]] = []
    modules = [module]
    for current in modules:
        path = Path(getattr(current, "__file__", None) or "").resolve()
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in wanted:
                found.append((node.value, str(path), node.lineno))
            elif isinstance(node, ast.ImportFrom):
                modules += [more for more in _list_imported(current, node) if more not in modules]
    return found


def _list_imported(module: ModuleType, node: ast.ImportFrom) -> list[ModuleType]:
    """Return the modules of the site that an import statement names. Django has loaded them."""
    name = node.module or ""
    if node.level:
        package = (module.__package__ or module.__name__.rpartition(".")[0]).split(".")
        name = ".".join([*package[: len(package) + 1 - node.level], *filter(None, [name])])
    loaded = [sys.modules.get(name), *(sys.modules.get(f"{name}.{one.name}") for one in node.names)]
    return [more for more in loaded if more is not None and _is_of_site(more)]


def _is_of_site(module: ModuleType) -> bool:
    path = Path(getattr(module, "__file__", None) or "").resolve()
    is_library = module.__name__.partition(".")[0] in sys.stdlib_module_names or "site-packages" in path.parts
    return not is_library and _PACKAGE not in path.parents

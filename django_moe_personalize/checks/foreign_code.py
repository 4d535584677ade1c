"""Tell whether the code of another library may render a template, which the search for leaks can't follow.

The search reads the source of a tag's function and of the functions that it calls. It runs none of them.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any, Final

MAX_FUNCTIONS: Final = 100
"""Functions that are read for one tag. A tag that calls more functions counts as unknown."""

_KNOWN = sys.stdlib_module_names | {"django"}
_CONTEXT = frozenset({"context", "ctx", "request"})
_RENDERS = re.compile(r"render(?!ed)|get_template|select_template|personaliz|experience|^Template$|TemplateResponse")


@functools.lru_cache(maxsize=1024)
def may_render(function: Any, owner: type | None = None, nodelists: frozenset[str] = frozenset()) -> bool:
    """Return whether ``function`` may render a template, or may read an experience. Never raises.

    ``function`` may be a method of the class ``owner``. It may render the attributes ``nodelists`` of its node, which
    the caller follows. If the code can't be read, or passes the template's context to code that can't be found, the
    result is True.
    """
    queue = [function]
    try:
        for called in queue:
            queue += [found for found in _find_called(called, owner, nodelists) if found not in queue]
            if len(queue) > MAX_FUNCTIONS:
                return True
    except Exception:
        return True
    return False


def _find_called(function: Any, owner: type | None, nodelists: frozenset[str]) -> Iterator[Any]:
    if isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(getattr(function, "__func__", function))
    if function.__module__.partition(".")[0] in _KNOWN:
        return
    if isinstance(function, type):
        yield from (found for found in vars(function).values() if isinstance(found, FunctionType))
        return
    variables = inspect.getclosurevars(function)
    names = {**variables.builtins, **variables.globals, **variables.nonlocals, "self": owner}
    followed = set[int]()
    for part in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(part, ast.Call):
            if isinstance(part.func, ast.Attribute) and getattr(part.func.value, "attr", None) in nodelists:
                followed.add(id(part.func))
            elif (found := _resolve(part.func, names)) is not None:
                yield found
            elif getattr(part.func, "attr", "") != "resolve" and _CONTEXT.intersection(_find_arguments(part)):
                raise LookupError("code that can't be found")
        name = part.name if isinstance(part, ast.alias) else getattr(part, "attr", None) or getattr(part, "id", "")
        if id(part) not in followed and _RENDERS.search(str(name)):
            raise LookupError("code that renders a template")


def _resolve(target: ast.expr, names: dict[str, Any]) -> Any:
    """Return the function or class that is called, or ``None`` for a method of an object that isn't known."""
    if isinstance(target, ast.Name):
        return names.get(target.id)
    if not isinstance(target, ast.Attribute):
        return None
    base = _resolve(target.value, names)
    return getattr(base, target.attr, None) if isinstance(base, type | ModuleType) else None


def _find_arguments(call: ast.Call) -> Iterator[str]:
    for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
        yield getattr(argument, "id", "")

"""Call a function of the site that a setting names by its dotted path, from sync or async code.

``CONSENT``, ``IDENTIFY`` and ``ATTRIBUTES`` name such functions. Each may be sync or async, and pages call it from
WSGI and ASGI. Every failure becomes one HookError. Its message leaves out the text of the site's exception, because
that text may quote the visitor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.utils.module_loading import import_string


class HookError(Exception):
    """A function of the site raised an exception or returned a wrong value. The message is safe to log."""

    @classmethod
    def build(cls, source: str, error: Exception) -> HookError:
        """Return the error for ``source``, a dotted path, that raised ``error``."""
        return error if isinstance(error, HookError) else cls(f"{source} raised {type(error).__name__}")


def call(path: str, request: Any, expected: type[Any] | tuple[type[Any], ...]) -> Any:
    """Call the function at ``path`` with ``request`` and return its result, an instance of ``expected``.

    Raises HookError.
    """
    try:
        function = import_string(path)
        result = (async_to_sync(function) if _is_async(function) else function)(request)
    except Exception as error:
        raise HookError.build(path, error) from None
    return _check(path, result, expected)


async def acall(path: str, request: Any, expected: type[Any] | tuple[type[Any], ...]) -> Any:
    """See call(). A sync function runs thread-sensitively, because it may read the session or the database."""
    try:
        function = import_string(path)
        afunction = function if _is_async(function) else sync_to_async(function, thread_sensitive=True)
        result = await afunction(request)
    except Exception as error:
        raise HookError.build(path, error) from None
    return _check(path, result, expected)


def _is_async(function: Callable[..., Any]) -> bool:
    """Return whether calling ``function``, or an object with ``async def __call__``, gives a coroutine."""
    return iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)


def _check(path: str, result: object, expected: type[Any] | tuple[type[Any], ...]) -> object:
    if not isinstance(result, expected):
        raise HookError(f"{path} returned a value of type {type(result).__name__}")
    return result

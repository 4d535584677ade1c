"""Call a function of the site that a setting names by its dotted path, from sync or async code.

``CONSENT``, ``IDENTIFY`` and ``ATTRIBUTES`` are the site's own functions of the request, written
either way and needed both ways. Whatever they raise becomes one CallableError without the
exception's text, which may quote a visitor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.utils.module_loading import import_string

from django_moe_personalize.runtime import Runtime, part


class CallableError(Exception):
    """A site's callable raised or returned what it may not; the message names types and the path alone."""

    @classmethod
    def build(cls, source: str, error: Exception) -> CallableError:
        """Build the error for ``source``, a dotted path, that raised ``error``."""
        return error if isinstance(error, CallableError) else cls(f"{source} raised {type(error).__name__}")


def call(path: str, request: Any, expected: type[Any] | tuple[type[Any], ...]) -> Any:
    """Return what the function at ``path`` answers for ``request``, an instance of ``expected``.

    An async function runs through asgiref's ``async_to_sync``. Raises CallableError.
    """
    try:
        function, is_async = _resolve(path)
        answer = async_to_sync(function)(request) if is_async else function(request)
    except Exception as error:
        raise CallableError.build(path, error) from None
    return _check(path, answer, expected)


async def acall(path: str, request: Any, expected: type[Any] | tuple[type[Any], ...]) -> Any:
    """See call(). A sync function runs thread-sensitively: it may read the session or the database."""
    try:
        function, is_async = _resolve(path)
        answer = await (function(request) if is_async else sync_to_async(function, thread_sensitive=True)(request))
    except Exception as error:
        raise CallableError.build(path, error) from None
    return _check(path, answer, expected)


@part
def _get_resolved(runtime: Runtime) -> dict[str, tuple[Callable[..., Any], bool]]:
    """Return the functions resolved so far by path: importing one by its path takes longer than most calls."""
    return {}


def _resolve(path: str) -> tuple[Callable[..., Any], bool]:
    """Return the function at ``path`` and whether calling it gives a coroutine."""
    resolved = _get_resolved()
    if path not in resolved:
        function = import_string(path)
        resolved[path] = function, iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)
    return resolved[path]


def _check(path: str, answer: object, expected: type[Any] | tuple[type[Any], ...]) -> object:
    if not isinstance(answer, expected):
        raise CallableError(f"{path} returned a value of type {type(answer).__name__}")
    return answer

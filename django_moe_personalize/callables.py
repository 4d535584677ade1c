"""Call what a site named by a dotted path, sync or async; say a thing once in the log.

``CONSENT``, ``IDENTIFY`` and ``ATTRIBUTES`` are the site's own functions of the request, written
either way and needed both ways. Whatever they raise becomes one CallableError without the
exception's text, which may quote a visitor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, Final

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.core.signals import setting_changed
from django.dispatch import receiver
from django.utils.module_loading import import_string

logger = logging.getLogger("django_moe_personalize")

MAX_LOGGED: Final = 1024
"""Keys that log_once() keeps; past them it forgets all and may say each once more."""

_logged: dict[Hashable, object] = {}


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


def log_once(key: Hashable, message: str, *args: object, level: int = logging.WARNING) -> None:
    """Log ``message % args`` when ``key`` is new to this process.

    Key and arguments are made of code and settings, never of what a visitor sent: a visitor could
    fill the log, and personal data has no place in it.
    """
    mine = object()
    # setdefault is atomic, so of many threads that fail together one speaks.
    if _logged.setdefault(key, mine) is mine:
        logger.log(level, message, *args)
        if len(_logged) > MAX_LOGGED:
            _logged.clear()


@lru_cache(maxsize=128)
def _resolve(path: str) -> tuple[Callable[..., Any], bool]:
    """Return the function at ``path`` and whether calling it gives a coroutine."""
    function = import_string(path)
    return function, iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)


def _check(path: str, answer: object, expected: type[Any] | tuple[type[Any], ...]) -> object:
    if not isinstance(answer, expected):
        raise CallableError(f"{path} returned a value of type {type(answer).__name__}")
    return answer


@receiver(setting_changed, dispatch_uid=f"{__name__}.forget_callables")
def forget_callables(*, setting: str, **kwargs: object) -> None:
    """Forget what was imported and what was said when a test changes the settings."""
    if setting == "MOE_PERSONALIZE":
        _resolve.cache_clear()
        _logged.clear()

"""``@personalize``: say which experiences a view needs, so that they travel in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest

from django_moe_personalize.planning import declare_keys

P = ParamSpec("P")
R = TypeVar("R")


def personalize(*experience_keys: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator for sync and async views that need ``experience_keys``.

    The middleware reads the keys from the view and asks before the view runs. Where the view is
    out of its sight (a method, a decorator that hides what it wraps), the wrapper itself asks.
    Raises ValueError for keys that are none, as in ``@personalize`` without parentheses.
    """

    def decorator(view: Callable[P, R]) -> Callable[P, R]:
        if iscoroutinefunction(view):

            @functools.wraps(view)
            async def awrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
                if (personalization := _find_personalization(args)) is not None:
                    await personalization.aprefetch(*experience_keys)
                return await cast(Callable[P, Any], view)(*args, **kwargs)

            wrapper = cast(Callable[P, R], awrapper)
        else:

            @functools.wraps(view)
            def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
                if (personalization := _find_personalization(args)) is not None:
                    personalization.prefetch(*experience_keys)
                return view(*args, **kwargs)

        declare_keys(wrapper, experience_keys)
        return wrapper

    return decorator


def _find_personalization(args: tuple[Any, ...]) -> Any:
    """Return what the middleware attached to the request among a view's or a method's first arguments."""
    request = next((arg for arg in args[:2] if isinstance(arg, HttpRequest)), None)
    return getattr(request, "personalization", None)

"""``@personalize``: declare the experiences of a view, so that the page fetches them early, in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest

from django_moe_personalize.context import get_page
from django_moe_personalize.page import Page
from django_moe_personalize.planning import declare_keys

if TYPE_CHECKING:
    from django_moe_personalize.schemas import ExperienceSchema

P = ParamSpec("P")
R = TypeVar("R")


def personalize(*experience_keys: str | type[ExperienceSchema]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator for sync and async views that need ``experience_keys``. A schema stands for its key.

    The middleware reads the keys from the view and starts the call before the view runs. The middleware can't see the
    keys of a method, or of a view inside a decorator that doesn't copy attributes. Then this decorator starts the call.
    Raises ValueError if a key is empty or not a string, as in ``@personalize`` without parentheses.
    """

    def decorator(view: Callable[P, R]) -> Callable[P, R]:
        if iscoroutinefunction(view):

            @functools.wraps(view)
            async def awrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
                if (page := _find_page(args, kwargs)) is not None:
                    await page.aload(*keys)
                return await cast(Callable[P, Any], view)(*args, **kwargs)

            wrapper = cast(Callable[P, R], awrapper)
        else:

            @functools.wraps(view)
            def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
                if (page := _find_page(args, kwargs)) is not None:
                    page.prefetch(*keys)
                return view(*args, **kwargs)

        keys = declare_keys(wrapper, experience_keys)
        return wrapper

    return decorator


def _find_page(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Page | None:
    """Return the page of the request among the arguments of a view or a method, or of the view that has the method."""
    for arg in (*args[:2], kwargs.get("request"), *[getattr(view, "request", None) for view in args[:1]]):
        # Django REST framework wraps Django's request.
        request = getattr(arg, "_request", arg)
        if isinstance(request, HttpRequest):
            return get_page(request)
    return None

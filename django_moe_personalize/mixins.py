"""``PersonalizeMixin``: ``@personalize`` for class-based views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from django.http.response import HttpResponseBase

from django_moe_personalize.planning import declare_keys


class PersonalizeMixin:
    """Declare a class-based view's keys in ``experiences``. List this mixin before the view's base class."""

    experiences: Sequence[str] = ()

    # Type checkers use the method of the view's base class. pyright accepts no two bases that both have it.
    if not TYPE_CHECKING:

        @classmethod
        def as_view(cls, *args: Any, **initkwargs: Any) -> Callable[..., HttpResponseBase]:
            """Return the view with its declared keys. Raises ValueError for keys that aren't non-empty strings."""
            view = super().as_view(*args, **initkwargs)
            declare_keys(view, initkwargs.get("experiences", cls.experiences))
            return view

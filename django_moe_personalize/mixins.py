"""``PersonalizeMixin``: ``@personalize`` for class-based views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from django.http.response import HttpResponseBase
from django.views import View

from django_moe_personalize.planning import declare_keys

# A type checker takes the mixin for a view, so that its as_view() agrees with that of the next base class.
if TYPE_CHECKING:
    Base = View
else:
    Base = object


class PersonalizeMixin(Base):
    """Declare a class-based view's experience keys in ``experiences``. List it before the view's base class."""

    experiences: Sequence[str] = ()

    @classmethod
    def as_view(cls, *args: Any, **initkwargs: Any) -> Callable[..., HttpResponseBase]:
        """Return the view, marked with its keys. Raises ValueError for keys that aren't non-empty strings."""
        view: Callable[..., HttpResponseBase] = super().as_view(*args, **initkwargs)
        declare_keys(view, initkwargs.get("experiences", cls.experiences))
        return view

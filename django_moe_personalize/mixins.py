"""``PersonalizeMixin``: ``@personalize`` for class-based views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django_moe_personalize.planning import declare_keys

if TYPE_CHECKING:
    from django_moe_personalize.schemas import ExperienceSchema


class PersonalizeMixin:
    """Declare a class-based view's keys in ``experiences``. List this mixin before the view's base class."""

    experiences: Sequence[str | type[ExperienceSchema]] = ()

    # Any, because pyright refuses a type that differs from the type in the view's base class.
    @classmethod
    def as_view(cls, *args: Any, **initkwargs: Any) -> Any:
        """Return the view with its declared keys. Raises ValueError for keys that aren't non-empty strings."""
        view = super().as_view(*args, **initkwargs)  # type: ignore[misc]
        declare_keys(view, initkwargs.get("experiences", cls.experiences))
        return view

"""The serializer of an experience for Django REST framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rest_framework.serializers import BaseSerializer

from django_moe_personalize.browser.state import serialize
from django_moe_personalize.context import get_page


class ExperienceSerializer(BaseSerializer):  # type: ignore[misc, unused-ignore]
    """Turn experiences into JSON, with tokens for the beacon. Pass ``context={"request": request}``.

    ``elements`` are the names that clicks may have. By default they are the variables of the payload.
    """

    def __init__(self, *args: Any, elements: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._elements = elements

    def to_representation(self, instance: Any) -> dict[str, Any]:
        """Return the experience with its token."""
        request = self.context.get("request")
        # REST framework wraps Django's request.
        page = get_page(getattr(request, "_request", request))
        return serialize(page, instance, self._elements)

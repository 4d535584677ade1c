"""``personalization`` in every template: add this context processor to ``TEMPLATES``."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest


def personalization(request: HttpRequest) -> dict[str, Any]:
    """Return ``request.personalization`` as ``personalization``. Nothing is fetched until a template reads a key."""
    return {"personalization": getattr(request, "personalization", None)}

"""``personalization`` in every template of the page."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest


def personalization(request: HttpRequest) -> dict[str, Any]:
    """Return ``{"personalization": request.personalization}``; costs nothing until a template reads it."""
    return {"personalization": getattr(request, "personalization", None)}

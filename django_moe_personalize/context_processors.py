"""``personalization`` in every template: add this context processor to ``TEMPLATES``."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest


def personalization(request: HttpRequest) -> dict[str, Any]:
    """Return ``request.personalization`` under its own name. It does nothing until a template reads it."""
    return {"personalization": getattr(request, "personalization", None)}

"""Answers of the sandbox: JSON bodies, and the vendor's error envelope (contract §1)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NoReturn

from django_moe_personalize.moengage.messages import Response

JSON_HEADERS = {"content-type": "application/json; charset=utf-8"}


class RefusedError(Exception):
    """A request that gets an error status with the vendor's envelope; ``code`` may be left out."""

    def __init__(self, status: int, title: str, description: str, code: str = "") -> None:
        super().__init__(f"{status} {title}: {description}")
        self.status = status
        self.title = title
        self.description = description
        self.code = code

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """Return the answer, with ``headers`` added."""
        envelope = {"title": self.title, "description": self.description}
        if self.code:
            envelope["code"] = self.code
        return json_response(envelope, status=self.status, headers=headers)


def json_response(data: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return ``data`` as an answer in UTF-8."""
    # A lone surrogate is legal in JSON and has no UTF-8: it becomes a question mark.
    body = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(status, {**JSON_HEADERS, **(headers or {})}, body)


def malformed(description: str) -> RefusedError:
    """Build the 400 for a body that is no JSON object."""
    return RefusedError(400, "Malformed JSON", description, "MALFORMED_JSON")


def invalid(place: str, message: str) -> NoReturn:
    """Refuse the value at ``place``; the message never quotes it, it may be personal."""
    raise RefusedError(400, "Invalid Field Value", f"{place} {message}.", "INVALID_FIELD_VALUE")

"""The sandbox's JSON responses, and its errors in the JSON format of MoEngage's errors (contract §1)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NoReturn

from django_moe_personalize.moengage.http1 import Response

JSON_HEADERS = {"content-type": "application/json; charset=utf-8"}


class RefusedError(Exception):
    """The sandbox refuses a request. The response has ``status``, and the non-empty other values as JSON."""

    def __init__(self, status: int, title: str, description: str, code: str = "") -> None:
        super().__init__(f"{status} {title}: {description}")
        self.status = status
        self.title = title
        self.description = description
        self.code = code

    def build_response(self, headers: Mapping[str, str] | None = None) -> Response:
        """Return the response, with extra ``headers``."""
        envelope = {"title": self.title, "description": self.description}
        if self.code:
            envelope["code"] = self.code
        return build_json_response(envelope, status=self.status, headers=headers)


def build_json_response(data: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with ``data`` as JSON in UTF-8."""
    # A string in JSON may contain a lone surrogate. UTF-8 can't encode it, so it becomes a question mark.
    body = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(status, {**JSON_HEADERS, **(headers or {})}, body)


def refuse_field(place: str, message: str) -> NoReturn:
    """Refuse a request with a bad field (400). ``message`` must not quote the value, which may be personal."""
    raise RefusedError(400, "Invalid Field Value", f"{place} {message}.", "INVALID_FIELD_VALUE")


def build_malformed(description: str) -> RefusedError:
    """Return the error for a body that isn't a JSON object (400)."""
    return RefusedError(400, "Malformed JSON", description, "MALFORMED_JSON")


def build_not_found() -> Response:
    """Return the response for an unknown path (404)."""
    return RefusedError(404, "Not Found", "The sandbox has nothing at this path.").build_response()


def build_not_allowed(methods: str) -> Response:
    """Return the response for a wrong method (405). The path accepts only ``methods``."""
    refused = RefusedError(405, "Method Not Allowed", f"This path accepts only {methods}.")
    return refused.build_response({"allow": methods})

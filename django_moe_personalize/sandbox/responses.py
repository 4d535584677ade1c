"""The sandbox's JSON responses, and its errors in the JSON format of MoEngage's errors (contract §1)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from django_moe_personalize.moengage.http1 import Request, Response

JSON_HEADERS = {"content-type": "application/json; charset=utf-8"}

Actions = Mapping[str, Mapping[str, Callable[[Request], Response]]]
"""Functions by path and method. Each answers a request, or raises RefusedError."""


class RefusedError(Exception):
    """The sandbox refuses a request. ``response`` has the status, the headers, and the other values as JSON."""

    def __init__(
        self, status: int, title: str, description: str, code: str = "", *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{status} {title}: {description}")
        self.status = status
        self.description = description
        envelope = {"title": title, "description": description, **({"code": code} if code else {})}
        self.response = build_json_response(envelope, status=status, headers=headers)


def build_json_response(data: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with ``data`` as JSON in UTF-8."""
    # A string in JSON may contain a lone surrogate. UTF-8 can't encode it, so it becomes a question mark.
    body = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(status, {**JSON_HEADERS, **(headers or {})}, body)


def build_invalid_field(message: str) -> RefusedError:
    """Return the error for a bad field (400)."""
    return RefusedError(400, "Invalid Field Value", f"{message}.", "INVALID_FIELD_VALUE")


def route(request: Request, actions: Actions) -> Response:
    """Return the response of the action at the request's path. Refuse an unknown path (404) or method (405)."""
    try:
        methods = actions.get(request.path)
        if methods is None:
            raise RefusedError(404, "Not Found", "The sandbox has nothing at this path.")
        if request.method not in methods:
            allowed = ", ".join(methods)
            description = f"This path accepts only {allowed}."
            raise RefusedError(405, "Method Not Allowed", description, headers={"allow": allowed})
        return methods[request.method](request)
    except RefusedError as refused:
        return refused.response

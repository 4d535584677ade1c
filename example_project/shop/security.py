"""A strict Content-Security-Policy, to show that the package needs no exception from it."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"


class ContentSecurityPolicyMiddleware:
    """Allow what comes from this site, and no inline script or style. Django 6 has a fuller one."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Add the header to every answer."""
        response = self.get_response(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

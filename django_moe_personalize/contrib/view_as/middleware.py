"""Give requests with a valid view another visitor, and add the bar to their pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.core.cache import caches
from django.core.cache.backends.dummy import DummyCache
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.template.loader import render_to_string

from django_moe_personalize import rendering, tracking, views
from django_moe_personalize.contrib.view_as.page import PreviewPage, build_visitor, fetch
from django_moe_personalize.contrib.view_as.view import COOKIE, View, may_preview, read_view
from django_moe_personalize.moengage.types import Experience
from django_moe_personalize.runtime import log_once

CONDITIONS: Final = ("HTTP_IF_NONE_MATCH", "HTTP_IF_MODIFIED_SINCE")
"""With these headers a view may answer that the page in the browser is still right. But that page has no preview."""

_PAGE: Final = re.compile(rb"\s*<(!doctype|html)\b", re.IGNORECASE)


class ViewAsMiddleware:
    """List this middleware directly below PersonalizeMiddleware. Requests without the cookie of a view pass through."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        if COOKIE not in request.COOKIES:
            return self.get_response(request)
        return self.__acall__(request) if self.is_async else self._preview(request)

    def _preview(self, request: HttpRequest) -> HttpResponseBase:
        if (page := start(request)) is None:
            return self.get_response(request)  # type: ignore[no-any-return]
        with leave_nothing():
            return finish(request, self.get_response(request), page)

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        if (page := await sync_to_async(start)(request)) is None:
            return await self.get_response(request)  # type: ignore[no-any-return]
        with leave_nothing():
            return await sync_to_async(finish)(request, await self.get_response(request), page)

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> None:
        """Count no click and no beacon while the preview is on, not even those of an older page."""
        if hasattr(request, "moe_view_as") and view in (views.click, views.beacon):
            request.META["HTTP_USER_AGENT"] = "bot"


def start(request: HttpRequest) -> PreviewPage | None:
    """Give the request the page of a preview, or return ``None`` if its view isn't valid."""
    view = read_view(request, request.COOKIES[COOKIE])
    if view is None:
        return None
    if not hasattr(request, "personalization"):
        log_once("view_as", "ViewAsMiddleware shows no previews. List it directly below PersonalizeMiddleware.")
        return None
    page = PreviewPage(request, view)
    request.personalization._page = page
    request.moe_view_as = view  # type: ignore[attr-defined]
    for name in CONDITIONS:
        request.META.pop(name, None)
    rendering.keep_out_of_caches(request)
    return page


@contextmanager
def leave_nothing() -> Iterator[None]:
    """In this thread or task, let the API record nothing, and ``{% cache %}`` neither read nor store fragments.

    The tag prefers a cache named "template_fragments", which most sites don't have.
    """
    name = "template_fragments"
    token = tracking.is_muted.set(True)
    before = getattr(caches._connections, name, None)  # type: ignore[attr-defined]
    caches[name] = DummyCache("", {})
    try:
        yield
    finally:
        tracking.is_muted.reset(token)
        del caches[name]
        if before is not None:
            caches[name] = before


def finish(request: HttpRequest, response: HttpResponseBase, page: PreviewPage) -> HttpResponseBase:
    """Make the response private, and add the bar to an HTML page."""
    rendering.seal_response(response, page.runtime.settings)
    response.headers["Cache-Control"] = "private, no-store"
    response.headers["X-Robots-Tag"] = "noindex"
    is_page = "text/html" in response.headers.get("Content-Type", "") and not response.has_header("Content-Encoding")
    if is_page and not response.streaming and not hasattr(request, "moe_has_no_bar"):
        content: bytes = response.content  # type: ignore[attr-defined]
        if (end := _find_end(request, content)) is not None:
            bar = render_bar(request, page).encode(response.charset or "utf-8", "xmlcharrefreplace")
            response.content = content[:end] + bar + content[end:]  # type: ignore[attr-defined]
            if response.has_header("Content-Length"):
                response.headers["Content-Length"] = str(len(response.content))  # type: ignore[attr-defined]
    return response


def _find_end(request: HttpRequest, content: bytes) -> int | None:
    """Return the place of the bar, or ``None`` for a part of a page. HTML requires no ``<html>`` and no ``<body>``."""
    found = content.lower().rfind(b"</body>")
    if found >= 0:
        return found
    # A redirect has no content.
    is_page = content and (request.headers.get("Sec-Fetch-Dest") == "document" or _PAGE.match(content))
    return len(content) if is_page else None


def render_bar(request: HttpRequest, page: PreviewPage) -> str:
    """Return the HTML of the bar, with the page's experiences next to those of the real visitor."""
    keys = page.experience_keys
    real = fetch(page, build_visitor(request, View(issuer="")), keys) if page.runtime.settings.enabled else {}
    rows = [(key, _list_values(page._answers.get(key)), _list_values(real.get(key))) for key in keys]
    context = {"view": request.moe_view_as, "rows": rows, "path": request.get_full_path()}  # type: ignore[attr-defined]
    # str() reads the lazy nonce of Django or django-csp, which adds the nonce to the policy.
    nonces = [str(found) for name in ("_csp_nonce", "csp_nonce") if (found := getattr(request, name, None)) is not None]
    context["nonce"] = nonces[0] if nonces else ""
    return render_to_string(
        "moe_personalize/view_as/bar.html", {**context, "may_change": may_preview(getattr(request, "user", None))}
    )


def _list_values(experience: Experience | None) -> list[tuple[str, object]]:
    """Return the variables with their values. Of a list of offerings, only the ids fit into the bar."""
    found = [] if experience is None else experience.payload.items()
    return [(name, ", ".join(_list_offerings(value)) or value) for name, value in found]


def _list_offerings(value: object) -> list[str]:
    entries = value if isinstance(value, list) else []
    return [str(each["dp_offering_id"]) for each in entries if isinstance(each, dict) and "dp_offering_id" in each]

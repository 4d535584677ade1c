"""Wagtail imports these hooks: fetch a page's experiences before it renders, and warn editors of unknown keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from wagtail import hooks

from django_moe_personalize.contrib.editing import start_fetch, warn_of_unknown
from django_moe_personalize.contrib.wagtail.content import find_stored_keys


# The last hook, so that a page that the visitor may not see asks for nothing.
@hooks.register("on_serve_page", order=1000)  # type: ignore[untyped-decorator]
def fetch_early(serve_page: Callable[..., Any]) -> Callable[..., Any]:
    """Start one call for the keys of all blocks and of the page's template."""

    def serve(page: Any, request: HttpRequest, args: Any, kwargs: Any) -> Any:
        if request.method in ("GET", "HEAD") and (keys := find_stored_keys(page)):
            start_fetch(request, keys, page.get_template(request, *args, **kwargs))
        return serve_page(page, request, args, kwargs)

    return serve


@hooks.register("after_create_page")  # type: ignore[untyped-decorator]
@hooks.register("after_edit_page")  # type: ignore[untyped-decorator]
def check_keys(request: HttpRequest, page: Any) -> None:
    """Warn the editor of unknown keys in the page that was just saved."""
    warn_of_unknown(request, find_stored_keys(page))

"""``Cache-Control``, ``Vary`` and ``Server-Timing`` of personalized pages."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings as django_settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers

from django_moe_personalize.conf import Settings


def seal_response(response: HttpResponseBase, settings: Settings) -> None:
    """Mark a page that read an experience, so that no shared cache stores it.

    ``Cache-Control`` is replaced as a whole: the view's ``public`` or ``max-age`` was meant for a page that is the
    same for all visitors.
    """
    response.headers["Cache-Control"] = settings.cache_control
    for name in ("Expires", "CDN-Cache-Control", "Surrogate-Control"):
        response.headers.pop(name, None)
    if "Vary" in response.headers:
        patch_vary_headers(response, ("Cookie",))
    else:
        # patch_vary_headers() would take 90 bytecodes and 1.5 µs more. Few pages have another Vary.
        response.headers["Vary"] = "Cookie"


def keep_out_of_site_cache(request: HttpRequest) -> None:
    """Tell Django's own cache middleware not to store this page. Call it for every read of an experience.

    ``UpdateCacheMiddleware`` outside of our middleware and ``cache_page`` around the view look at this attribute
    before our headers are set. ``FetchFromCacheMiddleware`` resets the attribute when it starts.
    """
    request._cache_update_cache = False  # type: ignore[attr-defined]


def add_server_timing(
    request: HttpRequest, response: HttpResponseBase, *, describe: Callable[[], str], waited: float
) -> None:
    """Show staff, and everyone with DEBUG on, what the page asked for and how many seconds it waited.

    Browsers show it in their network panel: https://www.w3.org/TR/server-timing/
    """
    # Only a user that this request has loaded already: loading one could block.
    known = request.__dict__
    user = known.get("_cached_user") or known.get("_acached_user")
    if django_settings.DEBUG or getattr(user, "is_staff", False):
        entry = f'moe;desc="{describe()}";dur={waited * 1000:.1f}'
        existing = response.headers.get("Server-Timing")
        response.headers["Server-Timing"] = f"{existing}, {entry}" if existing else entry

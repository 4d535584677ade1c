"""``Cache-Control``, ``Vary`` and ``Server-Timing`` of personalised pages."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings as django_settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers

from django_moe_personalize.conf import Settings


def seal_response(response: HttpResponseBase, settings: Settings) -> None:
    """Mark a page that read an experience so that no shared cache stores it.

    The header is set as a whole: a ``public`` or ``max-age`` that the view asked for was meant for
    a page that is the same for everybody.
    """
    response.headers["Cache-Control"] = settings.cache_control
    for name in ("Expires", "CDN-Cache-Control", "Surrogate-Control"):
        response.headers.pop(name, None)
    if "Vary" in response.headers:
        patch_vary_headers(response, ("Cookie",))
    else:
        # The same in a tenth of the time, and few pages have another.
        response.headers["Vary"] = "Cookie"


def keep_out_of_site_cache(request: HttpRequest) -> None:
    """Tell Django's own cache middleware not to store this page.

    ``UpdateCacheMiddleware`` outside ours and ``cache_page`` around the view both decide by this
    attribute, and neither by the headers that are set later. It is set at every read, because
    ``FetchFromCacheMiddleware`` sets it back when it starts.
    """
    request._cache_update_cache = False  # type: ignore[attr-defined]


def add_server_timing(
    request: HttpRequest, response: HttpResponseBase, *, describe: Callable[[], str], waited: float
) -> None:
    """Tell developers, with DEBUG on, and staff what the page asked and how many seconds it waited for it.

    Browsers show it beside the page's own timing: https://www.w3.org/TR/server-timing/
    """
    if django_settings.DEBUG or _is_staff(request):
        entry = f'moe;desc="{describe()}";dur={waited * 1000:.1f}'
        existing = response.headers.get("Server-Timing")
        response.headers["Server-Timing"] = f"{existing}, {entry}" if existing else entry


def _is_staff(request: HttpRequest) -> bool:
    """Return whether a user that this request has read already is staff; reading one here could block."""
    known = request.__dict__
    return any(getattr(user, "is_staff", False) for user in (known.get("_cached_user"), known.get("_acached_user")))

"""``Cache-Control`` and ``Vary`` of personalised pages."""

from __future__ import annotations

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
    patch_vary_headers(response, ("Cookie",))


def keep_out_of_site_cache(request: HttpRequest) -> None:
    """Tell Django's own cache middleware not to store this page.

    ``UpdateCacheMiddleware`` outside ours and ``cache_page`` around the view both decide by this
    attribute, and neither by the headers that are set later. It is set at every read, because
    ``FetchFromCacheMiddleware`` sets it back when it starts.
    """
    request._cache_update_cache = False  # type: ignore[attr-defined]

"""Experiences as JSON, for a client that renders by itself: ``include("django_moe_personalize.contrib.json")``."""

from __future__ import annotations

from typing import Any, Final

from asgiref.sync import sync_to_async
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from django_moe_personalize import rendering, tracking
from django_moe_personalize.browser.state import serialize
from django_moe_personalize.conf import get_settings
from django_moe_personalize.context import get_page, give_id
from django_moe_personalize.page import Page
from django_moe_personalize.views import is_within_limit
from django_moe_personalize.visitor import MINTED
from django_moe_personalize.visitor.attributes import get_client_ip

MAX_KEYS: Final = 25
"""Keys that one request may ask for: as many as one call to MoEngage."""

MAX_KEY_LENGTH: Final = 100


@login_not_required
@never_cache
@require_safe
async def experiences(request: HttpRequest) -> JsonResponse:
    """Return the experiences of ``?key=…&key=…``, or 400 for wrong keys, or 429 for a visitor with too many requests.

    The fetch counts no impression, because the client decides whether to show the content.
    """
    keys = list(dict.fromkeys(request.GET.getlist("key")))
    if not 0 < len(keys) <= MAX_KEYS or not all(0 < len(key) <= MAX_KEY_LENGTH and key.isprintable() for key in keys):
        message = f"Ask for 1 to {MAX_KEYS} keys with ?key=…, each with at most {MAX_KEY_LENGTH} characters."
        return JsonResponse({"error": message}, status=400)
    page = get_page(request)
    found: dict[str, Any] = dict.fromkeys(keys)
    if page is not None:
        await page.aconfirm()
        await page._agather()
        # A preview leaves no count in the cache that all processes share.
        is_free = tracking.is_muted.get()
        if not (is_free or await sync_to_async(is_within_limit)("experiences", _name_client(request, page))):
            return JsonResponse({"error": "Too many requests."}, status=429, headers={"Retry-After": "60"})
        await page.aload(*keys)
        give_id(page)
        found = {key: each and serialize(page, each) for key in keys for each in [page.read(key)]}
    return JsonResponse({"experiences": found, "beacon": rendering.find_endpoint("beacon")})


def _name_client(request: HttpRequest, page: Page) -> str:
    """Return the visitor's id for the limit. A client without cookies gets a new id each time, so take its address."""
    settings, visitor = get_settings(), page._visitor
    known = None if visitor is None or MINTED in request.__dict__ else visitor.identity.customer_id
    return f"id:{known}" if known else "ip:" + get_client_ip(request.META, settings.trusted_proxies, "full")


app_name = "moe_json"
urlpatterns = [path("experiences/", experiences, name="experiences")]

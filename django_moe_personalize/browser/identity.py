"""The identity for MoEngage's Web SDK, so that it reports for the same customer as the server."""

from __future__ import annotations

import time
from typing import Final

from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from django_moe_personalize import rendering, tracking
from django_moe_personalize.conf import get_settings
from django_moe_personalize.page import Page
from django_moe_personalize.visitor import NO_VISITOR, UNKNOWN

SCRIPT: Final = "moe_personalize/identity.js"

STORAGE_KEY: Final = "moe_identity"
"""The name of the last call in the browser's storage."""


def find_customer_id(page: Page, request: HttpRequest) -> str | None:
    """Return the id of a known customer, or "" for any other visitor, and make the page private.

    The id is "" without consent to identify and to track, because MoEngage's script does both. The script must change
    nothing if the result is ``None``: the visitor can't be known now, the headers of the page have left already, or an
    editor previews the page.
    """
    if page._is_closed or page.is_preview or tracking.is_preview(request) or not page.confirm():
        return None
    visitor = page._find_visitor()
    if visitor is None or (visitor is NO_VISITOR and UNKNOWN in request.__dict__):
        return None
    page.mark_read(request)
    identity, consent = visitor.identity, visitor.consent
    is_known = consent.identify and consent.track and not identity.anonymous
    return (identity.customer_id or "") if is_known else ""


def render_identity(request: HttpRequest, customer_id: str) -> SafeString:
    """Return the tag of the script that tells MoEngage's Web SDK who the visitor is.

    The script ignores a page that is older than the page of its last call, such as one from the browser's history.
    """
    if not (source := rendering.find_source(SCRIPT)):
        return SafeString("")
    # Each workspace has an SDK of its own.
    key, now, nonce = STORAGE_KEY + get_settings().suffix, int(time.time() * 1000), rendering.render_nonce(request)
    tag = '<script src="{}" data-key="{}" data-id="{}" data-at="{}"{} defer></script>'
    return format_html(tag, source, key, customer_id, now, nonce)

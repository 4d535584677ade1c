"""Log-in and log-out start a new anonymous identity: the id and the remembered parameters of before end."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.dispatch import receiver
from django.http import HttpRequest

from django_moe_personalize.visitor.attributes import SESSION_KEY
from django_moe_personalize.visitor.identity import forget_anonymous_id


@receiver([user_logged_in, user_logged_out], dispatch_uid=f"{__name__}.start_new_identity")
def start_new_identity(*, request: Any, **kwargs: Any) -> None:
    """Start a new anonymous identity when a user logs in or out. Never raises: logging in must not fail for it.

    The next page that reads an experience for an unknown visitor mints a new anonymous id, so that the
    browser's history identifies neither the user before nor the user after.
    """
    # Django REST framework wraps Django's request.
    request = getattr(request, "_request", request)
    if not isinstance(request, HttpRequest):
        return
    # Django empties the session of a user who logs out, and keeps it for a user who logs in.
    with suppress(Exception):
        request.session.pop(SESSION_KEY, None)
    personalization = getattr(request, "personalization", None)
    if forget_anonymous_id(request) and personalization is not None:
        # The response deletes a cookie, so it belongs to this visitor alone.
        personalization._page.mark_read(request)

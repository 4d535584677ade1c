"""Who signs in or out is another visitor from then on: the browser's anonymous id and its remembered parameters end."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.dispatch import receiver
from django.http import HttpRequest

from django_moe_personalize.rendering.headers import keep_out_of_site_cache
from django_moe_personalize.visitor.attributes import SESSION_KEY
from django_moe_personalize.visitor.identity import forget_anonymous_id


@receiver([user_logged_in, user_logged_out], dispatch_uid=f"{__name__}.change_visitor")
def change_visitor(*, request: Any, **kwargs: Any) -> None:
    """Drop what was the other visitor's; never raises, since signing in must not fail for our sake.

    The next page that reads an experience for somebody unknown mints a new anonymous id, so that
    neither the customer before nor the one after can be told from the browser's history.
    """
    # REST framework hands over its own request, around Django's.
    request = getattr(request, "_request", request)
    if not isinstance(request, HttpRequest):
        return
    # Django empties the session of who signs out, and keeps that of who signs in.
    with suppress(Exception):
        request.session.pop(SESSION_KEY, None)
    page = getattr(request, "personalization", None)
    if forget_anonymous_id(request) and page is not None:
        # The response sets a cookie, so it is this visitor's own.
        page.is_read = True
        keep_out_of_site_cache(request)

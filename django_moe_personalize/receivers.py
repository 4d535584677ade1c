"""Start a new anonymous identity when a user logs in or out."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.dispatch import receiver
from django.http import HttpRequest


@receiver([user_logged_in, user_logged_out], dispatch_uid=f"{__name__}.start_new_identity")
def start_new_identity(*, request: Any, **kwargs: Any) -> None:
    """Forget the anonymous id and the remembered query parameters. Never raises: an error would break the login.

    The next user of the browser must not get the history from before the login or logout.
    """
    # Django REST framework wraps Django's request.
    request = getattr(request, "_request", request)
    if not isinstance(request, HttpRequest):
        return
    personalization = getattr(request, "personalization", None)
    if personalization is not None:
        personalization._page.doubt()
    # A process that serves no pages shouldn't import half of the package at start-up.
    from django_moe_personalize.visitor.attributes import forget_parameters
    from django_moe_personalize.visitor.identity import forget_anonymous_id

    is_known = [forget_anonymous_id(request), forget_parameters(request)]
    if any(is_known) and personalization is not None:
        # The response deletes this visitor's cookies, so no cache may store the response.
        personalization._page.mark_read(request)

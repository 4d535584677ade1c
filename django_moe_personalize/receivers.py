"""Start a new anonymous identity when a user logs in or out. Drop the runtimes when settings change.

Every process imports this module at its start, so a receiver imports other modules of the package when it runs.
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.core.signals import setting_changed
from django.dispatch import receiver
from django.http import HttpRequest

_SETTINGS_READ = frozenset(
    {"MOE_PERSONALIZE", "CACHES", "DEBUG", "SECRET_KEY", "SECURE_PROXY_SSL_HEADER", "STORAGES", "TEMPLATES"}
)


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
    from django_moe_personalize.visitor.attributes import forget_parameters
    from django_moe_personalize.visitor.identity import forget_anonymous_id

    is_known = [forget_anonymous_id(request), forget_parameters(request)]
    if any(is_known) and personalization is not None:
        # The response deletes this visitor's cookies, so no cache may store the response.
        personalization._page.mark_read(request)


@receiver(setting_changed, dispatch_uid=f"{__name__}.drop_runtimes")
def drop_runtimes(*, setting: str, **kwargs: Any) -> None:
    """Drop the settings and all runtimes after a change of a setting from which they are built, as in tests."""
    if setting in _SETTINGS_READ:
        from django_moe_personalize.conf import get_settings
        from django_moe_personalize.runtime import reset_runtimes

        get_settings.cache_clear()
        reset_runtimes()

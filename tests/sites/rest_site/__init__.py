"""A shop with Django REST framework, htmx and the usual middleware: translation, compression, site cache, allauth, CSP.

The order of MIDDLEWARE is that of the documentation of each package.
"""

import json
import re
from typing import Any

import sentry_sdk

from tests.sites.settings import serve


def is_staff(request: Any) -> bool:
    """Show the toolbar to the staff."""
    return bool(request.user.is_staff)


reported: list[set[str]] = []
"""The visitors in each event that Sentry would get."""


class Collect(sentry_sdk.transport.Transport):
    """Keep the visitors in each event instead of sending it."""

    def capture_envelope(self, envelope: Any) -> None:
        event = json.dumps(envelope.get_event() or envelope.get_transaction_event(), default=str)
        # Sentry also reports what the page's threads write to Redis, with the experience keys.
        event = re.sub("hero-banner|promo-strip", "", event)
        reported.append(set(re.findall(r"(\w+)-(?:agent|hero|strip)", event)))


sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=Collect, traces_sample_rate=1.0, send_default_pii=True)
application, asgi = serve(
    __name__,
    apps=["allauth", "allauth.account", "rest_framework", "django_htmx", "debug_toolbar"],
    middleware=[
        "django.middleware.security.SecurityMiddleware",
        "django.middleware.cache.UpdateCacheMiddleware",
        "whitenoise.middleware.WhiteNoiseMiddleware",
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.http.ConditionalGetMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.locale.LocaleMiddleware",
        "django.middleware.common.CommonMiddleware",
        "csp.middleware.CSPMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "debug_toolbar.middleware.DebugToolbarMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
        "allauth.account.middleware.AccountMiddleware",
        "django_htmx.middleware.HtmxMiddleware",
        "django_moe_personalize.middleware.PersonalizeMiddleware",
        "django.middleware.cache.FetchFromCacheMiddleware",
    ],
    AUTHENTICATION_BACKENDS=["django.contrib.auth.backends.ModelBackend"],
    ACCOUNT_RATE_LIMITS=False,
    ACCOUNT_EMAIL_VERIFICATION="none",
    LOGIN_REDIRECT_URL="/en/",
    CACHE_MIDDLEWARE_SECONDS=600,
    CONTENT_SECURITY_POLICY={"DIRECTIVES": {"default-src": ["'self'"]}},
    DEBUG_TOOLBAR_CONFIG={"SHOW_TOOLBAR_CALLBACK": "tests.sites.rest_site.is_staff"},
)

"""A Wagtail site with wagtail-cache, as their quickstarts say."""

import re

import django
import django.utils.cache
from django.conf import settings

from tests.sites.settings import build_settings

# wagtail-cache 3.0 imports this expression, which Django 6.1 no longer has.
django.utils.cache.cc_delim_re = re.compile(r"\s*,\s*")  # type: ignore[attr-defined]

settings.configure(
    **build_settings(
        apps=[
            *("wagtail.users", "wagtail.sites", "wagtail.documents", "wagtail.images", "wagtail.admin", "wagtail"),
            *("wagtailcache", "modelcluster", "taggit", "tests.sites.wagtail_site"),
        ],
        middleware=[
            "wagtailcache.cache.UpdateCacheMiddleware",
            "django.middleware.security.SecurityMiddleware",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.locale.LocaleMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
            "django.middleware.clickjacking.XFrameOptionsMiddleware",
            "django_moe_personalize.middleware.PersonalizeMiddleware",
            "wagtailcache.cache.FetchFromCacheMiddleware",
        ],
        ROOT_URLCONF="tests.sites.wagtail_site.urls",
        WAGTAIL_SITE_NAME="Shop",
        WAGTAILADMIN_BASE_URL="http://127.0.0.1",
        WAGTAIL_I18N_ENABLED=False,
        WAGTAILDOCS_EXTENSIONS=[],
        # wagtail-cache would remove the cookie moe_id and the utm_* parameters from each request.
        WAGTAIL_CACHE_IGNORE_COOKIES=False,
        WAGTAIL_CACHE_IGNORE_QS=[],
    )
)
django.setup()

from django.core.handlers.asgi import ASGIHandler  # noqa: E402
from django.core.handlers.wsgi import WSGIHandler  # noqa: E402

application, asgi = WSGIHandler(), ASGIHandler()

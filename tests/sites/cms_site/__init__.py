"""A django CMS site as its quickstart says, with the page cache and the placeholder cache that are on by default."""

import django
from django.conf import settings

from tests.sites.settings import build_settings

settings.configure(
    **build_settings(
        apps=[
            *("django.contrib.sites", "django.contrib.admin", "cms", "menus", "treebeard", "sekizai"),
            "tests.sites.cms_site",
        ],
        middleware=[
            "cms.middleware.utils.ApphookReloadMiddleware",
            "django.middleware.security.SecurityMiddleware",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.locale.LocaleMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
            "django.middleware.clickjacking.XFrameOptionsMiddleware",
            "cms.middleware.user.CurrentUserMiddleware",
            "cms.middleware.page.CurrentPageMiddleware",
            "cms.middleware.toolbar.ToolbarMiddleware",
            "cms.middleware.language.LanguageCookieMiddleware",
            "django_moe_personalize.middleware.PersonalizeMiddleware",
        ],
        processors=[
            "sekizai.context_processors.sekizai",
            "cms.context_processors.cms_settings",
            "django.template.context_processors.i18n",
        ],
        ROOT_URLCONF="tests.sites.cms_site.urls",
        SITE_ID=1,
        X_FRAME_OPTIONS="SAMEORIGIN",
        CMS_CONFIRM_VERSION4=True,
        CMS_TEMPLATES=[("cms_site/page.html", "Page")],
    )
)
django.setup()

from django.core.handlers.asgi import ASGIHandler  # noqa: E402
from django.core.handlers.wsgi import WSGIHandler  # noqa: E402

application, asgi = WSGIHandler(), ASGIHandler()

"""The settings that the sites share: what Django's project template gives, a Redis for each cache, and the sandbox."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import django
import django.utils.cache
from django.conf import settings

from tests.sites.serving import read_options

# wagtail-cache 3.0 imports this expression, which Django 6.1 no longer has.
django.utils.cache.cc_delim_re = re.compile(r"\s*,\s*")  # type: ignore[attr-defined]

CONTRIB = "auth contenttypes sessions messages staticfiles"
PROCESSORS = "template.context_processors.request contrib.auth.context_processors.auth"
PROCESSORS += " contrib.messages.context_processors.messages"

OURS = "django_moe_personalize.middleware.PersonalizeMiddleware"
VISITOR_MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
CMS_MIDDLEWARE = [
    f"cms.middleware.{name}Middleware" for name in ("user.CurrentUser", "page.CurrentPage", "toolbar.Toolbar")
]

CMS: dict[str, Any] = {
    "apps": ["django.contrib.sites", "django.contrib.admin", "cms", "menus", "treebeard", "sekizai"],
    "processors": [
        "sekizai.context_processors.sekizai",
        "cms.context_processors.cms_settings",
        "django.template.context_processors.i18n",
    ],
    "SITE_ID": 1,
    "X_FRAME_OPTIONS": "SAMEORIGIN",
    "CMS_CONFIRM_VERSION4": True,
}
WAGTAIL: dict[str, Any] = {
    "apps": [
        *("wagtail.users", "wagtail.sites", "wagtail.documents", "wagtail.images", "wagtail.admin", "wagtail"),
        *("wagtailcache", "modelcluster", "taggit"),
    ],
    "WAGTAIL_SITE_NAME": "Shop",
    "WAGTAILADMIN_BASE_URL": "http://127.0.0.1",
    # wagtail-cache would remove the cookie moe_id and the utm_* parameters from each request.
    "WAGTAIL_CACHE_IGNORE_COOKIES": False,
    "WAGTAIL_CACHE_IGNORE_QS": [],
}


class NoMigrations(dict[str, None]):
    """MIGRATION_MODULES of a site that creates all tables at once. Wagtail's migrations take 40 s."""

    def __contains__(self, app: object) -> bool:
        return True

    def __missing__(self, app: str) -> None:
        return None


def build_settings(
    *,
    apps: Sequence[str],
    middleware: Sequence[str] = (),
    processors: Sequence[str] = (),
    templates: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return settings with a database in memory. ``templates`` has more options of the template engine."""
    names = [*(f"django.{name}" for name in PROCESSORS.split()), *processors]
    options = {"context_processors": names, **(templates or {})}
    return {
        "SECRET_KEY": "sites",
        "ALLOWED_HOSTS": ["*"],
        "INSTALLED_APPS": [*(f"django.contrib.{name}" for name in CONTRIB.split()), *apps, "django_moe_personalize"],
        "MIDDLEWARE": list(middleware),
        "TEMPLATES": [
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": "loaders" not in options,
                "OPTIONS": options,
            }
        ],
        "DATABASES": {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
        "MIGRATION_MODULES": NoMigrations(),
        "LANGUAGE_CODE": "en",
        "LANGUAGES": [("en", "English"), ("de", "Deutsch")],
        "STATIC_URL": "/static/",
        **more,
    }


def serve(module: str, *, apps: Sequence[str], **more: Any) -> tuple[Any, Any]:
    """Configure Django for the site ``module``, and return its WSGI and its ASGI application.

    ``redis_url``, ``database`` and ``sandbox`` (its port) come from run_site().
    """
    from django.core.handlers.asgi import ASGIHandler
    from django.core.handlers.wsgi import WSGIHandler

    options = read_options()
    folder = Path(options["folder"])
    (folder / "static").mkdir(exist_ok=True)

    def use(database: int) -> dict[str, str]:
        return {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": f"{options['redis_url']}/{database}"}

    own = {
        "ROOT_URLCONF": f"{module}.urls",
        "DATABASES": {
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": folder / "site.sqlite3",
                "OPTIONS": {"timeout": 20, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"},
            }
        },
        # The caches are apart, so that a test can look for visitors' content in the site's own cache.
        "CACHES": {"default": use(options["database"]), "sessions": use(14), "moe": use(15)},
        "SESSION_ENGINE": "django.contrib.sessions.backends.cache",
        "SESSION_CACHE_ALIAS": "sessions",
        "STATIC_ROOT": folder / "static",
        "PASSWORD_HASHERS": ["django.contrib.auth.hashers.MD5PasswordHasher"],
        "LOGGING": {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"stderr": {"class": "logging.StreamHandler"}},
            "root": {"handlers": ["stderr"], "level": "WARNING"},
        },
        "MOE_PERSONALIZE": {
            "WORKSPACE_ID": "SITES",
            "API_KEY": "sites-key",
            "BASE_URL": f"http://127.0.0.1:{options['sandbox']}/v1",
            "CACHE": "moe",
            "IDENTIFY": "tests.sites.settings.identify",
            # A busy machine is no reason for a page to show a default, and each page's events arrive before the page.
            "DEADLINE": 20,
            "DELIVERY": {"BACKEND": "django_moe_personalize.delivery.immediate.ImmediateDelivery"},
        },
    }
    settings.configure(**build_settings(apps=[*apps, module], **own, **more))
    django.setup()
    return WSGIHandler(), ASGIHandler()


def identify(request: Any) -> Any:
    """Return the customer of the signed-in user. The staff are no customers."""
    from django_moe_personalize.visitor import Identity

    user = request.user
    is_customer = user.is_authenticated and not user.is_staff
    return Identity(customer_id=f"customer-{user.username}") if is_customer else None


def create_users() -> None:
    """Create the database and one user for each visitor with an account."""
    from django.contrib.auth import get_user_model
    from django.core.management import call_command

    call_command("migrate", run_syncdb=True, verbosity=0)
    for name in ("ada", "grace"):
        get_user_model().objects.create_user(name, password=name)
    get_user_model().objects.create_superuser("edith", password="edith")


def create_wagtail_site(page: Any) -> Any:
    """Create what Wagtail's migrations create: the root of the page tree, and a site with this page as its home."""
    from wagtail.models import Collection, Locale, Page, Site

    Locale.objects.create(language_code="en")
    Collection.add_root(name="Root")
    home = Page.add_root(title="Root", slug="root").add_child(instance=page)
    Site.objects.create(hostname="localhost", root_page=home, is_default_site=True)
    return home

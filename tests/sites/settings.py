"""The settings that the sites share: what Django's project template gives, a Redis for each cache, and the sandbox."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.sites.serving import read_options

PROCESSORS = ("template.context_processors.request", "contrib.auth.context_processors.auth")


def build_settings(
    *, apps: Sequence[str], middleware: Sequence[str], processors: Sequence[str] = (), **more: Any
) -> dict[str, Any]:
    """Return the settings of a site. ``redis_url`` and ``sandbox`` (its port) come from run_site()."""
    options = read_options()
    folder = Path(options["folder"])
    (folder / "static").mkdir(exist_ok=True)

    def use(database: int) -> dict[str, str]:
        return {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": f"{options['redis_url']}/{database}"}

    return {
        "SECRET_KEY": "sites",
        "ALLOWED_HOSTS": ["*"],
        "INSTALLED_APPS": [
            *("django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"),
            *("django.contrib.messages", "django.contrib.staticfiles", *apps, "django_moe_personalize"),
        ],
        "MIDDLEWARE": list(middleware),
        "TEMPLATES": [
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        *(f"django.{name}" for name in PROCESSORS),
                        "django.contrib.messages.context_processors.messages",
                        *processors,
                    ]
                },
            }
        ],
        "DATABASES": {
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": folder / "site.sqlite3",
                "OPTIONS": {"timeout": 20, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"},
            }
        },
        "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
        # The caches are apart, so that a test can look for visitors' content in the site's own cache.
        "CACHES": {"default": use(options["database"]), "sessions": use(14), "moe": use(15)},
        "SESSION_ENGINE": "django.contrib.sessions.backends.cache",
        "SESSION_CACHE_ALIAS": "sessions",
        "LANGUAGE_CODE": "en",
        "LANGUAGES": [("en", "English"), ("de", "Deutsch")],
        "STATIC_URL": "/static/",
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
        **more,
    }


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

    call_command("migrate", verbosity=0)
    for name in ("ada", "grace"):
        get_user_model().objects.create_user(name, password=name)
    get_user_model().objects.create_superuser("edith", password="edith")

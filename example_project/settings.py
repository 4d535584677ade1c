"""Settings of the example shop; those for personalization are at the end.

Without a ``.env`` file the shop uses SQLite and the embedded sandbox. ``.env.example`` lists the variables.
"""

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from environ import Env

BASE_DIR = Path(__file__).resolve().parent

env = Env()
env.read_env(BASE_DIR / ".env")

DEBUG = env.bool("DEBUG", default=True)
# With DEBUG on, a demonstration on your own machine needs no secret key of its own.
SECRET_KEY = env.str("SECRET_KEY", default="only-for-the-demonstration") if DEBUG else env.str("SECRET_KEY")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_moe_personalize",
    "django_moe_personalize.contrib.view_as",
    "shop",
    "workbench",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "shop.security.ContentSecurityPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django_moe_personalize.middleware.PersonalizeMiddleware",
    "django_moe_personalize.contrib.view_as.middleware.ViewAsMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    # Only for the demonstration: the visitor chooses the device and the hour.
    "workbench.switches.SwitchesMiddleware",
]

ROOT_URLCONF = "urls"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "shop.cart.context",
            ]
        },
    }
]

# The panel of the package in django-debug-toolbar: `pip install django-debug-toolbar` is enough to see it.
if DEBUG and find_spec("debug_toolbar"):
    from debug_toolbar.settings import PANELS_DEFAULTS

    INSTALLED_APPS.append("debug_toolbar")
    MIDDLEWARE.insert(0, "debug_toolbar.middleware.DebugToolbarMiddleware")
    INTERNAL_IPS = ["127.0.0.1", "::1"]
    DEBUG_TOOLBAR_PANELS = ["django_moe_personalize.contrib.debug_toolbar.PersonalizePanel", *PANELS_DEFAULTS]
    DEBUG_TOOLBAR_CONFIG = {"SHOW_COLLAPSED": True}

# Metrics at /metrics: `pip install opentelemetry-exporter-prometheus` is enough to see them.
with suppress(ModuleNotFoundError):
    if find_spec("opentelemetry.exporter.prometheus"):
        INSTALLED_APPS.append("django_moe_personalize.contrib.otel")

DATABASES = {"default": env.db_url("DATABASE_URL", default=f"sqlite:///{BASE_DIR / 'db.sqlite3'}")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGIN_URL = "shop:sign-in"
USE_TZ = True
TIME_ZONE = "UTC"
STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"

# Personalization. Credentials, data center and other options come from the environment, as MOE_PERSONALIZE_*.
# With DEBUG on and without credentials the sandbox answers instead of MoEngage.
MOE_PERSONALIZE = {
    "EXPERIENCES": {
        "shop:*": ["promo-strip"],
        "shop:home": ["hero-banner", "recommendations"],
    },
    "ATTRIBUTES": ["shop.personalization.cart", "shop.personalization.page"],
}

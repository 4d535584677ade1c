"""Settings of the test suite: the embedded sandbox, in-memory database and cache, events sent at once."""

SECRET_KEY = "tests"
USE_TZ = True
ALLOWED_HOSTS = ["testserver"]
ROOT_URLCONF = "tests.urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_moe_personalize",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django_moe_personalize.middleware.PersonalizeMiddleware",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
STATIC_URL = "/static/"
MOE_PERSONALIZE = {
    "SANDBOX": True,
    # A slow machine is no reason for a test to see a default.
    "DEADLINE": 10,
    "DELIVERY": {"BACKEND": "django_moe_personalize.delivery.immediate.ImmediateDelivery"},
}

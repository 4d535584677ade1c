"""Sign user 1 of two shops in, open a page of each, and print what the package asked, as JSON.

The first argument is the framework, ``tenants`` or ``sites``. The second is the database as JSON. The third is the
function for IDENTIFY, or an empty string.
"""

import json
import sys
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import include, path

from django_moe_personalize.visitor import Identity

HOSTS = ("ale.example.com", "books.example.com")
KEY = "hero-banner"
AUTH = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django_moe_personalize.middleware.PersonalizeMiddleware",
]


def identify_by_schema(request: HttpRequest) -> Identity | None:
    """Return the tenant's schema and the user's key."""
    user = request.user
    return Identity(f"{request.tenant.schema_name}-{user.pk}") if user.is_authenticated else None


def identify_by_site(request: HttpRequest) -> Identity | None:
    """Return the site's domain and the user's key."""
    from django.contrib.sites.shortcuts import get_current_site

    user = request.user
    return Identity(f"{get_current_site(request).domain}-{user.pk}") if user.is_authenticated else None


def show(request: HttpRequest) -> HttpResponse:
    """Show the visitor's hero."""
    hero = request.personalization.get(KEY)
    request.personalization.track_impression(KEY)
    return HttpResponse(hero["Title"] if hero else "default")


urlpatterns = [path("", show), path("moe/", include("django_moe_personalize.urls"))]


def configure(framework: str, database: dict[str, Any], identify: str) -> None:
    """Configure Django for the framework."""
    apps, middleware, more = [*AUTH, "django.contrib.sites"], MIDDLEWARE, {}
    if framework == "tenants":
        apps = ["django_tenants", "tests.sites.tenants", *AUTH]
        middleware = ["django_tenants.middleware.main.TenantMainMiddleware", *MIDDLEWARE]
        database = {**database, "ENGINE": "django_tenants.postgresql_backend"}
        more = {
            # The outbox is in the public schema, where one deliverer serves all tenants.
            "SHARED_APPS": ["django_tenants", "tests.sites.tenants", *AUTH, "django_moe_personalize"],
            "TENANT_APPS": AUTH,
            "TENANT_MODEL": "tenants.Shop",
            "TENANT_DOMAIN_MODEL": "tenants.Domain",
            "DATABASE_ROUTERS": ["django_tenants.routers.TenantSyncRouter"],
        }
    settings.configure(
        SECRET_KEY="tenants",
        ALLOWED_HOSTS=HOSTS,
        ROOT_URLCONF=__name__,
        INSTALLED_APPS=[*apps, "django_moe_personalize"],
        MIDDLEWARE=middleware,
        DATABASES={"default": database},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        MOE_PERSONALIZE={
            "SANDBOX": True,
            "IDENTIFY": identify,
            "DEADLINE": 20,
            "DELIVERY": {"BACKEND": "django_moe_personalize.delivery.database.DatabaseDelivery"},
        },
        **more,
    )
    django.setup()


def create_shops(framework: str) -> None:
    """Create two shops. In both, user 1 is a customer."""
    from django.contrib.auth.models import User

    if framework == "sites":
        call_command("migrate", verbosity=0)
        from django.contrib.sites.models import Site

        Site.objects.all().delete()
        Site.objects.bulk_create([Site(domain=host, name=host) for host in HOSTS])
        User.objects.create(pk=1, username="one")
        return
    from django_tenants.utils import schema_context

    from tests.sites.tenants.models import Domain, Shop

    call_command("migrate_schemas", shared=True, run_syncdb=True, verbosity=0)
    for host in HOSTS:
        shop = Shop(schema_name=host.partition(".")[0], name=host)
        shop.save(verbosity=0)
        Domain.objects.create(domain=host, tenant=shop, is_primary=True)
        with schema_context(shop.schema_name):
            User.objects.create(pk=1, username=host)


def sign_in(framework: str, host: str) -> Client:
    """Return the browser of user 1 at this shop."""
    from contextlib import nullcontext

    from django.contrib.auth.models import User

    browser, context = Client(headers={"host": host}), nullcontext()
    if framework == "tenants":
        from django_tenants.utils import schema_context

        context = schema_context(host.partition(".")[0])
    with context:
        browser.force_login(User.objects.get(pk=1))
    return browser


def main(framework: str, database: str, identify: str) -> None:
    """See the module's docstring."""
    configure(framework, json.loads(database), identify)
    create_shops(framework)
    from django_moe_personalize.checks.settings import check_site
    from django_moe_personalize.client import get_engine
    from django_moe_personalize.delivery.base import get_delivery

    engine, asked = get_engine(), []
    handle = engine.handle

    def record(request: Any) -> Any:
        if request.path == "/experiences/fetch":
            asked.append(json.loads(request.body)["identifiers"]["customer_id"])
        return handle(request)

    engine.handle = record
    for host in HOSTS:
        browser = sign_in(framework, host)
        assert [browser.get("/").status_code for _ in range(2)] == [200, 200]
    pending = get_delivery().counts().pending
    print(json.dumps({"asked": asked, "checks": [m.id[-4:] for m in check_site()], "pending": pending}))


if __name__ == "__main__":
    main(*sys.argv[1:])

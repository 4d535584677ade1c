"""Sign user 1 of two shops in, open pages of both, and print as JSON whom the package asked for.

The arguments are the framework (``tenants`` or ``sites``), the database as JSON, the path for IDENTIFY or "", and the
path for WORKSPACE or "", which gives each shop a workspace of its own.
"""

import json
import sys
from contextlib import nullcontext

import django
from django.conf import settings
from django.core.management import call_command
from django.http import HttpResponse
from django.test import Client
from django.urls import include, path

from django_moe_personalize.visitor import Identity

HOSTS = ("ale.example.com", "books.example.com")
AUTH = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
SHARED = [*AUTH, "django_moe_personalize"]
TENANTS = {
    "INSTALLED_APPS": ["django_tenants", "tests.sites.tenants", *SHARED],
    # The outbox is in the public schema, where one deliverer serves all tenants.
    "SHARED_APPS": ["django_tenants", "tests.sites.tenants", *SHARED],
    "TENANT_APPS": AUTH,
    "TENANT_MODEL": "tenants.Shop",
    "TENANT_DOMAIN_MODEL": "tenants.Domain",
    "DATABASE_ROUTERS": ["django_tenants.routers.TenantSyncRouter"],
}
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django_moe_personalize.middleware.PersonalizeMiddleware",
]


def identify_by_schema(request):
    return Identity(f"{request.tenant.schema_name}-{request.user.pk}")


def identify_by_site(request):
    from django.contrib.sites.shortcuts import get_current_site

    return Identity(f"{get_current_site(request).domain}-{request.user.pk}")


def choose_by_schema(request):
    return request.tenant.schema_name


def choose_by_site(request):
    from django.contrib.sites.shortcuts import get_current_site

    return get_current_site(request).name


def show(request):
    request.personalization.track_impression("hero-banner")
    return HttpResponse()


urlpatterns = [path("", show), path("moe/", include("django_moe_personalize.urls"))]


def configure(framework, database, identify, workspace):
    more = {"INSTALLED_APPS": [*SHARED, "django.contrib.sites"], "MIDDLEWARE": MIDDLEWARE}
    if framework == "tenants":
        database["ENGINE"] = "django_tenants.postgresql_backend"
        more = {**TENANTS, "MIDDLEWARE": ["django_tenants.middleware.main.TenantMainMiddleware", *MIDDLEWARE]}
    delivery = {"BACKEND": "django_moe_personalize.delivery.database.DatabaseDelivery"}
    moe = {"SANDBOX": True, "IDENTIFY": identify, "DEADLINE": 20, "DELIVERY": delivery}
    if workspace:
        moe |= {"WORKSPACE": workspace, "WORKSPACES": {"default": {}, "ale": {}, "books": {}}}
    settings.configure(
        SECRET_KEY="tenants",
        ALLOWED_HOSTS=HOSTS,
        ROOT_URLCONF=__name__,
        DATABASES={"default": database},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        MOE_PERSONALIZE=moe,
        **more,
    )
    django.setup()


def create_shops(framework):
    """Create two shops, and yield the browser of user 1 at each shop."""
    from django.contrib.auth.models import User

    if framework == "tenants":
        from django_tenants.utils import schema_context

        from tests.sites.tenants.models import Domain, Shop

        call_command("migrate_schemas", shared=True, run_syncdb=True, verbosity=0)
    else:
        call_command("migrate", verbosity=0)
        from django.contrib.sites.models import Site

    for host in HOSTS:
        context, name, browser = nullcontext(), host.partition(".")[0], Client(headers={"host": host})
        if framework == "tenants":
            shop = Shop(schema_name=name)
            shop.save(verbosity=0)
            Domain.objects.create(domain=host, tenant=shop, is_primary=True)
            context = schema_context(name)
        else:
            Site.objects.create(domain=host, name=name)
        with context:
            browser.force_login(User.objects.get_or_create(pk=1)[0])
        yield browser


def main(framework, database, identify, workspace):
    configure(framework, json.loads(database), identify, workspace)
    from django_moe_personalize.checks.settings import check_site
    from django_moe_personalize.client import get_engine
    from django_moe_personalize.conf import list_workspaces
    from django_moe_personalize.delivery.base import get_delivery
    from django_moe_personalize.runtime import get_runtime

    asked = []

    def listen(name):
        engine = get_engine(get_runtime(name))
        handle, place = engine.handle, f"{name}: " if workspace else ""

        def record(request):
            if request.path == "/experiences/fetch":
                asked.append(place + json.loads(request.body)["identifiers"]["customer_id"])
            return handle(request)

        engine.handle = record

    for name in list_workspaces():
        listen(name)
    for browser in list(create_shops(framework)):
        assert [browser.get("/").status_code for _ in range(2)] == [200, 200]
    checks = [message.id[-4:] for message in check_site()]
    pending = {name: get_delivery(get_runtime(name)).counts().pending for name in list_workspaces()}
    print(json.dumps({"asked": asked, "checks": checks, "pending": pending if workspace else pending["default"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])

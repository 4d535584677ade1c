"""A site with ATOMIC_REQUESTS whose database refuses queries of the package and of its hooks.

``python -m tests.services.transactions_site DATABASE`` visits a page for each failure, and prints what the page stored.
"""

import json
import sys
from contextlib import contextmanager

import django
from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings

APPS = ["contenttypes", "auth", "sessions"]
DELIVERIES = "django_moe_personalize.delivery"
SANDBOX = {"SANDBOX": True, "DEADLINE": 10, "DELIVERY": {"BACKEND": f"{DELIVERIES}.immediate.ImmediateDelivery"}}

if __name__ == "__main__":
    settings.configure(
        SECRET_KEY="services",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="__main__",
        INSTALLED_APPS=[*(f"django.contrib.{app}" for app in APPS), "django_moe_personalize"],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django_moe_personalize.middleware.PersonalizeMiddleware",
        ],
        DATABASES={"default": {"ATOMIC_REQUESTS": True, **json.loads(sys.argv[1])}},
        CACHES={"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "site_cache"}},
        TASKS={"default": {"BACKEND": "__main__.TableBackend"}},
        MOE_PERSONALIZE=SANDBOX,
    )
    django.setup()

from django.contrib.auth.models import Group  # noqa: E402 - after the settings
from django.core.management import call_command  # noqa: E402
from django.db import DatabaseError, connection, transaction  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.test import AsyncClient, Client, override_settings  # noqa: E402
from django.urls import include, path  # noqa: E402

from django_moe_personalize import api, signals  # noqa: E402
from django_moe_personalize.delivery.base import BaseDelivery  # noqa: E402
from django_moe_personalize.fetching.shared import add_to_count  # noqa: E402
from django_moe_personalize.types import Experience  # noqa: E402

try:
    from django.tasks.backends.base import BaseTaskBackend
except ImportError:  # Django 5.2 has no tasks.
    from django_tasks.backends.base import BaseTaskBackend

EXPERIENCE = Experience("hero", {}, {"cid": "c", "experience": "Hero"})


def run(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)


def fail(*args, **kwargs):
    """Store a row, and run a query that fails."""
    Group.objects.create(name="lost")
    run("SELECT * FROM nothing")


def fail_and_handle(request):
    """Handle the error of a query, which leaves the transaction unusable."""
    try:
        run("SELECT * FROM nothing")
    except DatabaseError:
        return None


def fail_in_block(request):
    """Fail in a block without a savepoint."""
    with transaction.atomic(savepoint=False):
        fail()


async def afail(request):
    """See fail()."""
    await sync_to_async(fail)()


class FailingDelivery(BaseDelivery):
    """A delivery of the site."""

    uses_database = True
    take = fail


class TableBackend(BaseTaskBackend):
    """A backend that keeps its queue in a table."""

    enqueue = fail


def page(request):
    """Store a row, read an experience, report an impression that MoEngage refuses, count, and store another row."""
    Group.objects.create(name="before")
    request.personalization.get("hero-banner")
    api.experiences_shown([EXPERIENCE], customer_id="42")
    add_to_count("visits", 1, 60.0)
    Group.objects.create(name="after")
    return HttpResponse(request.personalization.identity.customer_id or "")


@transaction.non_atomic_requests
async def apage(request):
    """See page(). Django refuses ATOMIC_REQUESTS for an async view, so the view opens the transaction itself."""
    return await sync_to_async(transaction.atomic(page))(request)


urlpatterns = [path("page/", page), path("apage/", apage), path("moe/", include("django_moe_personalize.urls"))]

FAILURES = {
    "nothing": {},
    **{
        f"{name} {f.__name__}": {name: f"__main__.{f.__name__}"}
        for name in ("CONSENT", "IDENTIFY")
        for f in (fail, afail)
    },
    "IDENTIFY handled": {"IDENTIFY": "__main__.fail_and_handle"},
    "IDENTIFY in block": {"IDENTIFY": "__main__.fail_in_block"},
    "ATTRIBUTES": {"ATTRIBUTES": ["__main__.fail", "__main__.fail_and_handle"]},
    "session": "django_session",
    "cache": "site_cache",
    "outbox": "moe_personalize_outboxevent",
    "receiver": signals.events_dropped,
    "delivery": {"DELIVERY": {"BACKEND": "__main__.FailingDelivery"}},
    "tasks": {"DELIVERY": {"BACKEND": f"{DELIVERIES}.tasks.TasksDelivery"}},
}


@contextmanager
def broken(failure):
    """Break a table, a receiver or a setting."""
    moe = failure if isinstance(failure, dict) else {}
    if failure == "moe_personalize_outboxevent":
        moe = {"DELIVERY": {"BACKEND": f"{DELIVERIES}.database.DatabaseDelivery"}}
    with override_settings(MOE_PERSONALIZE=SANDBOX | moe):
        if isinstance(failure, str):
            run(f"ALTER TABLE {failure} RENAME TO away")
            yield
            run(f"ALTER TABLE away RENAME TO {failure}")
        elif isinstance(failure, dict):
            yield
        else:
            failure.connect(fail)
            yield
            failure.disconnect(fail)


def visit(client, address):
    """Return the status of the page and the rows that it stored."""
    Group.objects.all().delete()
    client.cookies["sessionid"] = "k" * 32
    get = client.get if isinstance(client, Client) else async_to_sync(client.get)
    client.raise_request_exception = False
    status = get(address).status_code
    return [status, *Group.objects.order_by("pk").values_list("name", flat=True)]


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    call_command("createcachetable")
    for name, failure in FAILURES.items():
        for client, address in ((Client, "/page/"), (AsyncClient, "/page/"), (AsyncClient, "/apage/")):
            with broken(failure):
                found = visit(client(), address)
            print(json.dumps([f"{name} {client.__name__} {address}", found]))

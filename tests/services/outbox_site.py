"""A site with an outbox: its pages under gunicorn, and its ``manage.py``.

What it is configured with comes in OUTBOX_SITE. ``tests.services.outbox_site:wsgi()`` is what gunicorn
runs; ``python -m tests.services.outbox_site COMMAND`` is ``manage.py COMMAND``, and with ``-c CODE`` it
runs Python in the site.
"""

import json
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import path

from django_moe_personalize.moengage.types import Event, Experience
from tests.services.load import EVENTS
from tests.services.site import page

_here = threading.local()


def configure() -> None:
    import django

    told: dict[str, Any] = json.loads(os.environ["OUTBOX_SITE"])
    settings.configure(
        SECRET_KEY="services",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="tests.services.outbox_site",
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django_moe_personalize"],
        MIDDLEWARE=["django_moe_personalize.middleware.PersonalizeMiddleware"],
        DATABASES={"default": {"ATOMIC_REQUESTS": True, "CONN_MAX_AGE": 60, **told["database"]}},
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
        TIME_ZONE="Europe/Paris",
        MOE_PERSONALIZE={"IDENTIFY": "tests.services.site.identify", **told["moe"]},
    )
    django.setup()


def show_in_transaction(request: HttpRequest) -> HttpResponse:
    """Store a row and record an impression in the view's transaction."""
    from django.contrib.auth.models import Group

    from django_moe_personalize import api

    Group.objects.create(name=request.GET["name"])
    api.experiences_shown([Experience("hero", {}, {"cid": "c", "experience": "Hero"})], customer_id="42")
    return HttpResponse(str(Group.objects.count()))


def convert(request: HttpRequest) -> HttpResponse:
    """Show the page, and report an event of the visitor in the view's transaction."""
    response: HttpResponse = page(request)
    request.personalization.track_event("Order placed", {"total": 12.5})
    return response


urlpatterns = [path("page/", convert), path("in-transaction/", show_in_transaction)]


def wsgi() -> Any:
    """Return an application that lists the UUIDs of a page's stored events in a header."""
    configure()
    from django.core.handlers.wsgi import WSGIHandler

    from django_moe_personalize.delivery.base import get_delivery

    handler = WSGIHandler()
    delivery = get_delivery()
    take = delivery.take

    def take_and_tell(events: Sequence[Event]) -> None:
        take(events)
        _here.events += [event.event_uuid for event in events]

    delivery.take = take_and_tell

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        _here.events = []

        def start(status: str, headers: list[tuple[str, str]], *args: Any) -> Any:
            return start_response(status, [*headers, (EVENTS, ",".join(_here.events))], *args)

        return handler(environ, start)

    return application


def main(arguments: Sequence[str]) -> None:
    configure()
    if arguments[0] == "-c":
        exec(arguments[1], {})  # noqa: S102 - the code of a test
        return
    from django.core.management import execute_from_command_line

    execute_from_command_line(["manage.py", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])

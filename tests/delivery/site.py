"""A site whose views record an event, and a script that records events and ends; for test_delivery_exit.py."""

import json
import os
import signal
import sys
import threading
import time

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.moengage.types import Action, Event


def view(request):
    return HttpResponse(record(1)[0])


async def aview(request):
    """See view(), in the event loop."""
    event = Event(Action.SHOWN, "async", {"cid": "c"}, 1_760_000_000)
    await get_delivery().arecord([event])
    return HttpResponse(event.event_uuid)


urlpatterns = [path("", view), path("async/", aview)]


def record(count):
    events = [Event(Action.SHOWN, str(number), {"cid": "c"}, 1_760_000_000) for number in range(count)]
    get_delivery().record(events)
    return [event.event_uuid for event in events]


def end(way):
    if way == "exit":
        sys.exit(0)
    elif way == "error":
        raise RuntimeError("unhandled")
    elif way == "interrupt":
        # A process that a shell starts in the background ignores Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)
    elif way == "thread":
        threading.Thread(target=record, args=(1,)).start()


settings.configure(
    SECRET_KEY="site",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="tests.delivery.site",
    MOE_PERSONALIZE=json.loads(os.environ["SITE_MOE_PERSONALIZE"]),
)
django.setup()
application = get_wsgi_application()
asgi = get_asgi_application()
if "uwsgi" not in sys.modules:
    # With gunicorn --preload this is an event of the master, recorded before it forks. uWSGI forks without Python's
    # hooks: a child of a process with threads may hang.
    record(1)

if __name__ == "__main__":
    record(int(sys.argv[2]))
    print(time.monotonic(), flush=True)
    end(sys.argv[1])

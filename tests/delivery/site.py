"""A site whose views record an event, and a script that records events and ends in one of several ways.

``python -m tests.delivery.site WAY COUNT`` runs the script. Servers load ``application`` or ``asgi``.
"""

import atexit
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor

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


def preload():
    """Return the application for ``gunicorn --preload``. The master records an event before it forks."""
    record(1)
    return application


def record_and_wait(connection):
    record(10)
    connection.send("recorded")
    time.sleep(60)


def run_children(method):
    """Record 10 events in each of two kinds of children, or of four kinds that start quickly."""
    context = multiprocessing.get_context(method)
    process = context.Process(target=record, args=(10,))
    process.start()
    process.join()
    with context.Pool(1) as pool:
        # The end of this context sends SIGTERM.
        pool.apply(record, (10,))
    if method != "fork":
        return
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        executor.submit(record, 10).result()
    ours, theirs = context.Pipe()
    context.Process(target=record_and_wait, args=(theirs,), daemon=True).start()
    ours.recv()


def run_fork():
    """Record 10 events in a child that ends as RQ's and Celery's workers do."""
    if os.fork() == 0:
        record(10)
        os._exit(0)
    os.wait()


def end(way):
    if way == "exit":
        sys.exit(0)
    elif way == "error":
        raise RuntimeError("unhandled")
    elif way == "interrupt":
        # A process that a shell starts in the background ignores Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)
    elif way in ("SIGTERM", "SIGHUP"):
        signal.raise_signal(signal.Signals[way])
    elif way == "exec":
        os.execv(sys.executable, [sys.executable, "-c", ""])  # noqa: S606
    elif way == "thread":
        threading.Thread(target=record, args=(1,)).start()
    elif way == "os.fork":
        run_fork()
    elif way in multiprocessing.get_all_start_methods():
        run_children(way)


# Registered before the package, so that it runs after the package's own function.
atexit.register(lambda: record(1) if sys.argv[1:2] == ["atexit"] else None)
settings.configure(
    SECRET_KEY="site",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="tests.delivery.site",
    # A server's main thread loads the middleware, which builds the delivery.
    MIDDLEWARE=["django_moe_personalize.middleware.PersonalizeMiddleware"],
    MOE_PERSONALIZE=json.loads(os.environ["SITE_MOE_PERSONALIZE"]),
)
django.setup()
application = get_wsgi_application()
asgi = get_asgi_application()

if __name__ == "__main__":
    record(int(sys.argv[2]))
    print(time.monotonic(), flush=True)
    end(sys.argv[1])

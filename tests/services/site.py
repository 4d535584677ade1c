"""The site that gunicorn and uvicorn serve: personalized pages, and the same pages without the package.

Its configuration is in the environment variable SERVICES_SITE; see serving.py. gunicorn runs
``tests.services.site:wsgi()``, ``python -m tests.services.site FD`` runs uvicorn, and
``python -m tests.services.site COMMAND …`` runs a command of Django. Below ``/without`` the same
process serves the same URLs without our middleware.
"""

import asyncio
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template import engines
from django.urls import path

from django_moe_personalize.decorators import personalize
from django_moe_personalize.visitor import Identity

OURS = "django_moe_personalize.middleware.PersonalizeMiddleware"
WITHOUT = "/without"
WARMING_VISITOR = "master"

PAGE = """{% load moe_personalize %}<!doctype html><title>Shop</title>
{% experience "hero" as hero %}<h1>{{ hero.Title }}</h1>{% fallback %}<h1>Welcome</h1>{% endexperience %}
<p>{% experience_value "strip" "Text" default="Free returns" %}</p>"""


def identify(request: HttpRequest) -> Identity:
    return Identity(customer_id=request.META["HTTP_X_VISITOR"])


def _show(request: HttpRequest) -> HttpResponse:
    page = engines["django"].from_string(PAGE).render({}, request)
    # The process that answers. With a length, the client can keep the connection.
    headers = {"X-Worker": os.getpid(), "Content-Length": len(page.encode())}
    return HttpResponse(page, status=int(request.GET.get("status", 200)), headers=headers)


@personalize("hero", "strip")
def page(request: HttpRequest) -> HttpResponse:
    """Render the personalized page, with the status in ``?status=``."""
    return _show(request)


@personalize("hero", "strip")
async def apage(request: HttpRequest) -> HttpResponse:
    return _show(request)


async def unrelated(request: HttpRequest) -> HttpResponse:
    """Answer at once, as a view without personalization does."""
    return HttpResponse("ok", headers={"X-Worker": os.getpid(), "Content-Length": 2})


def state(request: HttpRequest) -> HttpResponse:
    """Return the state of this process that no page shows."""
    from django_moe_personalize.fetching import upstream

    breaker = upstream.get_breaker()
    retry_in = max(0.0, breaker._find_due() - time.monotonic())
    said = {"state": breaker.state, "reason": breaker.reason, "retry_in": retry_in}
    response = JsonResponse(said | {"in_flight": upstream.get_pool().in_flight})
    response["X-Worker"] = str(os.getpid())
    response["Content-Length"] = str(len(response.content))
    return response


urlpatterns = [
    path("page/", page),
    path("apage/", apage),
    path("unrelated/", unrelated),
    path("state/", state),
]


def _configure() -> dict[str, Any]:
    import django

    told: dict[str, Any] = json.loads(os.environ["SERVICES_SITE"])
    settings.configure(
        SECRET_KEY="services",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="tests.services.site",
        INSTALLED_APPS=["django_moe_personalize"],
        MIDDLEWARE=[OURS],
        # Without one, any use of the database is an error.
        DATABASES=told["databases"],
        CACHES=told["caches"],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
        LOGGING={
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": "[%(process)d] %(name)s %(levelname)s: %(message)s"}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"handlers": ["stderr"], "level": "WARNING"},
            # Some pages are a 404 on purpose.
            "loggers": {"django.request": {"level": "CRITICAL"}},
        },
        MOE_PERSONALIZE={"IDENTIFY": "tests.services.site.identify", **told["moe"]},
    )
    django.setup()
    _shorten(told["intervals"])
    _hang_names(Path(told["names_hang"]))
    return told


def _shorten(intervals: dict[str, Any]) -> None:
    from django_moe_personalize.fetching import upstream
    from django_moe_personalize.resilience import CircuitBreaker

    if intervals:
        CircuitBreaker.__init__.__kwdefaults__.update(intervals["breaker"])
        upstream.GATE_SECONDS = intervals["gate"]


def _hang_names(flag: Path) -> None:
    """Let the system's name lookup hang while the file ``flag`` exists, and let no page use an address found before."""
    from django_moe_personalize.moengage.connection_pool import ConnectionPool

    look_up, reconnect = socket.getaddrinfo, ConnectionPool._reconnect

    def hang(*args: Any, **kwargs: Any) -> Any:
        while flag.exists():
            time.sleep(0.02)
        return look_up(*args, **kwargs)

    socket.getaddrinfo = hang
    ConnectionPool._reconnect = lambda pool, seconds: None if flag.exists() else reconnect(pool, seconds)


def wsgi() -> Any:
    """Return the WSGI application. With ``warm``, it asks the upstream before the server forks."""
    from django.core.handlers.wsgi import WSGIHandler
    from django.test import override_settings

    told = _configure()
    ours = WSGIHandler()
    with override_settings(MIDDLEWARE=[]):
        without = WSGIHandler()

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        if not environ["PATH_INFO"].startswith(WITHOUT):
            return ours(environ, start_response)
        return without({**environ, "PATH_INFO": environ["PATH_INFO"].removeprefix(WITHOUT)}, start_response)

    if told["warm"]:
        _warm(told["warm"])
    return application


def _warm(connections: int) -> None:
    """Leave the process with this many idle connections to the upstream, threads and cached visitors."""
    from concurrent.futures import ThreadPoolExecutor

    from django.test import Client

    def ask(number: int) -> str:
        return Client().get("/page/", headers={"X-Visitor": f"{WARMING_VISITOR}-{number}"}).content.decode()

    with ThreadPoolExecutor(connections) as pool:
        assert all(WARMING_VISITOR in page for page in pool.map(ask, range(connections)))


def asgi() -> Any:
    from django.core.handlers.asgi import ASGIHandler
    from django.test import override_settings

    _configure()
    ours = ASGIHandler()
    with override_settings(MIDDLEWARE=[]):
        without = ASGIHandler()

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if not scope["path"].startswith(WITHOUT):
            await ours(scope, receive, send)
        else:
            await without({**scope, "path": scope["path"].removeprefix(WITHOUT)}, receive, send)

    return application


def _run_uvicorn(descriptor: int) -> None:
    import uvicorn

    config = uvicorn.Config(asgi(), log_level="warning", log_config=None, lifespan="off", access_log=False)
    server = uvicorn.Server(config)
    asyncio.run(server.serve(sockets=[socket.socket(fileno=descriptor)]))


def _run_command(*arguments: str) -> None:
    from django.core.management import ManagementUtility

    _configure()
    ManagementUtility(["manage.py", *arguments]).execute()


if __name__ == "__main__":
    _run_uvicorn(int(sys.argv[1])) if sys.argv[1].isdigit() else _run_command(*sys.argv[1:])

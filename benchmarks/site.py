"""The measured site: its settings, and a way to call its pages in this process without a server.

It uses the package as any site does: settings, middleware, tags and ``request.personalization``.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from benchmarks.goal import expect

OURS = "django_moe_personalize.middleware.PersonalizeMiddleware"
NO_OP = "benchmarks.site.NoOpMiddleware"
USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
READ = "Cache-Control: private"
"""A header of each page that read an experience or tried to."""

CREDENTIALS = {"WORKSPACE_ID": "BENCH_DEBUG", "API_KEY": "bench-key"}


class NoOpMiddleware:
    """Do nothing: the baseline, since any middleware class costs this much."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)


class Witness(NoOpMiddleware):
    """Count the pages that had our middleware and that it left untouched; raise for any other page."""

    seen = 0

    def __call__(self, request: Any) -> HttpResponse:
        response = self.get_response(request)
        expect(hasattr(request, "personalization"), "the page had no request.personalization")
        expect(not request.session.accessed, "the session was touched")
        expect(not hasattr(request, "_cached_user"), "the user was touched")
        Witness.seen += 1
        return response


def identify(request: HttpRequest) -> Any:
    """Return the visitor that the header names: each new name makes a cold page."""
    from django_moe_personalize.visitor.identity import Identity

    return Identity(customer_id=request.META["HTTP_X_VISITOR"])


def choose_workspace(request: HttpRequest) -> str:
    """Choose the workspace by the host, as a site with several brands does."""
    return "outlet" if request.get_host().startswith("outlet.") else "default"


async def aidentify(request: HttpRequest) -> Any:
    """See identify(). A site on ASGI writes it like this, so that no thread is needed."""
    return identify(request)


def build_moe(base_url: str, **more: Any) -> dict[str, Any]:
    """Return MOE_PERSONALIZE for visitors named by the header ``X-Visitor``; all but ``more`` has its default."""
    return {**CREDENTIALS, "BASE_URL": base_url, "IDENTIFY": "benchmarks.site.identify", **more}


def configure(*, middleware: Sequence[str] = (), moe: Mapping[str, Any] | None = None, **more: Any) -> None:
    """Set up Django, once per process. Without ``moe`` the package is not installed."""
    import django

    apps = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
    values: dict[str, Any] = {
        "SECRET_KEY": "benchmarks",
        "ALLOWED_HOSTS": ["*"],
        "ROOT_URLCONF": "benchmarks.pages",
        "INSTALLED_APPS": apps + (["django_moe_personalize"] if moe is not None else []),
        "MIDDLEWARE": list(middleware),
        # Any use of the database is an error.
        "DATABASES": {},
        "SESSION_ENGINE": "django.contrib.sessions.backends.cache",
        "CACHES": {
            "default": {
                "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
                "OPTIONS": {"MAX_ENTRIES": 100_000},
            }
        },
        "TEMPLATES": [
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", {})]},
            }
        ],
        "LOGGING_CONFIG": None,
        "MOE_PERSONALIZE": dict(moe or {}),
    }
    settings.configure(**{**values, **more})
    django.setup()


class Site:
    """The configured site with one list of middleware, called in this process as a WSGI server calls it."""

    def __init__(self, middleware: Sequence[str]) -> None:
        from django.core.handlers.wsgi import WSGIHandler
        from django.test import override_settings

        with override_settings(MIDDLEWARE=list(middleware)):
            self._handler = WSGIHandler()
        self.status = ""
        self.headers: list[tuple[str, str]] = []

    def get(self, path: str, **meta: str) -> bytes:
        """Return the body of a page and set ``status`` and ``headers``."""
        environ = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": "utm_source=mail&utm_medium=email&utm_campaign=winter",
            "SERVER_NAME": "testserver",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "203.0.113.7",
            "HTTP_HOST": "testserver",
            "HTTP_USER_AGENT": USER_AGENT,
            "HTTP_ACCEPT": "text/html",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            **meta,
        }
        response = self._handler(environ, self._start)
        body = b"".join(response)
        response.close()
        return body

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: object = None) -> None:
        self.status, self.headers = status, headers

    def check(self, path: str, content: str, **meta: str) -> bytes:
        """Return the body as get() does; raise WrongMeasurement unless it is a 200 that contains ``content``."""
        body = self.get(path, **meta)
        expect(self.status.startswith("200"), f"{path} answered {self.status}")
        expect(content.encode() in body, f"{path} does not contain {content!r}: {body[:300]!r}")
        return body


_visitors = count()


def name_visitor() -> str:
    """Return the name of a new visitor."""
    return f"v{os.getpid()}-{next(_visitors)}"


@contextmanager
def override_moe(**moe: Any) -> Iterator[None]:
    """Run with another MOE_PERSONALIZE and an empty cache; the package drops its state before and after."""
    from django.core.cache import caches
    from django.test import override_settings

    with override_settings(MOE_PERSONALIZE=moe):
        caches["default"].clear()
        yield


def read_environment() -> dict[str, Any]:
    """Return the description of the site that this process serves; serving.py passes it."""
    described: dict[str, Any] = json.loads(os.environ["BENCH_SITE"])
    return described

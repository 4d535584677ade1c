"""The measured site: settings, pages, and a way to call them in this process without a server.

Everything of the package is reached as a site reaches it: settings, middleware, tags and
``request.personalization``.
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
"""What the head of a page has that read an experience, or tried to."""

CREDENTIALS = {"WORKSPACE_ID": "BENCH_DEBUG", "API_KEY": "bench-key"}


class NoOpMiddleware:
    """What any class middleware costs: the baseline of ours."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)


class Witness(NoOpMiddleware):
    """Look at the request when it comes back: only a page that had us, and whom we did not touch, is seen."""

    seen = 0

    def __call__(self, request: Any) -> HttpResponse:
        response = self.get_response(request)
        expect(hasattr(request, "personalization"), "the page had no personalization")
        expect(not request.session.accessed, "the session was touched")
        expect(not hasattr(request, "_cached_user"), "the user was touched")
        Witness.seen += 1
        return response


def identify(request: HttpRequest) -> Any:
    """Return the visitor that the load generator names: a new name is a cold page."""
    from django_moe_personalize.visitor.identity import Identity

    return Identity(customer_id=request.META["HTTP_X_VISITOR"])


async def aidentify(request: HttpRequest) -> Any:
    """See identify(): what a site on ASGI writes, so that nothing has to go to a thread."""
    return identify(request)


def build_moe(base_url: str, **more: Any) -> dict[str, Any]:
    """Return MOE_PERSONALIZE for visitors named by the header ``X-Visitor``; nothing but ``more`` is tuned."""
    return {**CREDENTIALS, "BASE_URL": base_url, "IDENTIFY": "benchmarks.site.identify", **more}


def configure(*, middleware: Sequence[str] = (), moe: Mapping[str, Any] | None = None, **more: Any) -> None:
    """Set Django up, once a process. Without ``moe`` the package is not installed."""
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
    """The configured site behind one stack of middleware, called in this process as a WSGI server calls it."""

    def __init__(self, middleware: Sequence[str]) -> None:
        from django.core.handlers.wsgi import WSGIHandler
        from django.test import override_settings

        with override_settings(MIDDLEWARE=list(middleware)):
            self._handler = WSGIHandler()
        self.status = ""
        self.headers: list[tuple[str, str]] = []

    def get(self, path: str, **meta: str) -> bytes:
        """Return the body of a page; status and headers stay in the attributes until the next call."""
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
        """Return the body like get(); raise WrongMeasurement unless it is a 200 with ``content``."""
        body = self.get(path, **meta)
        expect(self.status.startswith("200"), f"{path} answered {self.status}")
        expect(content.encode() in body, f"{path} is without {content!r}: {body[:300]!r}")
        return body


_visitors = count()


def name_visitor() -> str:
    """Return the name of a visitor that no page of this run has seen."""
    return f"v{os.getpid()}-{next(_visitors)}"


@contextmanager
def override_moe(**moe: Any) -> Iterator[None]:
    """Run with another MOE_PERSONALIZE: everything a process keeps is forgotten, before and after."""
    from django.core.cache import caches
    from django.test import override_settings

    with override_settings(MOE_PERSONALIZE=moe):
        caches["default"].clear()
        yield


def read_environment() -> dict[str, Any]:
    """Return what a served site was told about itself; see serving.py."""
    told: dict[str, Any] = json.loads(os.environ["BENCH_SITE"])
    return told

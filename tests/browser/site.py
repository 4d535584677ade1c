"""The site that Chromium visits: pages from templates, and a record of their reports."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.http import Http404, HttpRequest, HttpResponse
from django.template import engines
from django.urls import include, path

POLICY = "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'"

PAGE = """<!doctype html><html><head><meta charset="utf-8"><title>{path}</title>
<style>body{{margin:0;font:16px/20px monospace}}</style>{head}</head><body>{{% load moe_personalize %}}{body}
{{% personalize_scripts %}}</body></html>"""

pages: dict[str, tuple[str, str | bytes]] = {}
"""The pages of the site: path → media type and template, or the bytes of a file."""


def show(request: HttpRequest, name: str) -> HttpResponse:
    if name not in pages:
        raise Http404
    kind, source = pages[name]
    if isinstance(source, bytes):
        return HttpResponse(source, content_type=kind)
    engine = engines["jinja2" if name.endswith(".jinja") else "django"]
    return HttpResponse(engine.from_string(source).render({}, request), content_type=kind)


urlpatterns = [path("moe/", include("django_moe_personalize.urls")), path("<path:name>", show)]


class _Handler(WSGIRequestHandler):
    # A connection that stays open would outlive its test in a thread of the server.
    protocol_version = "HTTP/1.0"

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


class Site:
    """A running site: ``put`` pages, and read the ``beacons`` that arrived and the ``paths`` of all requests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.other_host = url.replace("http://127.0.0.1", "localhost")
        self.policy = POLICY
        self.paths: list[str] = []
        self.beacons: list[list[list[str]]] = []
        self.beacon_sizes: list[int] = []
        self._application = StaticFilesHandler(WSGIHandler())

    def put(self, name: str, body: str, *, head: str = "") -> str:
        pages[name] = ("text/html", PAGE.format(path=name, head=head, body=body))
        return f"{self.url}/{name}"

    def put_file(self, name: str, text: str | bytes, kind: str = "text/javascript") -> None:
        """Put a script or a piece of HTML at a path. It is a template too."""
        pages[name] = (kind, text)

    def clear(self) -> None:
        pages.clear()
        self.put_file("favicon.ico", "", "image/x-icon")
        self.policy = POLICY
        self.paths.clear()
        self.beacons.clear()
        self.beacon_sizes.clear()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.paths.append(environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/moe/beacon/":
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            self.beacon_sizes.append(len(body))
            self.beacons.append(json.loads(body)["events"])
            environ["wsgi.input"] = BytesIO(body)

        def start(status: str, headers: list[tuple[str, str]], error: Any = None) -> Any:
            return start_response(status, [*headers, ("Content-Security-Policy", self.policy)], error)

        return self._application(environ, start)


@contextmanager
def serve() -> Iterator[Site]:
    server = ThreadedWSGIServer(("127.0.0.1", 0), _Handler)
    site = Site(f"http://127.0.0.1:{server.server_port}")
    server.set_app(site)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""A real nginx in front of the site: pages that it stores, and the visitor's address through a unix socket."""

import json
import os
import shutil
import sys
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from django.core.cache import cache
from django.http import HttpResponse
from django.test import RequestFactory
from django.urls import include, path

from django_moe_personalize.contrib.view_as.middleware import ViewAsMiddleware
from django_moe_personalize.contrib.view_as.view import COOKIE, View
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.tracking import leaks
from django_moe_personalize.visitor import Identity
from tests.services.serving import find_free_port, running, wait_until
from tests.site import TAGS, show
from tests.sites.serving import open_port

# Debian installs it where only root's PATH has it.
PROGRAM = shutil.which("nginx") or "/usr/sbin/nginx"
CONFIGURATION = """
daemon off; pid {folder}/nginx.pid; error_log stderr; worker_processes 1; {user}
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  proxy_cache_path {folder}/cache keys_zone=site:1m;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass {site}; {options} }}
  }}
}}
"""


@contextmanager
def run_nginx(folder, site, options):
    """Run nginx in front of the site, and give the function that opens a page and returns its text and headers."""
    port, log, user = find_free_port(), folder / "nginx.log", "user root;" if os.geteuid() == 0 else ""
    configuration = CONFIGURATION.format(folder=folder, port=port, site=site, user=user, options=options)
    (folder / "nginx.conf").write_text(configuration)
    # Building an opener takes 35 ms: it reads the certificates of the machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def visit(path, **headers):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=names)
        with opener.open(request, timeout=60) as response:
            return response.read().decode(), response.headers

    command = [PROGRAM, "-p", folder, "-c", folder / "nginx.conf"]
    with log.open("wb") as errors, running(command, stderr=errors) as process:
        wait_until(process, lambda: open_port(port), log.read_text)
        yield visit


# proxy_cache

HEADERS = {
    "none": {},
    "nginx": {"X-Accel-Expires": "300"},
    "nginx-at-a-time": {"X-Accel-Expires": "@9999999999"},
    "public": {"Cache-Control": "public, max-age=300", "Expires": "Fri, 01 Jan 2100 00:00:00 GMT"},
    "cdn": {"CDN-Cache-Control": "max-age=300", "Surrogate-Control": "max-age=300", "X-Accel-Expires": "300"},
}


def tell(request, content):
    return HttpResponse(f"{request.headers['User-Agent']} {content}", headers=HEADERS[request.GET["headers"]])


def read(request):
    return tell(request, "hero-banner" in request.personalization)


def identity(request):
    return tell(request, request.personalization.consent)


def fragment(request):
    return tell(request, cache.get_or_set("hero", lambda: show(request, TAGS).content.decode()))


def plain(request):
    return tell(request, "plain")


def previewed(request):
    """Use the middleware in the view, because the live server keeps the middleware of its start."""
    return ViewAsMiddleware(plain)(request)


def identify(request):
    """Name the visitor by the user agent, without a cookie, which would keep nginx from storing the page."""
    return Identity(request.headers["User-Agent"])


@pytest.fixture
def nginx(live_server, settings, tmp_path, upstream):
    """Give the function that opens a page as a visitor, and returns its text and whether nginx has stored it."""
    module = ModuleType("behind_nginx")
    module.urlpatterns = [path(f"{view.__name__}/", view) for view in (read, identity, fragment, plain, previewed)]
    module.urlpatterns.append(path("moe/", include("django_moe_personalize.urls")))
    settings.ROOT_URLCONF = module
    options = "proxy_set_header Host testserver; proxy_cache site; add_header X-Cache $upstream_cache_status;"

    def open_page(visitor, path, **more):
        text, headers = visit(path, User_Agent=visitor, **more)
        return text, headers["X-Cache"]

    with (
        leaks.is_strict.override(False),
        override_personalize(ANONYMOUS_ID=False, IDENTIFY="tests.sites.test_nginx.identify"),
        run_nginx(tmp_path, live_server.url, options) as visit,
    ):
        yield open_page


@pytest.mark.parametrize("view", ["read", "identity", "fragment"])
def test_page_of_one_visitor(nginx, view):
    """Each visitor gets the visitor's own page, whatever headers the view sets."""
    nginx("first", "/fragment/?headers=none")
    for name in HEADERS:
        for visitor in ("ada", "bob", "ada"):
            body, status = nginx(visitor, f"/{view}/?headers={name}")
            assert body.startswith(f"{visitor} ")
            assert status == "MISS"


def test_page_for_all_visitors(nginx):
    """nginx stores a page that reads nothing, as its headers say."""
    for name in ("nginx", "public"):
        assert [nginx(visitor, f"/plain/?headers={name}")[1] for visitor in ("ada", "bob")] == ["MISS", "HIT"]


def test_page_of_a_preview(nginx, settings, django_user_model):
    """nginx stores no preview, whatever headers the view sets. It stores the page of the next visitor."""
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "django_moe_personalize.contrib.view_as"]
    staff = django_user_model.objects.create_superuser("staff")
    view = View(issuer=str(staff.pk), anonymous=True, is_shared=True).sign(RequestFactory().get("/"))
    for name in HEADERS:
        path = f"/previewed/?headers={name}"
        preview, *others = [nginx("ada", path, Cookie=cookie)[1] for cookie in (f"{COOKIE}={view}", "", "")]
        assert preview == "MISS"
        assert others == ["MISS", "MISS" if name == "none" else "HIT"]


# A unix socket

SITE = "tests.sites.socket_site"
SERVERS = {
    "gunicorn": [f"{SITE}:application", "--no-control-socket", "--bind=unix:{socket}"],
    "uvicorn": [f"{SITE}:asgi", "--uds={socket}"],
}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    ("proxies", "address", "warnings"),
    [
        # The test stands for a load balancer in front of nginx, so its address is a proxy's too.
        (["unix", "127.0.0.0/8"], "198.41.0.4", 0),
        (["127.0.0.0/8"], "unknown", 1),
        ([], "unknown", 1),
    ],
)
def test_address_through_a_unix_socket(server, proxies, address, warnings):
    """With "unix" in TRUSTED_PROXIES MoEngage gets the address that nginx wrote, never one that the visitor wrote.

    Without "unix" MoEngage gets no address, and the log says once what to do.
    """
    headers = "proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
    with tempfile.TemporaryDirectory(prefix="moe-") as name:
        folder = Path(name)
        socket, log = folder / "site.sock", folder / "site.log"
        options = [part.format(socket=socket) for part in SERVERS[server]]
        command = [sys.executable, "-m", server, "--log-level=warning", *options]
        environment = {**os.environ, "TRUSTED_PROXIES": json.dumps(proxies)}
        with log.open("wb") as errors, running(command, env=environment, stderr=errors) as site:
            wait_until(site, socket.exists, log.read_text)
            with run_nginx(folder, f"http://unix:{socket}", headers) as visit:
                answers = [visit("/", X_Forwarded_For="8.8.8.8, 198.41.0.4")[0] for _ in range(2)]
        assert answers == [address] * 2
        assert log.read_text().count("A proxy connects to the site through a unix socket") == warnings

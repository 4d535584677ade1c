"""nginx with proxy_cache in front of the site: nginx stores no personalized page, whatever headers the view sets."""

import contextlib
import urllib.request
from types import ModuleType

import pytest
from django.core.cache import cache
from django.http import HttpResponse
from django.urls import include, path

from django_moe_personalize.testing import override_personalize
from django_moe_personalize.tracking import leaks
from tests.services.serving import find_free_port, running, wait_until
from tests.site import TAGS, show

CONFIGURATION = """
daemon off; user root; pid nginx.pid; error_log error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  proxy_cache_path cache keys_zone=site:1m;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass {site}; proxy_set_header Host testserver;
      proxy_cache site; add_header X-Cache $upstream_cache_status;
    }}
  }}
}}
"""

HEADERS = {
    "none": {},
    "nginx": {"X-Accel-Expires": "300"},
    "nginx at a time": {"X-Accel-Expires": "@9999999999"},
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


@pytest.fixture
def nginx(live_server, settings, tmp_path, upstream):
    """Run nginx in front of the site, and give the function that opens a page as a visitor."""
    module = ModuleType("behind_nginx")
    module.urlpatterns = [path(f"{view.__name__}/", view) for view in (read, identity, fragment, plain)]
    module.urlpatterns.append(path("moe/", include("django_moe_personalize.urls")))
    settings.ROOT_URLCONF = module
    port = find_free_port()
    (tmp_path / "nginx.conf").write_text(CONFIGURATION.format(port=port, site=live_server.url))

    def visit(visitor, path):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"User-Agent": visitor})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
            return response.read().decode(), response.headers["X-Cache"]

    def answers():
        with contextlib.suppress(OSError):
            return bool(visit("probe", "/plain/?headers=none"))

    command = ["/usr/sbin/nginx", "-p", tmp_path, "-c", tmp_path / "nginx.conf"]
    with (
        leaks.is_strict.override(False),
        override_personalize(ANONYMOUS_ID=False, IDENTIFY="tests.sites.test_nginx_cache.identify"),
        running(command) as process,
    ):
        wait_until(process, answers, lambda: (tmp_path / "error.log").read_text())
        yield visit


def identify(request):
    """Name the visitor by the user agent, without a cookie, which would keep nginx from storing the page."""
    from django_moe_personalize.visitor import Identity

    return Identity(request.headers["User-Agent"])


@pytest.mark.parametrize("view", ["read", "identity", "fragment"])
def test_page_of_one_visitor(nginx, view):
    """Each visitor gets the visitor's own page."""
    nginx("first", "/fragment/?headers=none")
    for name in HEADERS:
        url = f"/{view}/?headers={name.replace(' ', '%20')}"
        for visitor in ("ada", "bob", "ada"):
            body, status = nginx(visitor, url)
            assert body.startswith(f"{visitor} ")
            assert status == "MISS"


def test_page_for_all_visitors(nginx):
    """nginx stores a page that reads nothing, as its headers say."""
    for name in ("nginx", "public"):
        assert [nginx(visitor, f"/plain/?headers={name}")[1] for visitor in ("ada", "bob")] == ["MISS", "HIT"]

"""Pages with islands behind a shared cache: one request for the page, and each visitor's own islands."""

import json
import re
import shutil
import urllib.request
from collections import Counter
from contextlib import contextmanager
from types import ModuleType
from urllib.parse import quote

import pytest
from django.urls import include, path

from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.visitor import Identity
from tests.pages import BROWSER
from tests.processes import SOON
from tests.services.serving import find_free_port, running, wait_until
from tests.site import show
from tests.sites.serving import open_port
from tests.sites.test_nginx import run_nginx

# Debian installs it where only root's PATH has it.
VARNISH = shutil.which("varnishd") or "/usr/sbin/varnishd"
KEYS = ("hero-banner", "promo-strip", "offers")
CONTENT = "{% load moe_personalize %}{% experience experience_key as e %}{{ experience_key }}: {{ e.Title }}"
CONTENT += "{% endexperience %}"
PAGE = "{% load moe_personalize %}" + "".join(
    f"{{% experience_island '{key}' template='island.html' %}}Welcome{{% endexperience_island %}}" for key in KEYS
)
VCL = """vcl 4.1;
backend default {{ .host = "127.0.0.1"; .port = "{port}"; }}
sub vcl_recv {{ set req.http.Host = "testserver"; }}
sub vcl_backend_response {{ if (bereq.url == "/page/") {{ set beresp.do_esi = true; }} }}
"""


def identify(request):
    """Name the visitor by the last word of the user agent, without a cookie, which would keep a page out of caches."""
    return Identity(request.headers["User-Agent"].rpartition(" ")[2])


@pytest.fixture
def visitors(pytestconfig):
    return [f"person-{number}" for number in range(1000 if pytestconfig.getoption("--long") else 150)]


@pytest.fixture
def site(live_server, settings, upstream):
    """Give the address of a site that names its visitors by their user agents, and the paths of its pages."""
    pages = []

    def page(request):
        pages.append(request.path)
        response = show(request, PAGE)
        response["Cache-Control"] = "public, max-age=300"
        return response

    upstream.echo()
    loader = ("django.template.loaders.locmem.Loader", {"island.html": CONTENT})
    settings.TEMPLATES = [settings.TEMPLATES[0] | {"APP_DIRS": False, "OPTIONS": {"loaders": [loader]}}]
    settings.ROOT_URLCONF = module = ModuleType("behind_a_cache")
    module.urlpatterns = [path("page/", page), path("moe/", include("django_moe_personalize.urls"))]
    with override_personalize(ANONYMOUS_ID=False, IDENTIFY="tests.sites.test_islands.identify", CACHE_TTL=0):
        yield live_server.url, pages


def check_counts(upstream, visitors):
    """Check that each visitor has one impression of each key. The delivery sends the events in the background."""
    assert get_delivery().flush(timeout=SOON)
    assert Counter(upstream.booked) == dict.fromkeys(visitors, len(KEYS))


def check(visitor, text):
    """Check that a page or its islands have the content of this visitor, for each key."""
    assert [found.split()[1] for found in re.findall(r"[a-z-]+: [a-z]+-\d+", text)] == [visitor] * len(KEYS)


def test_islands_behind_nginx(site, tmp_path, upstream, visitors):
    url, pages = site
    options = "proxy_set_header Host testserver; proxy_cache site;"
    with run_nginx(tmp_path, url, options) as visit:
        for visitor in visitors:
            text, headers = visit("/page/", User_Agent=f"{BROWSER} {visitor}")
            tokens = re.findall('data-moe-island="([^"]+)"', text)
            query = "&".join(f"island={quote(token)}" for token in tokens)
            answer, headers = visit(f"/moe/islands/?{query}", User_Agent=f"{BROWSER} {visitor}")
            assert headers["Cache-Control"] == "private, no-store"
            check(visitor, " ".join(json.loads(answer)["islands"].values()))
    assert pages == ["/page/"]
    check_counts(upstream, visitors)


@contextmanager
def run_varnish(folder, url):
    """Run Varnish in front of the site, and give the function that opens a page and returns its text."""
    port, log = find_free_port(), folder / "varnish.log"
    (folder / "site.vcl").write_text(VCL.format(port=url.rpartition(":")[2]))
    options = [
        "-F",
        "-j",
        "none",
        "-n",
        folder / "varnish",
        "-a",
        f"127.0.0.1:{port}",
        "-f",
        folder / "site.vcl",
        "-s",
        "malloc,16m",
    ]

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def visit(path, visitor):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", headers={"User-Agent": f"{BROWSER} {visitor}"}
        )
        with opener.open(request, timeout=60) as response:
            return response.read().decode()

    with log.open("wb") as errors, running([VARNISH, *options], stdout=errors, stderr=errors) as process:
        wait_until(process, lambda: open_port(port), log.read_text)
        yield visit


def test_islands_by_esi_behind_varnish(site, tmp_path, upstream, visitors):
    url, pages = site
    with override_personalize(ISLANDS="esi"), run_varnish(tmp_path, url) as visit:
        for visitor in visitors:
            text = visit("/page/", visitor)
            check(visitor, text)
            assert "Welcome" not in text
    assert pages == ["/page/"]
    check_counts(upstream, visitors)

"""Which requests are a person's act."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.test import RequestFactory
from django.urls import include, path
from django.utils.functional import SimpleLazyObject

from django_moe_personalize.testing import override_experiences
from django_moe_personalize.tracking import is_counted, is_robot, persons
from tests.site import TAGS, show

AGENTS = json.loads(Path(__file__).with_name("user_agents.json").read_text())
CHROME = "Mozilla/5.0 (Linux; Android 13) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Mobile Safari/537.36"


@pytest.mark.parametrize("kind", AGENTS)
def test_user_agents(kind):
    """Browsers, also those inside of apps, are persons. A program that says so is not, and neither is an empty text."""
    assert [agent for agent in AGENTS[kind] if is_robot(agent) is (kind == "persons")] == []


def test_list_of_robots_is_whole():
    """Python understands each pattern, and the patterns are in lower case, as the compared text is."""
    patterns = json.loads(persons.PATTERNS.read_text())
    assert len(patterns) > 200
    assert [pattern for pattern in patterns if re.sub(r"\\.", "", pattern).lower() != re.sub(r"\\.", "", pattern)] == []
    assert is_robot("Googlebot/2.1")
    assert persons._compile_patterns().flags & re.ASCII


@pytest.mark.parametrize(
    ("headers", "counts"),
    [
        ({}, True),
        ({"Sec-Purpose": "prefetch"}, False),
        ({"Sec-Purpose": "prefetch;prerender"}, False),
        ({"Sec-Purpose": "Prefetch; anonymous-client-ip"}, False),
        ({"Sec-Purpose": 'other, "prefetch"'}, False),
        ({"X-Sec-Purpose": "prefetch"}, False),
        ({"Purpose": "PREFETCH"}, False),
        ({"X-Purpose": "preview"}, False),
        ({"X-Moz": "prefetch"}, False),
        ({"VND.PREFETCH": "true"}, False),
        ({"HX-Preloaded": "true"}, False),
        ({"X-Middleware-Prefetch": "1"}, False),
        ({"Next-Router-Prefetch": "1"}, False),
        ({"HX-Preloaded": "false"}, True),
        ({"Sec-Purpose": ""}, True),
        ({"Purpose": "prefetching-is-off"}, True),
        ({"User-Agent": None}, False),
    ],
    ids=str,
)
def test_requests_of_persons_count(headers, counts):
    """A request that somebody's browser makes in advance counts nothing, and neither does a HEAD request."""
    given = {name: value for name, value in ({"User-Agent": CHROME} | headers).items() if value is not None}
    assert is_counted(RequestFactory().get("/", headers=given)) is counts
    assert not is_counted(RequestFactory().head("/", headers=given))


@pytest.mark.urls("tests.site")
@pytest.mark.parametrize(("headers", "counts"), [({}, 1), ({"User-Agent": ""}, 0), ({"User-Agent": "curl/8"}, 0)])
def test_client_of_a_test_counts(visit, headers, counts):
    """Django's test client sends no user agent, and a site's tests count its pages."""
    with override_experiences({"hero-banner": {"Title": "Hello"}}) as shown:
        visit("/tags/", headers=headers)
    assert shown.impressions.get("hero-banner", 0) == counts


def test_memory_is_bounded():
    """1,024 user agents are remembered, cut to 512 characters."""
    is_robot.cache_clear()
    for number in range(1200):
        assert is_counted(RequestFactory().get("/", headers={"User-Agent": CHROME.ljust(512, "x") + str(number)}))
    assert is_robot.cache_info().currsize == 1
    for number in range(1200):
        assert is_counted(RequestFactory().get("/", headers={"User-Agent": f"{CHROME} Browser/{number}"}))
    assert is_robot.cache_info().currsize == 1024


def build_toolbar(mode):
    return SimpleLazyObject(lambda: SimpleNamespace(**{f"{mode}_mode_active": True}))


@pytest.mark.parametrize(
    ("marks", "counted"),
    [
        ({"is_preview": True}, False),
        ({"toolbar": build_toolbar("edit")}, False),
        ({"toolbar": build_toolbar("preview")}, False),
        ({"toolbar": build_toolbar("structure")}, False),
        ({"is_preview": False, "toolbar": build_toolbar("content")}, True),
        ({"toolbar": None}, True),
        ({}, True),
    ],
)
def test_preview_counts_nothing(visit, serve, upstream, settings, marks, counted):
    """The page shows the content, with plain links, without an impression and without the anonymous cookie."""

    def view(request):
        request.__dict__ |= marks
        return show(request, TAGS)

    serve(view)
    settings.ROOT_URLCONF.urlpatterns.append(path("moe/", include("django_moe_personalize.urls")))
    response = visit("/page/")
    assert (b"/moe/c" in response.content, "moe_id" in response.cookies) == (counted, counted)
    assert b"<h1>Welcome" not in response.content
    assert upstream.count("hero-banner")[0] == counted

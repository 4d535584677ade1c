"""Pages and links that a browser asks for in advance, and links that a script opens in place of the browser."""

import html
import json
import re

import pytest
from django.utils.encoding import iri_to_uri

from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.tracking import watchdog
from django_moe_personalize.views import LIBRARY_HEADERS

AWAY, HOME = "https://partner.example/größe/?a=1&b=2", "/sale/"
HTMX = {"HX-Request": "true", "HX-Boosted": "true"}
FETCH = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}


@pytest.fixture
def link(render):
    """Return a function that renders a link and returns its address."""

    def link(destination):
        source = f"{{% experience 'hero' as h %}}{{% click_url h '{destination}' element='cta' %}}{{% endexperience %}}"
        return html.unescape(render(source))

    return link


def find_step(response):
    """Return the address to which the page leads that a script gets in place of a redirect."""
    page = response.content.decode()
    assert '<meta name="turbo-visit-control" content="reload">' in page
    assert response.headers["X-Up-Target"] == "body"
    [refresh], [href] = re.findall(r'url=([^"]+)"', page), re.findall(r'href="([^"]+)"', page)
    assert refresh == href
    return href


@pytest.mark.parametrize("method", ["get", "head"])
@pytest.mark.parametrize(
    "headers", [{"Sec-Purpose": "prefetch;prerender"}, {"X-Sec-Purpose": "prefetch"}, {"HX-Preloaded": "true"} | HTMX]
)
def test_link_that_is_asked_for_in_advance(link, visit, shown, caplog, method, headers):
    """The browser gets a 503 and no cookie, so that it asks again after the click, which then counts."""
    address = link(HOME)
    visit.client.cookies.clear()
    caplog.clear()
    early = visit(address, method=method, headers=headers)
    assert (early.status_code, early.cookies, shown.clicks) == (503, {}, {})
    assert "no-store" in early.headers["Cache-Control"]
    # An error in Django's log would also be an email to the admins.
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("headers", "destination", "location"),
    [
        ({}, AWAY, "redirect"),
        ({"Sec-Fetch-Mode": "navigate", "X-Requested-With": "com.instagram.android"}, AWAY, "redirect"),
        (HTMX, HOME, "redirect"),
        (HTMX, "http://testserver/sale/", "redirect"),
        (HTMX, "https://testserver/sale/", "htmx"),
        (HTMX, AWAY, "htmx"),
        (HTMX | FETCH, AWAY, "htmx"),
        *(({name: "x"}, HOME, "redirect") for name in LIBRARY_HEADERS),
        *(({name: "x"} | FETCH, AWAY, "step") for name in LIBRARY_HEADERS if name != "HX-Request"),
        (FETCH, AWAY, "step"),
        (FETCH, HOME, "step"),
        ({"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, HOME, "step"),
    ],
)
def test_link_always_leads_to_its_destination(link, visit, shown, headers, destination, location):
    """A script can't follow a redirect to another host, so the browser goes there. The click counts once."""
    address = link(destination)
    response = visit(address, headers=headers)
    assert {"HX-Request", "X-Up-Version", "Sec-Purpose", "Sec-Fetch-Mode"} <= set(response.headers["Vary"].split(", "))
    assert shown.clicks == ({} if location == "step" else {"hero": 1})
    if location == "step":
        assert response.status_code == 200
        # Not even a service worker that makes a script's request of the browser's can make a circle of this.
        response = visit(find_step(response), headers=headers)
    name, status = ("HX-Redirect", 200) if location == "htmx" else ("Location", 302)
    assert (response.headers[name], response.status_code) == (iri_to_uri(destination), status)
    assert shown.clicks == {"hero": 1}


def test_step_leads_nowhere_else(link, visit):
    """A link that isn't genuine is refused before any other answer."""
    for headers in ({"Sec-Purpose": "prefetch"}, HTMX, FETCH):
        assert visit(link(HOME)[:-2] + "x/", headers=headers).status_code == 400


@pytest.mark.parametrize("events", ["always", "returning"])
@pytest.mark.parametrize("native", [False, True])
def test_page_that_is_asked_for_in_advance(render, shown, visit, monkeypatch, events, native):
    """The page counts nothing and its visitor isn't new. The script gets tokens, which count once when it opens."""
    source = "{% experience 'offers' %}x{% endexperience %}{% experience 'nope' %}{% endexperience %}"
    monkeypatch.setattr(watchdog.Watchdog, "add_new_id", lambda *args: pytest.fail("The visitor isn't new."))
    monkeypatch.setattr(watchdog.Watchdog, "add_rendered_page", lambda *args: pytest.fail("Nobody sees the page."))
    with override_personalize(ANONYMOUS_EVENTS=events, OFFERING_EVENTS=native):
        page = render(source + "{% personalize_scripts %}", headers={"Sec-Purpose": "prefetch"})
        assert get_delivery().counts().accepted == 0
        tokens = re.search(r' data-moe-shown="([^"]+)"', page)[1].split(" ")
        assert len(tokens) == (3 if native else 1)
        # A library may show only this part of the page.
        assert page.startswith("<!--moe-watch moe.")
        for _ in range(2):
            report = json.dumps({"events": [["impression", token] for token in tokens]})
            visit("/moe/beacon/", method="post", data=report, content_type="text/plain")
        assert get_delivery().counts().accepted == 2 * len(tokens)
    assert shown.impressions == {"offers": 1}


@pytest.mark.parametrize(
    ("mode", "headers"),
    [
        ("render", {}),
        ("visible", {"Sec-Purpose": "prefetch"}),
        ("web_sdk", {"Sec-Purpose": "prefetch"}),
        ("manual", {"Sec-Purpose": "prefetch"}),
    ],
)
def test_pages_without_waiting_impressions(render, mode, headers):
    """The script waits for nothing on a page that a person opens, and in the modes in which the page counts nothing."""
    with override_personalize(IMPRESSIONS=mode):
        page = render("{% experience 'hero' %}x{% endexperience %}{% personalize_scripts %}", headers=headers)
    assert "<script " in page
    assert "data-moe-shown" not in page

"""Impressions of rendered content, and the marks for the browser."""

import html
import json
import re

import pytest

from django_moe_personalize.testing import override_personalize
from django_moe_personalize.visitor import Consent


def send_click(visit, page, element):
    """Report a click on ``element`` inside the mark of the page."""
    token = re.search(r'data-moe-experience="([^"]+)"', page)[1]
    report = json.dumps({"events": [["click", token, element]]})
    visit("/moe/beacon/", method="post", data=report, content_type="text/plain")


def test_experience_counts_once_a_page(render, shown):
    """An experience that the page shows three times has one impression. A fallback has none."""
    render(
        '{% experience "hero" %}a{% endexperience %}{% experience "hero" %}b{% endexperience %}'
        '{% experience_value "hero" "Title" %}{% experience "nope" %}{% fallback %}x{% endexperience %}'
    )
    assert (shown.impressions, shown.clicks) == ({"hero": 1}, {})


def test_impression_names_the_offerings(render, shown):
    """The offerings of an experience have no impressions of their own."""
    render('{% experience "offers" as o %}{{ o.Title }}{% endexperience %}')
    [entry] = shown.engine.ledger.entries()
    assert [offering["moe_offering_id"] for offering in entry.attributes["offerings"]] == ["offer-1", "offer-2"]


def test_only_experiences_with_clickable_elements_have_marks(render):
    """The marks are empty template elements before and after the body."""
    page = render(
        '{% experience "hero" %}<b>x</b>{% endexperience %}'
        '{% experience "offers" %}<button data-moe-click="buy">x</button>{% endexperience %}'
    )
    assert re.fullmatch(
        r'<b>x</b><template data-moe-experience="[^"]+"></template>'
        r'<button data-moe-click="buy">x</button><template data-moe-end></template>',
        page,
    )


def test_element_name_with_entities(render, shown, visit):
    """The browser reports the name without entities, and this name is the signed one."""
    page = render(
        '{% experience "hero" %}<b data-moe-click="{{ name }}">x</b>{% endexperience %}', name="Tom & Jerry's"
    )
    send_click(visit, page, "Tom & Jerry's")
    assert shown.clicks == {"hero": 1}


def test_link_with_a_mark_counts_once(render, shown, visit):
    """A link may report a click twice: by its URL, and by data-moe-click."""
    page = render(
        "{% experience 'hero' as h %}"
        "<a href=\"{% click_url h '/a/' element='cta' %}\" data-moe-click=\"cta\">x</a>{% endexperience %}"
    )
    send_click(visit, page, "cta")
    visit(html.unescape(re.search(r'href="([^"]+)"', page)[1]))
    assert shown.clicks == {"hero": 1}


@pytest.mark.parametrize(
    ("mode", "opening", "impressions"),
    [
        ("render", None, {"hero": 1, "offers": 1}),
        ("manual", None, {}),
        ("visible", r'<template data-moe-experience="[^"]+" data-moe-watch></template>', {}),
        ("web_sdk", r'<template data-moe-context="{&quot;cid&quot;[^"]+}" data-moe-page="moe.\w{12}"></template>', {}),
    ],
)
def test_impression_modes(render, shown, mode, opening, impressions):
    """The response counts, or the view's code, or the browser by a mark. A value alone never has a mark."""
    marked = f"{opening}x<template data-moe-end></template>" if opening else "x"
    source = "{% experience 'hero' %}x{% endexperience %}{% experience_value 'offers' 'Title' %}"
    with override_personalize(IMPRESSIONS=mode):
        assert re.fullmatch(f"{marked}For you", render(source))
    assert shown.impressions == impressions


def fetch_only(request):
    return Consent(track=False)


@pytest.mark.parametrize("mode", ["render", "visible", "web_sdk", "manual"])
def test_no_marks_without_consent_to_track(render, mode):
    """Without consent to track, a page has no marks, and its links are plain."""
    with override_personalize(CONSENT=f"{__name__}.fetch_only", IMPRESSIONS=mode):
        page = render(
            "{% experience 'hero' as h %}<a data-moe-click href=\"{% click_url h '/a/' %}\">x</a>{% endexperience %}"
        )
    assert page == '<a data-moe-click href="/a/">x</a>'

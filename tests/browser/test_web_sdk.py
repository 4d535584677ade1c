"""IMPRESSIONS = "web_sdk" in a real browser: MoEngage's own script counts, and the site gets no reports."""

import time

import pytest

pytestmark = pytest.mark.urls("tests.browser.site")

SDK = """window.told = [];
window.MoEngage = { personalize: {
  trackImpression: (...details) => told.push(["impression", ...details]),
  trackClick: (...details) => told.push(["click", ...details]),
} };"""

BODY = (
    '{% experience "hero" as hero %}<button data-moe-click="buy">b</button>'
    "<a href=\"{% click_url hero '/page' %}\">x</a>{% endexperience %}"
)


def test_sdk_counts(visitor):
    """It gets the contexts of shown and clicked experiences. The site gets no reports."""
    visitor.open(BODY, impressions="web_sdk", script=SDK)
    visitor.click("button")
    context = visitor.run("return JSON.parse(document.querySelector('template').dataset.moeContext)")
    assert context["experience"]
    told = visitor.run("return told")
    assert [(name, first) for name, first, *_ in told] == [("impression", context), ("click", context)]
    assert told[1][2] == {"button_id": "buy"}
    assert visitor.run("return document.querySelector('a').getAttribute('href')") == "/page"
    time.sleep(1.2)
    assert visitor.beacons == []
    assert visitor.impressions == {}
    assert visitor.clicks == []


def test_sdk_comes_later(visitor):
    """A Web SDK that loads later gets the impression too, once. Earlier clicks are lost, without an error."""
    visitor.site.put_file("sdk.js", SDK)
    visitor.open(BODY, impressions="web_sdk")
    visitor.click("button")
    time.sleep(0.5)
    visitor.run("const script = document.createElement('script'); script.src = '/sdk.js'; document.head.append(script)")
    visitor.wait_until(lambda: visitor.run("return window.told && told.length"))
    visitor.run("document.body.append('changed')")
    time.sleep(0.5)
    assert [name for name, *_ in visitor.run("return told")] == ["impression"]


def test_inserted_later(visitor):
    """The Web SDK gets the impressions of inserted experiences too, and no impression twice."""
    visitor.open(BODY + "<main></main>", impressions="web_sdk", script=SDK)
    visitor.insert("{% experience 'promo' %}<b>x</b>{% endexperience %}")
    visitor.wait_until(lambda: visitor.run("return told.length") == 2)
    time.sleep(0.5)
    assert [name for name, *_ in visitor.run("return told")] == ["impression", "impression"]

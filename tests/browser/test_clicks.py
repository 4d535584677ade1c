"""Clicks in a real browser."""

import time

import pytest

pytestmark = pytest.mark.urls("tests.browser.site")

BUTTON = (
    '{% experience "hero" %}<button data-moe-click="buy"><svg width="30" height="30"><rect width="30" height="30"/>'
    "</svg> <span>Buy</span></button>{% endexperience %}"
)


def test_click_on_a_button(visitor):
    """One beacon reports a click with the button's name, and the page stays open. The server counts the impression."""
    visitor.open(BUTTON)
    visitor.click("button")
    visitor.wait_until(lambda: visitor.clicks)
    assert visitor.clicks == [("hero", "buy")]
    assert visitor.beacons == [["click"]]
    assert visitor.impressions == {"hero": 1}
    assert visitor.driver.title == "page"


def test_second_click_counts_nothing(visitor):
    """A second click on the button in the same page view counts nothing. After a reload it counts."""
    visitor.open(BUTTON)
    visitor.click("button")
    visitor.click("button")
    visitor.click("span")
    visitor.wait_until(lambda: visitor.clicks)
    time.sleep(0.3)
    assert visitor.beacons == [["click"]]
    visitor.driver.refresh()
    visitor.click("button")
    visitor.wait_until(lambda: len(visitor.clicks) == 2)


@pytest.mark.parametrize("place", ["span", "svg", "rect", "Enter"])
def test_click_on_a_child_or_with_the_keyboard(visitor, place):
    """A click on text or a picture inside the button, or the Enter key, is a click on the button."""
    visitor.open(BUTTON)
    visitor.driver.press("Enter", "button") if place == "Enter" else visitor.click(place)
    visitor.wait_until(lambda: visitor.clicks == [("hero", "buy")])


def test_buttons_have_names(visitor):
    """Two buttons of an experience are two clicks, one of them without a name. A button outside doesn't count."""
    visitor.open(
        '<button id="out" data-moe-click="out">o</button>{% experience "hero" %}<button id="a" data-moe-click="größe">a'
        '</button><button id="b" data-moe-click>b</button><i>plain</i>{% endexperience %}'
    )
    for selector in ("#out", "i", "#a", "#b"):
        visitor.click(selector)
    visitor.wait_until(lambda: len(visitor.clicks) == 2)
    assert visitor.clicks == [("hero", "größe"), ("hero", "")]


@pytest.mark.parametrize(
    ("button", "experience"), [("#before", "hero"), ("#inner", "promo"), ("#after", "hero"), ("#next", "offer")]
)
def test_nested_experiences(visitor, button, experience):
    """The innermost experience around the button gets the click."""
    visitor.open(
        '{% experience "hero" %}<button id="before" data-moe-click="go">1</button>'
        '<div>{% experience "promo" %}<p><button id="inner" data-moe-click="go">2</button></p>{% endexperience %}</div>'
        '<button id="after" data-moe-click="go">3</button>{% endexperience %}'
        '{% experience "offer" %}<button id="next" data-moe-click="go">4</button>{% endexperience %}'
    )
    visitor.click(button)
    visitor.wait_until(lambda: visitor.clicks)
    assert visitor.clicks == [(experience, "go")]


def test_link_that_redirects(visitor):
    """A click_url link counts one click without a beacon, and redirects."""
    visitor.site.put("sale", "sale")
    visitor.open(
        "{% experience 'hero' as hero %}<a href=\"{% click_url hero '/sale' element='cta' %}\">x</a>{% endexperience %}"
    )
    visitor.click("a")
    visitor.wait_until(lambda: visitor.driver.title == "sale")
    assert visitor.clicks == [("hero", "cta")]
    assert visitor.beacons == []


def test_beacon_of_a_click_that_leaves(visitor):
    """A plain link with data-moe-click is reported although the browser leaves the page."""
    visitor.site.put("sale", "sale")
    visitor.open('{% experience "hero" %}<a href="/sale" data-moe-click="cta">x</a>{% endexperience %}')
    visitor.click("a")
    visitor.wait_until(lambda: visitor.driver.title == "sale" and visitor.clicks)
    assert visitor.clicks == [("hero", "cta")]


def test_page_that_stops_the_event(visitor):
    """A click counts even if the page's own handlers stop the event and remove the button."""
    stop = "(event) => { event.stopImmediatePropagation(); event.target.remove(); }"
    listen = f"document.querySelector('button').addEventListener('click', {stop})"
    visitor.open(BUTTON, script=f"addEventListener('DOMContentLoaded', () => {listen})")
    visitor.click("button")
    visitor.wait_until(lambda: visitor.clicks == [("hero", "buy")])


@pytest.mark.parametrize(
    "broken", ["delete Navigator.prototype.sendBeacon", "Navigator.prototype.sendBeacon = () => false"]
)
def test_without_beacons(visitor, broken):
    """A browser without sendBeacon, or whose queue is full, reports with fetch."""
    visitor.open(BUTTON, script=broken)
    visitor.click("button")
    visitor.wait_until(lambda: visitor.clicks == [("hero", "buy")])


def test_nothing_can_be_reported(visitor):
    """If fetch fails too, the page goes on working and the console stays empty."""
    fail = "window.fetch = () => { window.tried = true; return Promise.reject(new TypeError('no')) }"
    visitor.open(BUTTON, script=f"delete Navigator.prototype.sendBeacon; {fail}")
    visitor.click("button")
    assert visitor.run("return tried") is True
    assert visitor.beacons == []


def test_script_loaded_twice(visitor):
    """A page that has the script twice counts once."""
    visitor.open("{% personalize_scripts %}" + BUTTON)
    assert visitor.run("return document.querySelectorAll('script[data-beacon]').length") == 2
    visitor.click("button")
    visitor.wait_until(lambda: visitor.clicks)
    time.sleep(0.3)
    assert visitor.beacons == [["click"]]


def test_button_inserted_later(visitor):
    """A button in HTML that a script inserts, as HTMX does, counts."""
    visitor.open("<main></main>")
    visitor.insert(BUTTON)
    visitor.click("button")
    visitor.wait_until(lambda: visitor.clicks == [("hero", "buy")])


def test_nothing_is_inline(visitor):
    """The page needs only script-src 'self': it has no inline script, no handler and no style attribute."""
    visitor.open(BUTTON)
    assert visitor.run("return [...document.scripts].filter((s) => s.text || !s.src).length") == 0
    names = visitor.run("return [...document.querySelectorAll('*')].flatMap((e) => e.getAttributeNames())")
    assert [name for name in names if name.startswith("on") or name == "style"] == []

"""Clicks in a real browser."""

import time
from contextlib import suppress

import pytest

from tests.browser.conftest import BOTH

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


ACTS = """<style>div { display: inline-block }</style>{% experience "hero" %}<p id="start">start</p>
<a id="link" href="/sale" data-moe-click="link"><b>link</b></a> <p id="text" data-moe-click="text">some text</p>
<form id="form" data-moe-click="form" action="/sale" target="other"><input id="field" name="q"><input type="checkbox">
</form><form action="/sale" target="other"><input id="other"><button id="send" data-moe-click="send">s</button></form>
<label id="label" data-moe-click="label">label <input id="box" type="checkbox" data-moe-click="box"></label>
<details><summary data-moe-click="summary">s</summary></details>
<button id="disabled" disabled data-moe-click="disabled"><b>d</b></button>
<div id="host"><template shadowrootmode="open"><button data-moe-click="shadow">s</button></template></div>
<div id="outer" data-moe-click="outer"><template shadowrootmode="open"><button>s</button></template></div>
{% endexperience %}<iframe name="other" hidden></iframe>"""


DOWN, UP = ({"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp"))
CLICK = "document.querySelector('#link').click()"
DISPATCH = "document.querySelector('#text').dispatchEvent(new MouseEvent('click', { bubbles: true }))"


@BOTH
def test_acts_of_a_person(visitor):
    """One act counts one click: a middle click, a key, or a form that is sent. Scripts and clicks into fields don't.

    The page prevents the default of clicks on links. Such a click is an act too.
    """
    stop = "(event) => event.target.closest('a') && event.preventDefault()"
    visitor.site.put("sale", "sale")
    visitor.open(ACTS, script=f"for (const type of ['click', 'auxclick']) addEventListener(type, {stop})")
    click, press, run = visitor.click, visitor.driver.press, visitor.run
    counted = {}
    acts = {
        "link": lambda: click("#link"),
        "link: middle button": lambda: click("#link b", button=1),
        "link: right button": lambda: click("#link", button=2),
        "link: Control": lambda: click("#link", modifier="Control"),
        "link: Enter": lambda: press("Enter", "#link"),
        "link: script": lambda: run(CLICK),
        "text": lambda: click("#text"),
        "text: twice": lambda: [click("#text"), click("#text")],
        "text: middle button": lambda: click("#text", button=1),
        "text: drag": lambda: visitor.driver._point(
            "#text", DOWN, {"type": "pointerMove", "x": 40, "y": 0, "origin": "pointer"}, UP
        ),
        "text: script": lambda: run(DISPATCH),
        "form: field": lambda: click("#field"),
        "form: Enter": lambda: press("Enter", "#field"),
        "form: script": lambda: run("document.querySelector('#form').submit()"),
        "send": lambda: click("#send"),
        "send: Enter": lambda: press("Enter", "#other"),
        "send: Space": lambda: press(" ", "#send"),
        "label": lambda: click("#label"),
        "box": lambda: click("#box"),
        "summary": lambda: click("summary"),
        "disabled": lambda: click("#disabled b"),
        "shadow": lambda: click("#host"),
        "outer": lambda: click("#outer"),
    }
    for act, do in acts.items():
        before = len(visitor.clicks)
        click("#start")
        do()
        with suppress(AssertionError):
            visitor.wait_until(lambda: len(visitor.clicks) > before, 0.3)  # noqa: B023
        counted[act] = [name for _, name in visitor.clicks[before:]]
        visitor.driver.refresh()
    nothing = ("right", "script", "text: middle", "drag", "field", "disabled")
    assert counted == {act: [] if any(word in act for word in nothing) else [act.split(":")[0]] for act in acts}

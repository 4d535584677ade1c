"""The example shop: axe-core finds nothing, the keyboard reaches everything, and the panel covers nothing."""

import itertools
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest

from tests.browser.bidi import BrowserError
from tests.documents import ROOT

PRODUCT, ADD = "/product/alpine-tent-2/", ".product .button"
VISITS = {
    "home": ["/", {"hour": "12"}],
    "shelf": ["/category/camp/"],
    "product": [PRODUCT],
    "product in the bag": [PRODUCT, ADD],
    "empty bag": ["/cart/"],
    "full bag": [PRODUCT, ADD, "/cart/"],
    "sign in": ["/sign-in/"],
    "no page": ["/no-such-page/"],
    "ledger": ["/", "/ledger/"],
    "empty ledger": ["/ledger/", "#clear button"],
}
"""Ways to a page: paths to open, elements to click, and switches of the panel to set."""

HEROES = [{"hour": "6"}, {"hour": "19"}, {"hour": "23"}, {"medium": "email"}, {"user": "ada"}, {"device": "Mobile"}]

PLACES = """
const panel = document.getElementById("panel"), body = panel?.querySelector(".panel-body");
const page = document.querySelector(".page").getBoundingClientRect();
const covered = body && panel.open && page.right > panel.getBoundingClientRect().left + 1
  && page.bottom > body.getBoundingClientRect().top + 1;
const small = [...document.querySelectorAll(".header svg")].filter((each) => each.getBoundingClientRect().width < 16);
const wrapped = [...document.querySelectorAll(".account a, .nav a")].filter((each) => each.offsetHeight > 48);
return {covered: Boolean(covered), small: small.length, wrapped: wrapped.length,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth};
"""
REACHABLE = """
const fields = "select, textarea, input:not([type=hidden])";
const all = document.querySelectorAll(`a[href], button, summary, ${fields}, [tabindex='0']`);
window.reachable = [...all].filter((each) => each.checkVisibility());
return window.reachable.length"""
FOCUSED = """
const element = document.activeElement, style = getComputedStyle(element);
const box = [...element.getClientRects()].find((each) => each.width && each.bottom > 0 && each.top < innerHeight);
if (!box) return {index: window.reachable.indexOf(element), fault: "out of view"};
const middle = (low, high, end) => (Math.max(low, 0) + Math.min(high, end)) / 2;
const x = middle(box.left, box.right, innerWidth), y = middle(box.top, box.bottom, innerHeight);
const hit = document.elementFromPoint(x, y);
const isCovered = !element.contains(hit) && !hit.contains(element);
const isVisible = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
return {index: window.reachable.indexOf(element), fault: isCovered ? "covered" : isVisible ? "" : "no outline"};
"""


@contextmanager
def run_demo(folder, **more):
    """Run ``manage.py demo``. Give its URL."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MOE_", "DJANGO_"))}
    env |= {"DATABASE_URL": f"sqlite:///{folder}/db.sqlite3", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    env |= {"SECRET_KEY": "demo", "MOE_PERSONALIZE_SANDBOX": "true", "MOE_PERSONALIZE_DEADLINE": "10", **more}
    command = [sys.executable, "example_project/manage.py", "demo", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        finally:
            process.terminate()
            process.communicate()


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """Run the demo without DEBUG, so that its own error page is a page too. Give its URL."""
    with run_demo(tmp_path_factory.mktemp("demo"), DEBUG="false") as url:
        yield url


def leave(page, action):
    """Do something that leads to another page, and wait for that page."""
    page.run("window.isOld = true")
    action()
    wait_for(page, "!window.isOld && document.readyState === 'complete'")


def wait_for(page, condition):
    until = time.monotonic() + 20
    while True:
        # Between two pages the browser refuses to run a script.
        with suppress(BrowserError):
            if page.run(f"return {condition}"):
                return
        assert time.monotonic() < until
        time.sleep(0.01)


def turn(page, switches):
    for switch, value in switches.items():
        page.run("document.getElementById('switch-' + arguments[0]).value = arguments[1]", switch, value)
    leave(page, lambda: page.run("document.getElementById('switches').requestSubmit()"))


def visit(page, url, name):
    for step in VISITS[name]:
        if isinstance(step, dict):
            turn(page, step)
        elif step.startswith("/"):
            page.get(url + step)
        else:
            page.run("window.confirm = () => true")
            leave(page, lambda step=step: page.click(step))


def open_panel(page, is_open):
    """Open or close the panel, and wait until the browser has drawn it."""
    page.run("const panel = document.getElementById('panel'); if (panel) panel.open = arguments[0]", is_open)
    page.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))")


@pytest.mark.parametrize("name", VISITS)
def test_the_page_has_no_fault(driver, demo, run_axe, name):
    """In both color schemes, at three widths, the panel open and closed: no fault, nothing covered, nothing cut off."""
    faults = []
    driver.prefer_dark(False)
    visit(driver, demo, name)
    for dark, width in itertools.product([False, True], [390, 768, 1280]):
        driver.prefer_dark(dark)
        driver.resize(width, 900)
        for is_open in [True, False] if driver.run("return Boolean(document.getElementById('panel'))") else [False]:
            open_panel(driver, is_open)
            found = run_axe(driver)
            places = driver.run(PLACES)
            if found or any(places.values()):
                faults.append((dark, width, is_open, found, places))
    assert faults == []


def test_each_hero_has_no_fault(driver, demo, run_axe):
    """A hero has its own colors in both color schemes."""
    driver.get(demo + "/")
    for switches in HEROES:
        turn(driver, switches)
        for dark, width in itertools.product([False, True], [390, 1280]):
            driver.prefer_dark(dark)
            driver.resize(width, 900)
            assert run_axe(driver, ".hero") == [], (switches, dark, width)


@pytest.mark.parametrize(
    ("name", "width", "is_open"),
    [
        ("home", 390, True),
        ("full bag", 1280, True),
        ("product in the bag", 768, True),
        ("sign in", 390, False),
        ("ledger", 1280, False),
    ],
)
def test_the_keyboard_reaches_everything(driver, demo, name, width, is_open):
    """Tab goes through all links, buttons and fields in their order. The element with the focus is visible."""
    driver.prefer_dark(False)
    driver.resize(width, 700)
    visit(driver, demo, name)
    open_panel(driver, is_open)
    count = driver.run(REACHABLE)
    assert count > 10
    seen = []
    for _ in range(count):
        driver.press("Tab")
        seen.append(driver.run(FOCUSED))
    assert [(each["index"], each["fault"]) for each in seen] == [(index, "") for index in range(count)]


@pytest.mark.parametrize("width", [390, 1280])
def test_a_switch_applies_when_the_visitor_says_so(driver, demo, width):
    """An arrow key changes the value and nothing else. After "Apply" the focus is there again. Escape closes."""
    driver.prefer_dark(False)
    driver.resize(width, 700)
    visit(driver, demo, "home")
    driver.press("Enter", "#panel > summary")
    assert driver.run("return document.getElementById('panel').open")
    driver.run("window.submits = 0; document.addEventListener('submit', () => window.submits++)")
    driver.press("ArrowDown", "#switch-hour")
    focus = driver.run("return [window.submits, document.activeElement.id, document.activeElement.value]")
    assert focus == [0, "switch-hour", "13"]
    leave(driver, lambda: driver.press("Enter", ".panel-button"))
    assert driver.run("return [document.activeElement.textContent, scrollY]") == ["Apply", 0]
    assert driver.run("return document.getElementById('switch-hour').value") == "13"
    driver.press("Escape")
    assert driver.run("return [document.getElementById('panel').open, document.activeElement.tagName]") == [
        False,
        "SUMMARY",
    ]


def test_the_panel_is_one_key_away(driver, demo):
    """In a narrow window the title of the open panel stays in view, and leads to the panel at the end of the page."""
    driver.prefer_dark(False)
    driver.resize(390, 700)
    visit(driver, demo, "home")
    bottom = "return document.querySelector('#panel > summary').getBoundingClientRect().bottom - innerHeight"
    assert driver.run(bottom) == 0
    open_panel(driver, True)
    assert driver.run(bottom) == 0
    driver.press("Enter", "#panel > summary")
    assert driver.run("return document.getElementById('panel').open")
    assert 0 < driver.run("return document.querySelector('.switches').getBoundingClientRect().top") < 200


def test_the_ledger_asks_before_it_deletes(driver, demo):
    """Without a yes, the events stay."""
    visit(driver, demo, "ledger")
    # The page refreshes itself until the events of the first visit arrive.
    wait_for(driver, "document.querySelector('.wb-events') !== null")
    driver.run("window.confirm = (question) => { window.asked = question; return false }")
    driver.click("#clear button")
    assert driver.run("return [window.asked, document.querySelectorAll('.wb-events').length]") == [
        "Delete all events in the ledger?",
        1,
    ]

"""The pages of ``manage.py moe_sandbox``: axe-core finds nothing, and the keyboard is enough."""

import os
from pathlib import Path

import pytest

from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.faults import Faults
from django_moe_personalize.sandbox.workspace import SHIPPED, WorkspaceFile
from django_moe_personalize.workbench import Workbench
from tests.browser.test_demo import FOCUSED, REACHABLE, leave, wait_for
from tests.sandbox.test_conversions import call, order
from tests.sandbox.ways import CONTEXT, EVENTS, action, batch, element, post, serving

PICTURES = os.environ.get("WORKBENCH_PICTURES")
VISITOR = "/visitor/?customer_id=2&as_of=2026-11-28T19:00&user_agent=Mobile&attributes=cart_value%3D160"
PAGES = {
    "experiences": "/",
    "visitor": VISITOR,
    "refused": "/visitor/?address=nowhere&attributes=x",
    "ledger": "/ledger/",
    "faults": "/faults/",
    "workspace": "/workspace/",
    "message": "/nowhere/",
}
OPEN = "document.querySelectorAll('details').forEach((each) => { each.open = true })"
DRAWN = "return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))"
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"

REFRESH = "document.dispatchEvent(new Event('visibilitychange'))"
ASKED = "return performance.getEntriesByType('resource').length"
CHANGE = "const text = document.getElementById('wb-text'); text.value = text.value.replace(...arguments)"
CHOSEN = """const text = document.getElementById("wb-text");
return text.value.slice(text.selectionStart, text.selectionEnd)"""


def report(server, key="hero-banner", **changes):
    """Send an impression and a click, and then an order of the same visitor."""
    context = {**CONTEXT, "experience": key}
    click = action(action="MOE_PERSONALIZATION_MESSAGE_CLICKED", attributes={**context, "b_id": "cta"})
    assert server.engine.handle(post(EVENTS, batch(element(action(attributes=context), click)))).status == 200
    assert server.engine.handle(call({"type": "event", "customer_id": "42", "actions": [order()]})).status == 200


@pytest.fixture
def server(tmp_path):
    """Serve the workbench for a copy of the shipped workspace."""
    path = tmp_path / "workspace.json"
    path.write_bytes(SHIPPED.read_bytes())
    file = WorkspaceFile(path)
    with serving(Engine(file)) as running:
        running.pages = Workbench(running.engine, running.injector, file).handle
        running.path, running.root = path, running.url.removesuffix("/v1")
        yield running


def test_page_has_no_fault(driver, server, run_axe):
    """Light and narrow, dark and wide, with all details open, the console empty: no fault, nothing cut off."""
    report(server)
    server.injector.faults = Faults(latency=0.001)
    faults = []
    for name, path in PAGES.items():
        driver.get(server.root + path)
        for dark, width in [(False, 390), (True, 1280)]:
            driver.prefer_dark(dark)
            driver.resize(width, 1000)
            if PICTURES:
                height = driver.run("return document.documentElement.scrollHeight")
                driver.resize(width, min(height, 2000))
                file = Path(PICTURES, f"{name}-{'dark' if dark else 'light'}-{width}.png")
                file.write_bytes(driver.screenshot())
            driver.run(OPEN)
            driver.run(DRAWN)
            found = run_axe(driver)
            if found or driver.run(OVERFLOW):
                faults.append((name, dark, width, found))
    assert faults == []
    assert [text for text in driver.read_complaints() if "404" not in text] == []


def test_keyboard_reaches_everything(driver, server):
    """Tab goes through all links, buttons and fields in their order. The element with the focus is visible."""
    driver.prefer_dark(False)
    driver.resize(1280, 700)
    report(server)
    for path in ["/", "/ledger/", "/faults/", "/workspace/"]:
        driver.get(server.root + path)
        count = driver.run(REACHABLE)
        seen = []
        for _ in range(count):
            driver.press("Tab")
            seen.append(driver.run(FOCUSED))
        assert [(each["index"], each["fault"]) for each in seen] == [(index, "") for index in range(count)], path


def test_pages_are_live(driver, server):
    """An event, a change of the file and a fault show on the open page, unless it is paused. Open details stay open."""
    driver.get(server.root + "/ledger/")
    report(server)
    server.injector.faults = Faults(drip=1)
    wait_for(driver, "document.querySelector('.wb-charts')?.textContent.includes('hero-banner')")
    assert "drip 1" in driver.run("return document.getElementById('wb-status').textContent")
    driver.click(".wb-pause")
    report(server, "promo-strip")
    asked = driver.run(ASKED)
    driver.run(REFRESH)
    assert driver.run(ASKED) == asked
    driver.press("Enter", ".wb-pause")
    wait_for(driver, "document.querySelector('.wb-charts').textContent.includes('promo-strip')")
    driver.get(server.root + "/")
    driver.run("document.querySelector('details').open = true")
    server.path.write_text(server.path.read_text().replace('"Spring sale"', '"Summer sale"'))
    driver.run(REFRESH)
    wait_for(driver, "document.getElementById('main').textContent.includes('Summer sale')")
    assert driver.run("return document.querySelector('details').open")
    server.path.write_text("{")
    driver.run(REFRESH)
    wait_for(driver, "document.getElementById('wb-status').textContent.includes('has 1 mistake')")


def test_person_edits_the_file(driver, server, run_axe):
    """A mistake leads to its line, and the file changes only without mistakes. The ledger asks before it is cleared."""
    driver.get(server.root + "/workspace/")
    driver.run(CHANGE, '"weight": 50', '"weight": 0')
    leave(driver, lambda: driver.click(".wb-button"))
    assert run_axe(driver) == []
    driver.press("Enter", "[data-line]")
    assert '"name": "Far away", "weight": 0,' in driver.run(CHOSEN)
    assert server.path.read_bytes() == SHIPPED.read_bytes()
    driver.run(CHANGE, '"weight": 0', '"weight": 150')
    leave(driver, lambda: driver.click(".wb-button"))
    assert driver.url.endswith("/workspace/?saved")
    assert server.path.read_bytes() == SHIPPED.read_bytes().replace(b'"weight": 50', b'"weight": 150', 1)
    assert run_axe(driver) == []
    report(server)
    driver.get(server.root + "/ledger/")
    driver.run("window.confirm = () => false")
    driver.click("#clear button")
    assert server.engine.ledger.entries() != []
    driver.run("window.confirm = () => true")
    leave(driver, lambda: driver.click("#clear button"))
    assert server.engine.ledger.entries() == []

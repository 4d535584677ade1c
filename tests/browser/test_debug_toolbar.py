"""The panel of django-debug-toolbar in the example shop, with the request of a script. axe-core finds nothing."""

import os
from pathlib import Path

from tests.browser.test_demo import run_demo

PICTURES = os.environ.get("PANEL_PICTURES")
# The toolbar lives in a shadow root.
ROOT = "[...document.querySelectorAll('*')].find((each) => each.shadowRoot).shadowRoot"
ASK = "return fetch('/category/camp/', {headers: {'HX-Request': 'true'}}).then((response) => response.text())"
AUDIT = f"""return axe.run({ROOT}.querySelector("#PersonalizePanel"), {{preload: false}})
  .then((found) => found.violations.map((each) => each.id))"""


def click(page, selector, awaited):
    """Click an element of the toolbar until this text appears, because the toolbar replaces its elements meanwhile."""
    while awaited not in page.run(f"return {ROOT}.querySelector('#djDebug').textContent"):
        page.run(f"{ROOT}.querySelector({selector!r})?.click()")
        page.run("return new Promise((done) => setTimeout(done, 300))")


def test_panel(driver, tmp_path, library):
    """The panel explains the page, and after a switch in the history the request of a script."""
    with run_demo(tmp_path, DEBUG="true") as url:
        driver.resize(1280, 1000)
        driver.get(url + "/?utm_medium=email")
        driver.run(ASK)
        driver.run(f"{ROOT}.querySelector('#djShowToolBarButton').click()")
        click(driver, "a.PersonalizePanel", "hero-banner")
        driver.run(library("axe-core/axe.min.js"))
        assert driver.run(AUDIT) == []
        if PICTURES:
            Path(PICTURES, "panel.png").write_bytes(driver.screenshot())
        click(driver, "a.HistoryPanel", "/category/camp/")
        click(driver, ".switchHistory", "1 of 1 came")
        click(driver, "a.PersonalizePanel", "Known before the view: promo-strip.")
        panel = driver.run(f"return {ROOT}.querySelector('#PersonalizePanel').textContent")
        assert "promo-strip" in panel
        assert "hero-banner" not in panel

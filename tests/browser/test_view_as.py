"""View as, in the example shop: axe-core finds nothing, and the keyboard is enough."""

import itertools
import json
import os
from pathlib import Path

from tests.browser.test_demo import demo, leave, wait_for  # noqa: F401 - a fixture among them

PICTURES = os.environ.get("VIEW_AS_PICTURES")
FORCED = json.dumps({"hero-banner": {"Title": "Only in this preview", "Text": "x", "CtaLabel": "Look", "CtaUrl": "/"}})
FILL = "for (const [name, value] of Object.entries(arguments[0])) document.getElementsByName(name)[0].value = value"


def check(page, run_axe, name):
    """Return the faults of the open page in both color schemes, narrow and wide."""
    faults = []
    for dark, width in itertools.product([False, True], [390, 1280]):
        page.prefer_dark(dark)
        page.resize(width, 900)
        page.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))")
        overflow = page.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if found := [*run_axe(page), *(["overflow"] if overflow else [])]:
            faults.append((name, dark, width, found))
        if PICTURES:
            Path(PICTURES, f"{name}-{'dark' if dark else 'light'}-{width}.png").write_bytes(page.screenshot())
    return faults


def test_a_member_of_staff_views_the_shop_as_another_visitor(driver, demo, run_axe):  # noqa: F811
    """The form, the link, the bar and the comparison have no fault. Leaving ends the preview."""
    driver.get(demo + "/sign-in/")
    leave(driver, lambda: driver.click(".person-linus"))
    driver.get(demo + "/view-as/?next=/")
    faults = check(driver, run_axe, "form")
    fields = {"who": "customer", "customer_id": "1", "forced": FORCED}
    driver.run(FILL, fields)
    leave(driver, lambda: driver.run("document.querySelector('[name=link]').click()"))
    faults += check(driver, run_axe, "link")
    driver.run(FILL, fields)
    leave(driver, lambda: driver.run("document.querySelector('.moe-view-as-buttons button').click()"))
    wait_for(driver, "document.querySelector('h1').textContent.includes('Only in this preview')")
    assert "as customer 1" in driver.run("return document.querySelector('.moe-view-as-text').textContent")
    faults += check(driver, run_axe, "bar")
    driver.run("document.querySelector('.moe-view-as summary').focus()")
    driver.press("Enter")
    wait_for(driver, "document.querySelector('.moe-view-as-compare').open")
    faults += check(driver, run_axe, "compare")
    driver.press("Escape")
    wait_for(driver, "!document.querySelector('.moe-view-as-compare').open")
    assert driver.run("return document.activeElement.textContent") == "Compare"
    assert faults == []
    leave(driver, lambda: driver.run("document.querySelector('.moe-view-as button').click()"))
    assert not driver.run("return Boolean(document.getElementById('moe-view-as'))")

"""An editor changes an experience block in Chromium, with the scripts of Wagtail's form."""

import sqlite3
import time
from contextlib import suppress

from tests.browser.bidi import BrowserError, start

FIELD = "document.querySelector('[name$=-experience_key]')"
SIGN_IN = """for (const name of ["username", "password"]) document.querySelector(`[name=${name}]`).value = "edith";
document.querySelector("form").requestSubmit()"""


def wait_for(page, condition):
    """Wait until the condition is true. Between two pages the browser refuses to run a script."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(BrowserError):
            if page.run(f"return Boolean({condition})"):
                return
        time.sleep(0.05)
    raise AssertionError(page.run("return document.body.innerText"))


def test_editor_chooses_an_experience(start_site, redis_url, sandbox, tmp_path):
    """The form shows the stored key and offers all experiences. It stores the key that the editor types."""
    site = start_site("tests.sites.wagtail_site", redis_url=redis_url, sandbox=sandbox, database=13)
    database = sqlite3.connect(site.folder / "site.sqlite3")
    (number,) = database.execute("SELECT id FROM wagtailcore_page WHERE slug = 'club'").fetchone()
    with start("chromium", tmp_path) as browser, browser.open_page(1280, 1000) as page:
        page.get(f"{site.url}/admin/login/")
        page.run(SIGN_IN)
        wait_for(page, "location.pathname === '/admin/' && document.readyState === 'complete'")
        page.get(f"{site.url}/admin/pages/{number}/edit/")
        wait_for(page, f"{FIELD}?.value === 'hero-banner'")
        options = page.run(f"return [...{FIELD}.list.options].map((option) => [option.value, option.label])")
        assert options == [["hero-banner", "Hero"], ["promo-strip", "Strip"]]
        page.run(f"{FIELD}.focus(); {FIELD}.select()")
        for letter in "promo-strip":
            page.press(letter)
        page.run("document.querySelector('[name=action-publish]').click()")
        wait_for(page, "document.querySelector('.messages')?.innerText.includes('published')")
    (body,) = database.execute("SELECT body FROM wagtail_site_homepage WHERE page_ptr_id = ?", [number]).fetchone()
    database.close()
    assert '"experience_key": "promo-strip"' in body

"""Chromium, driven by Selenium and Debian's chromedriver, visits a real site that uses the sandbox."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from django_moe_personalize.testing import override_experiences
from tests.browser.site import Site, serve

WIDTH, HEIGHT = 800, 600
EXPERIENCES = {name: {"Title": f"The {name}"} for name in ["hero", "promo", "offer", *(f"e{n}" for n in range(120))]}


@pytest.fixture(scope="session")
def driver() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={WIDTH},{HEIGHT}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        # WIDTH and HEIGHT are those of the viewport. The window also has a frame.
        frame = chrome.execute_script("return [outerWidth - innerWidth, outerHeight - innerHeight]")
        chrome.set_window_size(WIDTH + frame[0], HEIGHT + frame[1])
        yield chrome
    finally:
        chrome.quit()


@pytest.fixture(scope="session")
def running_site() -> Iterator[Site]:
    with serve() as site:
        yield site


class Visitor:
    """A person at the browser."""

    def __init__(self, driver: webdriver.Chrome, site: Site) -> None:
        self.driver = driver
        self.site = site
        self._stack = ExitStack()
        self._seen: override_experiences | None = None

    def use(self, impressions: str, **settings: Any) -> None:
        self._seen = self._stack.enter_context(override_experiences(EXPERIENCES, IMPRESSIONS=impressions, **settings))

    def close(self) -> None:
        self.driver.get("about:blank")
        self._stack.close()

    def open(self, body: str, *, impressions: str = "render", script: str = "") -> None:
        """Open a page with this body. Its head loads the script."""
        self.use(impressions)
        self.site.put_file("script.js", script)
        self.driver.get(self.site.put("page", body, head='<script src="/script.js"></script>' if script else ""))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def insert(self, piece: str) -> None:
        """Let a script put this piece of a template into the main element, as HTMX does."""
        self.site.put_file("piece", "{% load moe_personalize %}" + piece, "text/html")
        self.run(
            "return fetch('/piece').then((r) => r.text()).then((t) => { document.querySelector('main').innerHTML = t })"
        )

    def click(self, selector: str) -> None:
        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def scroll(self, top: int) -> None:
        self.run("scrollTo({top: arguments[0], behavior: 'instant'})", top)

    def wait_until(self, is_true: Callable[[], object], seconds: float = 6) -> None:
        """Wait until the condition is true, or fail."""
        until = time.monotonic() + seconds
        while not is_true():
            assert time.monotonic() < until, f"{self.site.beacons}"
            time.sleep(0.02)

    @property
    def impressions(self) -> dict[str, int]:
        return self._seen.impressions

    @property
    def clicks(self) -> list[tuple[str, str]]:
        """The clicks that arrived: experience and element."""
        entries = self._seen.engine.ledger.entries()
        return [(entry.experience_key, entry.element) for entry in entries if "CLICK" in entry.action.upper()]

    @property
    def beacons(self) -> list[list[str]]:
        """The kinds of reports in each beacon so far."""
        return [[event[0] for event in events] for events in self.site.beacons]

    def read_complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture
def visitor(driver: webdriver.Chrome, running_site: Site, settings: Any) -> Iterator[Visitor]:
    """Return a new visitor. The console must stay empty."""
    settings.ALLOWED_HOSTS = ["127.0.0.1"]
    running_site.clear()
    driver.delete_all_cookies()
    person = Visitor(driver, running_site)
    person.read_complaints()
    yield person
    complaints = person.read_complaints()
    person.close()
    assert complaints == []

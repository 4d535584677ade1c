"""Chromium and Firefox visit a real site that uses the sandbox. Its pages may use the libraries of package.json."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from django_moe_personalize.testing import override_experiences
from tests.browser.bidi import Browser, BrowserError, Page, start
from tests.browser.site import Site, serve

EXPERIENCES = {name: {"Title": f"The {name}"} for name in ["hero", "promo", "offer", *(f"e{n}" for n in range(120))]}
OFFERING = {"dp_offering_id": "offer-1", "offering_content": {}, "offering_context": {"moe_offering_id": "offer-1"}}
EXPERIENCES["offers"] = {"Title": "The offers", "Offers": [OFFERING]}
BOTH = pytest.mark.parametrize("browser", ["chromium", "firefox"], indirect=True)
"""Run a test in both browsers. Without this mark it runs in Chromium."""


@pytest.fixture(scope="session")
def library() -> Callable[[str], str]:
    """Return the text of a library's file, for example ``library("htmx.org/dist/htmx.js")``."""
    folder = os.environ.get("NODE_MODULES")
    if not folder:
        pytest.skip("NODE_MODULES names no folder of npm packages: use tox, or see CONTRIBUTING.md.")
    return lambda name: Path(folder, name).read_text()


@pytest.fixture
def run_axe(library: Callable[[str], str]) -> Callable[..., list[str]]:
    """Return a function that lists the accessibility faults of the open page: rule, impact and elements."""

    def run(page: Page, part: str = "html") -> list[str]:
        if not page.run("return 'axe' in window"):
            page.run(library("axe-core/axe.min.js"))
        # axe-core has this rule of WCAG 2.2, but runs it only on demand.
        options = {"rules": {"target-size": {"enabled": True}}, "resultTypes": ["violations"], "preload": False}
        found = page.run("return axe.run(...arguments).then((results) => results.violations)", part, options)
        return [f"{each['id']} ({each['impact']}): {[node['target'] for node in each['nodes']]}" for each in found]

    return run


@pytest.fixture(scope="session")
def start_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Browser]]:
    """Return a function that starts a browser once a session."""
    running: dict[str, Browser] = {}
    with ExitStack() as stack:

        def start_once(name: str) -> Browser:
            if name not in running:
                running[name] = stack.enter_context(start(name, tmp_path_factory.mktemp(name)))
            return running[name]

        yield start_once


@pytest.fixture
def browser(request: pytest.FixtureRequest, start_browser: Callable[[str], Browser]) -> Browser:
    return start_browser(getattr(request, "param", "chromium"))


@pytest.fixture
def driver(browser: Browser) -> Iterator[Page]:
    """Return a tab of a person whom no site knows, 800 pixels wide and 600 high."""
    with browser.open_page() as page:
        yield page


@pytest.fixture(scope="session")
def running_site() -> Iterator[Site]:
    with serve() as site:
        yield site


class Visitor:
    """A person at the browser."""

    def __init__(self, driver: Page, site: Site) -> None:
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
        return self.driver.run(script, *arguments)

    def insert(self, piece: str) -> None:
        """Let a script put this piece of a template into the main element, as HTMX does."""
        self.site.put_file("piece", "{% load moe_personalize %}" + piece, "text/html")
        self.run(
            "return fetch('/piece').then((r) => r.text()).then((t) => { document.querySelector('main').innerHTML = t })"
        )

    def click(self, selector: str, **how: Any) -> None:
        self.driver.click(selector, **how)

    def scroll(self, top: int) -> None:
        self.run("scrollTo({top: arguments[0], behavior: 'instant'})", top)

    def wait_until(self, is_true: Callable[[], object], seconds: float = 30) -> None:
        """Wait until the condition is true, or fail. Between two pages the browser refuses to run a script."""
        until = time.monotonic() + seconds
        while True:
            with suppress(BrowserError):
                if is_true():
                    return
            assert time.monotonic() < until, f"{self.beacons} {self.impressions} {self.clicks}"
            time.sleep(0.02)

    def watch(self, is_true: Callable[[], object], seconds: float) -> None:
        """Wait until the condition is true, or for some time."""
        with suppress(AssertionError):
            self.wait_until(is_true, seconds)

    @property
    def title(self) -> str:
        return self.driver.title

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


@pytest.fixture
def visitor(driver: Page, running_site: Site, settings: Any) -> Iterator[Visitor]:
    """Return a new visitor. The console must stay empty."""
    settings.ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
    running_site.clear()
    person = Visitor(driver, running_site)
    yield person
    complaints = driver.read_complaints()
    person.close()
    assert complaints == []

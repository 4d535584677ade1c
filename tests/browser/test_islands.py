"""Islands in the browser: one request fills them all, nothing moves, and each experience counts once."""

import pytest

from tests.browser.conftest import BOTH

pytestmark = pytest.mark.urls("tests.browser.site")

SIZES = "<style>.wide{height:120px} .small{height:40px}</style>"
ISLANDS = "".join(
    f"{{% experience_island '{key}' template='{key}.html' class='{size}' %}}<p>Welcome</p>{{% endexperience_island %}}"
    for key, size in (("hero", "wide"), ("promo", "small"), ("offer", "small"), ("missing", "small"))
)
CONTENT = (
    "{% load moe_personalize %}{% experience experience_key as e %}<p>{{ e.Title }}</p>"
    "<button data-moe-click='buy'>Buy</button>{% endexperience %}"
)
SHIFTS = """
self.shift = 0;
new PerformanceObserver((list) => list.getEntries().forEach(({ value }) => (self.shift += value)))
  .observe({ type: "layout-shift", buffered: true });
"""
TEXTS = "return [...document.querySelectorAll('[data-moe-island] p')].map((p) => p.textContent)"
FILLED = ["The hero", "The promo", "The offer", "Welcome"]


@pytest.fixture(autouse=True)
def templates(settings):
    """Give each key the same template."""
    templates = {f"{key}.html": CONTENT for key in ("hero", "promo", "offer", "missing")}
    loaders = [("django.template.loaders.locmem.Loader", templates)]
    settings.TEMPLATES = [settings.TEMPLATES[0] | {"APP_DIRS": False, "OPTIONS": {"loaders": loaders}}]


@BOTH
@pytest.mark.parametrize("impressions", ["render", "visible"])
def test_one_request_fills_the_page(visitor, impressions):
    """With sizes the layout doesn't shift. The script's parameters are only those of campaigns."""
    visitor.use(impressions)
    visitor.site.put_file("script.js", SHIFTS)
    url = visitor.site.put("page", f"<main>{ISLANDS}</main>", head=SIZES + '<script src="/script.js"></script>')
    visitor.driver.get(f"{url}?secret=1&utm_source=mail")
    visitor.wait_until(lambda: visitor.run(TEXTS) == FILLED)
    visitor.wait_until(lambda: visitor.impressions == {"hero": 1, "promo": 1, "offer": 1})
    visitor.click(".wide button")
    visitor.wait_until(lambda: visitor.clicks == [("hero", "buy")])
    assert visitor.site.paths.count("/moe/islands/") == 1
    asked = visitor.run(
        "return performance.getEntriesByType('resource').map((e) => e.name).find((n) => n.includes('?'))"
    )
    assert ("utm_source=mail" in asked, "secret" in asked) == (True, False)
    assert visitor.run("return self.shift") == 0


def test_islands_that_a_script_inserts(visitor):
    """The page has the script already. Each island is asked for once."""
    visitor.use("render")
    visitor.driver.get(visitor.site.put("page", f"<main></main>{ISLANDS}"))
    visitor.wait_until(lambda: visitor.run(TEXTS) == FILLED)
    visitor.insert(ISLANDS)
    visitor.wait_until(lambda: visitor.run(TEXTS) == FILLED * 2)
    assert visitor.site.paths.count("/moe/islands/") == 2


def test_visitor_who_uses_the_fallback_keeps_it(visitor):
    visitor.use("render")
    fallback = ISLANDS.replace("Welcome</p>", "<input autofocus></p>", 1)
    visitor.driver.get(visitor.site.put("page", f"<main>{fallback}</main>"))
    visitor.wait_until(lambda: visitor.run(TEXTS)[1:] == FILLED[1:])
    assert visitor.run("return document.activeElement.closest('.wide').textContent.trim()") == ""

"""Islands in the browser: one request fills them all, nothing moves, and each experience counts once."""

import threading

import pytest
from django.http import HttpResponse
from django.urls import path

from tests.browser.conftest import BOTH
from tests.browser.site import urlpatterns
from tests.browser.test_navigation import speculate

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


LIBRARIES = {
    "turbo": ("@hotwired/turbo/dist/turbo.es2017-umd.js", "Turbo.visit(arguments[0])"),
    "morph": ("@hotwired/turbo/dist/turbo.es2017-umd.js", "Turbo.visit(arguments[0], { action: 'replace' })"),
    "htmx": (
        "htmx.org/dist/htmx.js",
        "htmx.ajax('GET', arguments[0], { target: 'main', select: 'main', swap: 'outerHTML' })",
    ),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_pages_of_a_library(visitor, library, name):
    """Each visit asks once, also if the library first shows an old copy of the page, or keeps its elements."""
    file, visit = LIBRARIES[name]
    visitor.use("render")
    visitor.site.put_file("library.js", library(file).encode())
    head = '<script src="/library.js" defer></script>'
    head += '<meta name="turbo-refresh-method" content="morph">' * (name == "morph")
    visitor.driver.get(first := visitor.site.put("page", f"<main>{ISLANDS}</main>", head=head))
    other = visitor.site.put("other", f"<main>{ISLANDS}</main>", head=head)
    for count, url in enumerate([first, first] if name == "morph" else [other, first, other], start=2):
        visitor.wait_until(lambda: visitor.run(TEXTS) == FILLED)
        visitor.run(visit, url)
        visitor.wait_until(lambda count=count: visitor.site.paths.count("/moe/islands/") == count)
    visitor.wait_until(lambda: visitor.run(TEXTS) == FILLED)
    assert visitor.site.paths.count("/moe/islands/") == count
    assert visitor.impressions == dict.fromkeys(["hero", "promo", "offer"], count)


@pytest.mark.parametrize("how", ["prefetch", "prerender"])
def test_page_that_the_browser_loads_in_advance(visitor, how):
    """Its islands are asked for when the visitor opens it."""
    visitor.use("render")
    visitor.site.policy = visitor.site.policy.replace("script-src", "script-src 'inline-speculation-rules'")
    visitor.site.put("other", f"<main>{ISLANDS}</main>")
    visitor.driver.get(visitor.site.put("page", "<a id=go href=/other>go</a>", head=speculate(how)))
    visitor.driver.hover("#go")
    visitor.wait_until(lambda: "/other" in visitor.site.paths)
    visitor.watch(lambda: "/moe/islands/" in visitor.site.paths, 0.5)
    assert "/moe/islands/" not in visitor.site.paths
    visitor.click("#go")
    visitor.wait_until(lambda: visitor.title == "other" and visitor.run(TEXTS) == FILLED)
    assert visitor.impressions == {"hero": 1, "promo": 1, "offer": 1}


def test_many_islands_of_few_keys(visitor):
    """Equal islands are one question. A new visitor gets one id, so the questions wait for each other."""
    island = "{%% experience_island 'e%d' template='hero.html' %%}<p>Welcome</p>{%% endexperience_island %%}"
    templates = "".join(island % number for number in range(30))
    visitor.use("render")
    visitor.driver.get(visitor.site.put("page", f"<main>{templates * 2}</main>"))
    texts = [f"The e{n}" for n in range(30)] * 2
    visitor.wait_until(lambda: visitor.run(TEXTS) == texts)
    assert visitor.site.paths.count("/moe/islands/") == 2
    assert visitor.impressions == {f"e{n}": 1 for n in range(30)}
    assert len({entry.customer_id for entry in visitor._seen.engine.ledger.entries()}) == 1


@pytest.mark.parametrize("answer", ["broken", "slow"])
def test_answer_that_never_comes(visitor, monkeypatch, answer):
    """The fallbacks stay, without an error in the console."""
    released = threading.Event()

    def fail(request):
        if answer == "slow":
            released.wait(30)
        return HttpResponse("<h1>", status=200)

    monkeypatch.setattr("tests.browser.site.urlpatterns", [path("moe/islands/", fail), *urlpatterns])
    visitor.use("render")
    visitor.site.put_file(
        "quick.js", "const f = AbortSignal.timeout; AbortSignal.timeout = () => f.call(AbortSignal, 50)"
    )
    try:
        visitor.driver.get(visitor.site.put("page", ISLANDS, head='<script src="/quick.js"></script>'))
        visitor.wait_until(lambda: "/moe/islands/" in visitor.site.paths)
        visitor.watch(lambda: visitor.run(TEXTS) != ["Welcome"] * 4, 0.3)
        assert visitor.run(TEXTS) == ["Welcome"] * 4
    finally:
        released.set()


def test_visitor_who_uses_the_fallback_keeps_it(visitor):
    visitor.use("render")
    fallback = ISLANDS.replace("Welcome</p>", "<input autofocus></p>", 1)
    visitor.driver.get(visitor.site.put("page", f"<main>{fallback}</main>"))
    visitor.wait_until(lambda: visitor.run(TEXTS)[1:] == FILLED[1:])
    assert visitor.run("return document.activeElement.closest('.wide').textContent.trim()") == ""

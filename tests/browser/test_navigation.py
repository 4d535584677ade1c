"""Links and pages under libraries that fetch them before the visitor asks, or instead of the browser."""

from collections import Counter
from dataclasses import dataclass

import pytest

pytestmark = pytest.mark.urls("tests.browser.site")

ACTS = {"middle": {"button": 1}, "ctrl": {"modifier": "Control"}, "enter": {}}
LINK = """{{% experience 'hero' as hero %}}<p {attributes}>
<a id="url-{name}" {link} href="{{% click_url hero '/target' element='url-{name}' %}}">counted by the server</a>
<a id="named-{name}" {link} href="/other" data-moe-click="named-{name}">counted by the script</a>
<a id="away-{name}" {link} href="{{% click_url hero away element='away-{name}' %}}">to another host</a>
</p>{{% endexperience %}}"""


@dataclass(frozen=True)
class Library:
    """A library, the attributes that its links need, and whether it fetches pages before a click."""

    files: tuple[str, ...] = ()
    attributes: str = ""
    link: str = ""
    head: str = ""
    fetches_early: bool = True
    # The page views of a visitor who opens a page and comes back to it. Unpoly fetches the page again. Turbo leaves its
    # document when it opens a link that it has fetched in advance, so the browser loads the page again.
    views: int = 1
    impressions: str = "render"

    def put(self, visitor, library, names):
        """Put three pages on the site, and return the address of the page with the links."""
        head = self.head
        for name in self.files:
            visitor.site.put_file(name, library(name).encode())
            head += f'<script src="/{name}" defer></script>'
        links = "".join(LINK.format(name=name, attributes=self.attributes, link=self.link) for name in names)
        body = f"<main>{{% with away='http://{visitor.site.other_host}/other' %}}{links}{{% endwith %}}</main>"
        for name, key in (("target", "promo"), ("other", "offer")):
            visitor.site.put(name, f"<main>{{% experience '{key}' %}}{name}{{% endexperience %}}</main>", head=head)
        return visitor.site.put("page", body, head=head)


def speculate(how: str) -> str:
    """Return rules that let Chromium fetch links under the mouse."""
    rules = f'{{"{how}": [{{"where": {{"href_matches": "/*"}}, "eagerness": "moderate"}}]}}'
    return f'<script type="speculationrules">{rules}</script>'


HTMX, PRELOAD = "htmx.org/dist/htmx.js", "htmx-ext-preload/preload.js"
BOOST = 'hx-boost="true"'
LIBRARIES = {
    "plain": Library(fetches_early=False),
    "turbo": Library(("@hotwired/turbo/dist/turbo.es2017-umd.js",), views=2),
    "htmx": Library((HTMX,), BOOST, fetches_early=False),
    "htmx, mouseover": Library((HTMX, PRELOAD), f'{BOOST} hx-ext="preload"', 'preload="mouseover"'),
    "htmx, mousedown": Library((HTMX, PRELOAD), f'{BOOST} hx-ext="preload"', "preload", fetches_early=False),
    "unpoly": Library(("unpoly/unpoly.js",), link="up-follow", fetches_early=False, views=2),
    "unpoly, preload": Library(("unpoly/unpoly.js",), link="up-follow up-preload", views=2),
    "link": Library(head='<link rel="prefetch" href="/other">'),
    "prefetch": Library(head=speculate("prefetch")),
    "prerender": Library(head=speculate("prerender")),
    "prerender, visible": Library(head=speculate("prerender"), impressions="visible"),
}
CHROMIUM_ONLY = {"prefetch", "prerender", "prerender, visible"}


def each(names):
    """Run a test for each of these libraries, in both browsers if both have what the library uses."""
    rows = [(browser, name) for name in names for browser in ("chromium", "firefox")]
    rows = [row for row in rows if row[0] == "chromium" or row[1] not in CHROMIUM_ONLY]
    return pytest.mark.parametrize(("browser", "name"), rows, indirect=["browser"])


@each(LIBRARIES)
def test_only_a_visit_counts(visitor, library, name):
    """A link under the mouse counts nothing. Its click counts once, its page counts once, and going back nothing."""
    used = LIBRARIES[name]
    visitor.use(used.impressions, CACHE_CONTROL="private, no-cache", CONTENT_HOSTS=[visitor.site.other_host])
    if name in CHROMIUM_ONLY:
        visitor.site.policy = visitor.site.policy.replace("script-src", "script-src 'inline-speculation-rules'")
    visitor.driver.get(used.put(visitor, library, ["hover"]))
    visitor.wait_until(lambda: visitor.impressions == {"hero": 1})
    hover(visitor, "named", "/other", used)
    if used.fetches_early:
        visitor.wait_until(lambda: "/other" in visitor.site.paths)
    hover(visitor, "url", "/moe/click/", used)
    assert (visitor.impressions, visitor.clicks) == ({"hero": 1}, [])
    visitor.click("#url-hover")
    visitor.wait_until(lambda: visitor.title == "target" and visitor.impressions == {"hero": 1, "promo": 1})
    assert visitor.clicks == [("hero", "url-hover")]
    go_back(visitor)
    visitor.site.paths.clear()
    hover(visitor, "named", "/other", used)
    visitor.click("#named-hover")
    visitor.wait_until(lambda: visitor.title == "other" and len(visitor.clicks) == 2)
    visitor.wait_until(lambda: len(visitor.impressions) == 3)
    assert visitor.impressions == {"hero": used.views, "promo": 1, "offer": 1}
    assert visitor.clicks == [("hero", "url-hover"), ("hero", "named-hover")]


def go_back(visitor):
    """Go back, and wait until the script of the package has run."""
    visitor.driver.back()
    visitor.wait_until(lambda: visitor.title == "page" and visitor.run("return !!document.moeSent"))


def hover(visitor, kind, path, used):
    """Hold the mouse over a link until the library fetches it early. A library may refuse to fetch it a second time."""
    visitor.driver.hover(f"#{kind}-hover")
    if used.fetches_early:
        visitor.watch(lambda: any(found.startswith(path) for found in visitor.site.paths), 0.6)


@each(["plain", "turbo", "htmx", "unpoly"])
def test_every_click_counts_once(visitor, library, name):
    """A middle click, a click with Ctrl and the Enter key count once. A link to another host leads there."""
    visitor.use("render", CACHE_CONTROL="private, no-cache", CONTENT_HOSTS=[visitor.site.other_host])
    visitor.driver.get(LIBRARIES[name].put(visitor, library, ACTS))
    clicks, shown = [], Counter()
    for act, how in ACTS.items():
        for kind, title, key in (("url", "target", "promo"), ("named", "other", "offer")):
            link = f"#{kind}-{act}"
            visitor.driver.press("Enter", link) if act == "enter" else visitor.click(link, **how)
            clicks.append(("hero", f"{kind}-{act}"))
            shown[key] += 1
            visitor.wait_until(lambda key=key: (visitor.clicks, visitor.impressions.get(key)) == (clicks, shown[key]))
            if act == "enter":
                visitor.wait_until(lambda title=title: visitor.title == title)
                go_back(visitor)
    assert visitor.driver.count_tabs() == 5
    visitor.click("#away-enter")
    visitor.wait_until(lambda: visitor.driver.url == f"http://{visitor.site.other_host}/other")
    visitor.wait_until(lambda: visitor.impressions["offer"] == 4)
    assert (visitor.clicks, visitor.impressions["promo"]) == ([*clicks, ("hero", "away-enter")], 3)

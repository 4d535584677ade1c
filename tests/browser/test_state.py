"""State for scripts: React shows what the server decided, with the code of the documents."""

import re

import pytest

from tests.browser.conftest import EXPERIENCES
from tests.documents import read

pytestmark = pytest.mark.urls("tests.browser.site")

HERO, EXPOSURE = re.findall(r"```javascript\n(.+?)```", read("howto/state.md"), re.DOTALL)
PAGE = (
    '<h1>Shop</h1><div id="hero"></div>{% experience "promo" %}<p>{{ experience.Title }}</p>{% endexperience %}'
    '{% personalize_state "hero-banner" "promo" "nope" %}<script type="module" src="/hero.js"></script>'
    '<script type="module" src="/exposure.js"></script>'
)
FILES = {
    "react": "react/cjs/react.production.js",
    "scheduler": "scheduler/cjs/scheduler.production.js",
    "react-dom": "react-dom/cjs/react-dom.production.js",
    "react-dom/client": "react-dom/cjs/react-dom-client.production.js",
}


def bundle(library):
    """Return React as one module, as a bundler of the site would build it."""
    parts = [f'"{name}": (exports, require) => {{{library(file)}\n}},' for name, file in FILES.items()]
    return (
        f"const parts = {{{''.join(parts)}}}, made = {{}};"
        "const require = (name) => made[name] || (parts[name]((made[name] = {}), require), made[name]);"
        'export const { createElement } = require("react"), { createRoot } = require("react-dom/client");'
    )


MODES = [("chromium", "render"), ("firefox", "visible"), ("chromium", "web_sdk")]


@pytest.mark.parametrize(("browser", "impressions"), MODES, indirect=["browser"])
def test_react(visitor, library, monkeypatch, impressions):
    """Each experience counts once, and so does a click, under a strict Content Security Policy."""
    monkeypatch.setitem(EXPERIENCES, "hero-banner", {"Title": "</script><b>Hi", "CtaLabel": "Buy"})
    visitor.use(impressions)
    visitor.site.put_file("react.js", bundle(library).encode())
    visitor.site.put_file("hero.js", re.sub('from "react[^"]*"', 'from "/react.js"', HERO).encode())
    visitor.site.put_file("exposure.js", EXPOSURE.encode())
    sdk = "new Proxy({}, { get: (_, method) => () => told.push(method) })"
    visitor.site.put_file("sdk.js", f"window.told = []; window.Moengage = {{ personalize: {sdk} }}")
    visitor.driver.get(visitor.site.put("page", f"<main>{PAGE}</main>", head='<script src="/sdk.js"></script>'))
    visitor.wait_until(
        lambda: visitor.run("return document.querySelector('#hero h1')?.textContent") == "</script><b>Hi"
    )
    if impressions == "web_sdk":
        visitor.wait_until(lambda: visitor.run("return told") == ["trackImpression"] * 2)
        visitor.click("#hero button")
        visitor.wait_until(lambda: visitor.run("return told") == ["trackImpression"] * 2 + ["trackClick"])
        assert (visitor.impressions, visitor.beacons) == ({}, [])
    else:
        visitor.wait_until(lambda: visitor.impressions == {"hero-banner": 1, "promo": 1})
        visitor.click("#hero button")
        visitor.wait_until(lambda: visitor.clicks == [("hero-banner", "CtaLabel")])
    assert visitor.run("return dataLayer.map((told) => told.experience_key)") == ["hero-banner", "promo"]
    assert visitor.run("return dataLayer.every((told) => told.variation_id)")

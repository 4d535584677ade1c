"""IMPRESSIONS = "web_sdk": MoEngage's own script counts, through the vendor's loader from npm.

The loader fetches the vendor's scripts from cdn.moengage.com. Here the scripts of this module stand in for them.
"""

import json

import pytest

from django_moe_personalize.tracking.watchdog import get_watchdog
from tests.browser.conftest import BOTH

pytestmark = pytest.mark.urls("tests.browser.site")

CDN = "https://cdn.moengage.com/release/dc_1/moe_webSdk"
LOADER = 'import Moe from "/web-sdk.js"; Moe.initialize({ app_id: "SANDBOX", cluster: "DC_1" })'
# The first script makes the global. The second script, which it loads, adds the part for this package.
FIRST = f"""window.moe = () => {{
  const second = document.createElement("script");
  second.src = "{CDN}_webp.min.latest.js";
  setTimeout(() => document.head.append(second), 300);
  return {{ track_event() {{}} }};
}}"""
SECOND = """window.told = [];
window.%s = window.%s || {};
window.%s.personalize = new Proxy({}, { get: (_, method) => (...details) => told.push([method, ...details]) });"""

BODY = (
    "{% experience 'offers' as hero %}<button id='buy' data-moe-click='buy'>b</button>"
    "{% for offer in hero.offerings %}<button id='offer' data-moe-click='{{ offer.offering_id }}'>o</button>"
    "{% endfor %}<a href=\"{% click_url hero '/page' %}\">x</a>{% endexperience %}<main></main>"
)


def open_page(visitor, library, scripts):
    """Open a page with the vendor's loader. The page waits for the Web SDK in quick motion."""
    visitor.driver.intercept("cdn.moengage.com", scripts)
    visitor.site.policy = "script-src 'self' 'unsafe-inline' https://cdn.moengage.com"
    visitor.site.put_file("web-sdk.js", library("@moengage/web-sdk/dist/index.js").encode())
    visitor.site.put_file("loader.js", LOADER)
    quick = "const wait = setTimeout; window.setTimeout = (act, time) => wait(act, time === 250 ? 20 : time)"
    visitor.open(BODY + '<script type="module" src="/loader.js"></script>', impressions="web_sdk", script=quick)


@BOTH
def test_sdk_counts(visitor, library):
    """The SDK gets each impression and click once, of offerings too. The site gets no reports."""
    second = SECOND.replace("%s", "Moengage")
    open_page(visitor, library, {f"{CDN}.min.latest.js": FIRST, f"{CDN}_webp.min.latest.js": second})
    # The click waits for the SDK.
    visitor.click("#buy")
    visitor.wait_until(lambda: visitor.run("return window.told?.length") == 3)
    visitor.click("#offer")
    visitor.insert("{% experience 'promo' %}<b>x</b>{% endexperience %}")
    visitor.wait_until(lambda: visitor.run("return told.length") == 6)
    told = visitor.run("return told")
    names = [name for name, *_ in told]
    assert names[:3] == ["trackImpression", "offeringShown", "trackClick"]
    assert names[3:] == ["trackClick", "offeringClicked", "trackImpression"]
    context, offering = told[0][1], told[1][1]
    assert (context["experience"], offering["moe_offering_id"]) == ("offers", "offer-1")
    assert told[2:5] == [
        ["trackClick", context, {"button_id": "buy"}],
        ["trackClick", context, {"button_id": "offer-1"}],
        ["offeringClicked", offering],
    ]
    assert visitor.run("return document.querySelector('a').getAttribute('href')") == "/page"
    assert (visitor.beacons, visitor.impressions, visitor.clicks) == ([], {}, [])


@BOTH
def test_sdk_never_comes(visitor, library):
    """The page stops waiting and tells the site, once. Later clicks cause no error."""
    open_page(visitor, library, {})
    visitor.wait_until(lambda: visitor.beacons == [["missing"]])
    visitor.wait_until(lambda: get_watchdog()._without_sdk == 1)
    visitor.click("#buy")
    visitor.site.put("next", "next")
    visitor.driver.get(f"{visitor.site.url}/next")
    assert visitor.beacons == [["missing"]]
    # The loader and the browser complain, but not this package.
    assert [text for text in visitor.driver.read_complaints() if "personalize" in text] == []


@pytest.mark.parametrize("name", ["Moengage", "MoEngage"])
def test_sdk_of_a_tag(visitor, name):
    """A tag in the page works too, under both names that MoEngage's documents give the global."""
    visitor.open(BODY, impressions="web_sdk", script=SECOND.replace("%s", name))
    visitor.wait_until(lambda: visitor.run("return told.length") == 2)
    assert json.dumps(visitor.run("return told")).count("moe_variation_id") == 1

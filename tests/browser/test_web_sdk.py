"""IMPRESSIONS = "web_sdk" in a real browser: MoEngage's own script counts, and the site gets no reports."""

import time

import pytest

from tests.browser.conftest import EXPERIENCES

pytestmark = pytest.mark.urls("tests.browser.site")

LOADER = """window.told = [];
const tell = (name) => (...details) => told.push([name, ...details]);
const methods = ["trackImpression", "trackClick", "offeringShown", "offeringClicked"];
window.GLOBAL = {};
setTimeout(() => { GLOBAL.personalize = Object.fromEntries(methods.map((name) => [name, tell(name)])) }, DELAY);"""

BODY = (
    '{% experience "hero" as hero %}<button data-moe-click="buy">b</button><button data-moe-click="offer-1" id="o">o'
    "</button><a href=\"{% click_url hero '/page' %}\">x</a>{% endexperience %}{% experience 'hero' %}y{% endexperience %}"
)


@pytest.mark.parametrize(("name", "delay"), [("Moengage", 1500), ("MoEngage", 0)])
def test_sdk_counts(visitor, monkeypatch, name, delay):
    """It gets each impression and click once, also those of offerings and from before it loaded. The site gets none."""
    offering = {"dp_offering_id": "offer-1", "offering_content": {}, "offering_context": {"moe_offering_id": "offer-1"}}
    monkeypatch.setitem(EXPERIENCES, "hero", {"offerings": [offering]})
    visitor.open(BODY, impressions="web_sdk", script=LOADER.replace("GLOBAL", name).replace("DELAY", str(delay)))
    for selector in ("button", "#o", "button"):
        visitor.click(selector)
    visitor.wait_until(lambda: len(visitor.run("return told")) == 5)
    visitor.run("document.body.append('changed')")
    time.sleep(0.5)
    shown, *told = visitor.run("return told")
    assert shown[0] == "trackImpression"
    assert shown[1]["experience"]
    assert told == [
        ["offeringShown", {"moe_offering_id": "offer-1"}],
        ["trackClick", shown[1], {"button_id": "buy"}],
        ["trackClick", shown[1], {"button_id": "offer-1"}],
        ["offeringClicked", {"moe_offering_id": "offer-1"}],
    ]
    assert visitor.run("return document.querySelector('a').getAttribute('href')") == "/page"
    assert (visitor.beacons, visitor.impressions, visitor.clicks) == ([], {}, [])


def test_sdk_never_loads(visitor):
    """After 30 s the page tells the site so once, and stops waiting. The clock of this page runs faster."""
    visitor.open(BODY, impressions="web_sdk", script="const wait = setTimeout; setTimeout = (f, t) => wait(f, t / 25)")
    visitor.wait_until(lambda: visitor.beacons)
    visitor.click("button")
    time.sleep(0.5)
    assert visitor.beacons == [["missing"]]


def test_inserted_later(visitor):
    """The Web SDK gets the impressions of inserted experiences too, and no impression twice."""
    visitor.open(
        BODY + "<main></main>", impressions="web_sdk", script=LOADER.replace("GLOBAL", "Moengage").replace("DELAY", "0")
    )
    visitor.insert("{% experience 'promo' %}<b>x</b>{% endexperience %}")
    visitor.wait_until(lambda: visitor.run("return told.length") == 2)
    time.sleep(0.5)
    assert [name for name, *_ in visitor.run("return told")] == ["trackImpression", "trackImpression"]

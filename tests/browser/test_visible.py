"""IMPRESSIONS = "visible" in a real browser: half of an experience in view for one continuous second."""

import time

import pytest

pytestmark = pytest.mark.urls("tests.browser.site")

GAP = "<div style='height:2000px'>gap</div>"


def experience(key: str, style: str = "height:200px", text: str = "x") -> str:
    """Return an experience with one element in this style."""
    return f'{{% experience "{key}" %}}<div id="{key}" style="{style}">{text}</div>{{% endexperience %}}'


def test_in_view(visitor):
    """An experience in view counts after one second, not earlier, and only once."""
    visitor.open(experience("hero"), impressions="visible")
    visitor.wait_until(lambda: visitor.impressions)
    # By the browser's clock, because a busy machine delays calls from outside.
    beacons = "return performance.getEntriesByType('resource').filter((e) => e.name.includes('/moe/')).map(START)"
    assert min(visitor.run(beacons.replace("START", "(e) => e.startTime"))) >= 1000
    time.sleep(1.5)
    assert visitor.beacons == [["impression"]]
    assert visitor.impressions == {"hero": 1}


def test_below_the_fold(visitor):
    """An element below the fold counts after it has been scrolled into view for a second."""
    visitor.open(GAP + experience("hero"), impressions="visible")
    time.sleep(2.5)
    assert visitor.beacons == []
    visitor.scroll(1800)
    visitor.wait_until(lambda: visitor.impressions == {"hero": 1})


# In the browser, because a busy machine delays calls from outside.
SCROLL_PAST = """
    const pause = () => new Promise((end) => setTimeout(end, 200));
    return (async () => {
        for (let time = 0; time < 7; time++)
            for (const top of [1800, 0]) {
                scrollTo({top, behavior: "instant"});
                await pause();
            }
    })();
"""


def test_scrolled_past(visitor):
    """200 ms in view are not enough. Several such moments don't add up."""
    visitor.open(GAP + experience("hero") + GAP, impressions="visible")
    visitor.run(SCROLL_PAST)
    time.sleep(2)
    assert visitor.beacons == []
    visitor.scroll(1800)
    visitor.wait_until(lambda: visitor.impressions == {"hero": 1})


ROWS = "{% experience 'e0' %}" + "<p style='height:50px;margin:0'>row</p>" * 4 + "{% endexperience %}"
TALL = [f"height:{height}px;width:{width};float:left" for height in (1500, 40_000) for width in ("50%", "150px")]


@pytest.mark.parametrize(
    ("columns", "fewer", "more"),
    [
        ([ROWS, experience("e1")], 80, 120),
        ([experience(f"e{n}", style) for n, style in enumerate(TALL)], 240, 360),
    ],
    ids=["small", "taller than the window"],
)
def test_half_of_an_experience(visitor, columns, fewer, more):
    """40 % in view is not enough, and 60 % is. A taller experience has to fill half of the window."""
    cells = "".join(f"<td style='width:25%;vertical-align:top'>{column}</td>" for column in columns)
    visitor.open(f"{GAP}<table style='width:100%;border-spacing:0'><tr>{cells}</table>{GAP}", impressions="visible")
    visitor.scroll(2000 - 600 + fewer)
    time.sleep(2.2)
    assert visitor.impressions == {}
    visitor.scroll(2000 - 600 + more)
    visitor.wait_until(lambda: len(visitor.impressions) == len(columns))


def test_nested(visitor):
    """The outer and the inner experience count separately."""
    visitor.open(
        f"{{% experience 'hero' %}}{experience('promo')}<div style='height:3000px'>x</div>{GAP}"
        f"{experience('offer')}{{% endexperience %}}",
        impressions="visible",
    )
    visitor.wait_until(lambda: visitor.impressions == {"hero": 1, "promo": 1})
    visitor.scroll(99_999)
    visitor.wait_until(lambda: visitor.impressions == {"hero": 1, "promo": 1, "offer": 1})


def test_seen_together(visitor):
    """One beacon reports all experiences that came into view together."""
    visitor.open("".join(experience(f"e{n}", "height:20px") for n in range(8)), impressions="visible")
    visitor.wait_until(lambda: len(visitor.impressions) == 8)
    assert visitor.beacons == [["impression"] * 8]


def test_more_than_a_beacon_takes(visitor):
    """Reports above the server's limits go into another beacon. All 120 experiences count."""
    visitor.open("".join(experience(f"e{n}", "height:4px", "") for n in range(120)), impressions="visible")
    visitor.wait_until(lambda: len(visitor.impressions) == 120)
    assert sum(map(len, visitor.beacons)) == 120
    assert max(map(len, visitor.beacons)) <= 100
    assert max(visitor.site.beacon_sizes) <= 16 * 1024


def test_left_before_the_beacon(visitor):
    """When the visitor leaves, the page reports the experiences seen so far, and no others."""
    visitor.site.put("next", "next")
    visitor.open(experience("hero") + GAP + experience("promo"), impressions="visible")
    # The experience counts after 1 s, and the beacon waits 1 s for other reports.
    visitor.wait_until(lambda: visitor.run("return Object.keys(document.moeSent).length"))
    assert visitor.beacons == []
    visitor.driver.get(f"{visitor.site.url}/next")
    visitor.wait_until(lambda: visitor.impressions == {"hero": 1})
    assert visitor.beacons == [["impression"]]


def test_inserted_later(visitor):
    """An experience in HTML that a script inserts counts when it is in view. Its clicks count too."""
    visitor.open("<main></main>", impressions="visible")
    visitor.insert(experience("hero", text="<button data-moe-click='go'>x</button>"))
    visitor.click("button")
    visitor.wait_until(lambda: visitor.clicks == [("hero", "go")])
    visitor.wait_until(lambda: visitor.impressions == {"hero": 1})


def test_removed(visitor):
    """An experience that a script removes within its first second doesn't count, and causes no error."""
    visitor.open(f"<main>{experience('hero')}</main>{experience('promo')}", impressions="visible")
    time.sleep(0.5)
    visitor.run("document.querySelector('main').innerHTML = ''")
    visitor.wait_until(lambda: visitor.impressions)
    time.sleep(0.5)
    assert visitor.impressions == {"promo": 1}


def test_morphed(visitor):
    """If a library keeps the mark and changes its token, this is another page view. Both count."""
    visitor.open(f"<main>{experience('hero')}</main>", impressions="visible")
    visitor.wait_until(lambda: visitor.impressions == {"hero": 1})
    visitor.site.put_file("piece", "{% load moe_personalize %}" + experience("hero"), "text/html")
    visitor.run(
        "return fetch('/piece').then((r) => r.text()).then((t) => {"
        "const main = document.querySelector('main'), other = document.createElement('main'); other.innerHTML = t;"
        "main.firstChild.dataset.moeExperience = other.firstChild.dataset.moeExperience })"
    )
    visitor.wait_until(lambda: visitor.impressions == {"hero": 2})


def test_script_loaded_twice(visitor):
    """A page that has the script twice counts once."""
    visitor.open("{% personalize_scripts %}" + experience("hero"), impressions="visible")
    visitor.wait_until(lambda: visitor.impressions)
    time.sleep(1)
    assert visitor.beacons == [["impression"]]


def test_hidden_tab(visitor):
    """A hidden tab counts nothing. When it is shown again, the second starts again."""
    visitor.open(experience("hero"), impressions="visible")
    time.sleep(0.6)
    other = visitor.driver.open_tab()
    time.sleep(2.5)
    assert visitor.beacons == []
    visitor.driver.activate()
    assert visitor.run("return document.hidden") is False
    time.sleep(0.6)
    assert visitor.beacons == []
    assert visitor.run("return Object.keys(document.moeSent)") == []
    visitor.wait_until(lambda: visitor.impressions == {"hero": 1})
    other.close()


def test_hidden_document(visitor):
    """A hidden page counts nothing, even if the browser still measures it."""
    hide = "let hidden = true; Object.defineProperty(document, 'hidden', { get: () => hidden });"
    change = "document.dispatchEvent(new Event('visibilitychange', { bubbles: true }))"
    script = f"{hide} window.reveal = () => {{ hidden = false; {change} }}"
    visitor.open(experience("hero"), impressions="visible", script=script)
    time.sleep(2.5)
    assert visitor.beacons == []
    visitor.run("reveal()")
    visitor.wait_until(lambda: visitor.impressions == {"hero": 1})


@pytest.mark.parametrize("seconds", [0.5, 2.5])
def test_back_forward_cache(visitor, seconds):
    """A page that the back button restores counts once, and goes on working."""
    visitor.site.put("next", "next")
    visitor.use("visible", CACHE_CONTROL="private, no-cache")
    button = "<button data-moe-click='go'>x</button>"
    visitor.driver.get(visitor.site.put("page", experience("hero", text=button) + GAP + experience("promo")))
    visitor.run("addEventListener('pageshow', (event) => { window.cameBack = event.persisted })")
    time.sleep(seconds)
    visitor.driver.get(f"{visitor.site.url}/next")
    time.sleep(1.5)
    visitor.driver.back()
    visitor.wait_until(lambda: visitor.run("return window.cameBack") is True)
    if seconds < 1:
        assert visitor.impressions == {}
    visitor.wait_until(lambda: visitor.impressions == {"hero": 1})
    visitor.click("button")
    visitor.scroll(99_999)
    visitor.wait_until(lambda: visitor.impressions == {"hero": 1, "promo": 1})
    assert visitor.clicks == [("hero", "go")]
    assert sorted(kind for beacon in visitor.beacons for kind in beacon) == ["click", "impression", "impression"]

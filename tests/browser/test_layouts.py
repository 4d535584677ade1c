"""IMPRESSIONS in both browsers: what a person sees counts in every layout, and marks change no layout."""

import re
import time
from pathlib import Path

import pytest

from tests.browser.conftest import BOTH

pytestmark = [pytest.mark.urls("tests.browser.site"), BOTH]

CELLS, SCRIPT = (Path(__file__).with_name(f"layouts.{kind}").read_text() for kind in ("html", "js"))
GAP = "<div style='height: 2000px'></div>"
NAMES = [*re.findall('experience "(.+?)"', CELLS), "frame", "late"]


@pytest.fixture
def open_layouts(visitor, monkeypatch):
    """Return a function that opens a page with all layouts, below the window or in it."""
    monkeypatch.setattr("tests.browser.conftest.EXPERIENCES", {name: {"Title": name} for name in NAMES})
    piece = (
        '{% load moe_personalize %}{% experience "NAME" %}<p style="height: 90px; margin: 0">x</p>{% endexperience %}'
    )

    def open_layouts(mode, above=""):
        visitor.site.put("frame", piece.replace("NAME", "frame"))
        visitor.site.put_file("piece", piece.replace("NAME", "late"), "text/html")
        visitor.open(above + CELLS + above, impressions=mode, script=SCRIPT)
        return visitor

    return open_layouts


# Where a browser shows comments, or ends an attribute at a quotation mark.
TEXT = """<input value='{% experience "text" %}a{% endexperience %}'>
<textarea>{% experience "text" %}<b>b</b>{% endexperience %}</textarea>
<style>p {% experience "text" %}{ border-left: 9px solid }{% endexperience %}</style>"""


def test_each_layout_counts_once_when_a_person_sees_it(open_layouts):
    """Half of it for one second counts once. Below the window, for a moment, a third, or hidden, it doesn't count."""
    visitor = open_layouts("visible", GAP)
    visitor.run("steps.change(); return steps.glance()")
    # A style of the outer page that makes a frame transparent is unknown in the frame.
    visitor.run("document.querySelector('iframe').hidden = true")
    for state in ("third", "none", "clear"):
        visitor.run("cells.className = arguments[0]", state)
        visitor.scroll(2000)
        time.sleep(1.5)
        assert (state, visitor.run("return Object.keys(document.moeSent)")) == (state, [])
    visitor.run(
        "document.querySelector('iframe').hidden = false; steps.hide(); document.querySelector('#cells').className = ''"
    )
    visitor.scroll(2000)
    time.sleep(1.5)
    assert visitor.run("return Object.keys(document.moeSent)") == []
    visitor.run("steps.open()")
    visitor.wait_until(lambda: len(visitor.impressions) >= len(NAMES))
    time.sleep(1.2)
    assert visitor.impressions == dict.fromkeys(NAMES, 1)


def test_page_looks_the_same_in_all_modes(open_layouts):
    """No pixel differs, although the page's CSS counts elements. No mark is visible as text."""
    looks = {}
    for mode in ("manual", "render", "visible", "web_sdk"):
        visitor = open_layouts(mode, TEXT)
        visitor.run("return steps.change()")
        looks[mode] = visitor.driver.screenshot()
    assert [mode for mode in looks if looks[mode] != looks["manual"]] == []

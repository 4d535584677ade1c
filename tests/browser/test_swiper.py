"""IMPRESSIONS = "visible" in a real slider: a slide counts when it was in view for a second."""

import pytest

pytestmark = pytest.mark.urls("tests.browser.site")

HEAD = '<link rel="stylesheet" href="/swiper.css"><script src="/swiper.js" defer></script><script src="/go.js" defer>'
SLIDES = [f"<div class='swiper-slide'><h2>{number}</h2>Text<br>and more</div>" for number in range(4)]
EACH = "".join(f"{{% experience 'e{number}' %}}{slide}{{% endexperience %}}" for number, slide in enumerate(SLIDES))
ALL = f"{{% experience 'e0' %}}{''.join(SLIDES)}{{% endexperience %}}"
START = """window.shown = [0];
new Swiper(".swiper", { autoplay: { delay: %s }, on: { slideChange: ({ activeIndex }) => shown.push(activeIndex) } })"""


@pytest.mark.parametrize(
    ("browser", "slides", "delay", "counted"),
    [
        ("chromium", EACH, 1800, 4),
        ("firefox", EACH, 1800, 4),
        ("chromium", EACH, 400, 0),
        ("chromium", ALL, 600, 1),
        ("firefox", ALL, 600, 1),
    ],
    ids=["chromium-each", "firefox-each", "chromium-quick", "chromium-all", "firefox-all"],
    indirect=["browser"],
)
def test_slides(visitor, library, slides, delay, counted):
    """A slide that stays for 1.8 s counts once, and a shorter stay doesn't. Four slides may be one experience."""
    visitor.use("visible")
    visitor.site.put_file("swiper.css", library("swiper/swiper-bundle.css").encode(), "text/css")
    visitor.site.put_file("swiper.js", library("swiper/swiper-bundle.js").encode())
    visitor.site.put_file("go.js", START % delay)
    slider = "<div class='swiper' style='width:400px;height:200px'><div class='swiper-wrapper'>{}</div></div>"
    visitor.driver.get(visitor.site.put("page", slider.format(slides), head=f"{HEAD}</script>"))
    # After the last slide, Swiper starts again with the first one.
    visitor.wait_until(lambda: visitor.run("return shown")[:5] == [0, 1, 2, 3, 0], 20)
    visitor.wait_until(lambda: len(visitor.impressions) == counted)
    assert visitor.impressions == {f"e{number}": 1 for number in range(counted)}

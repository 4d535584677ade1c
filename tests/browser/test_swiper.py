"""IMPRESSIONS = "visible" in a real slider: each slide counts when it was in view for a second."""

import pytest

pytestmark = pytest.mark.urls("tests.browser.site")

HEAD = '<link rel="stylesheet" href="/swiper.css"><script src="/swiper.js" defer></script><script src="/go.js" defer>'
SLIDE = "{{% experience 'e{}' %}}<div class='swiper-slide'><h2>{}</h2>Text<br>and more</div>{{% endexperience %}}"
SLIDER = "<div class='swiper' style='width:400px;height:200px'><div class='swiper-wrapper'>{}</div></div>"
START = """window.shown = [0];
new Swiper(".swiper", { autoplay: { delay: %s }, on: { slideChange: ({ activeIndex }) => shown.push(activeIndex) } })"""


@pytest.mark.parametrize(
    ("browser", "delay", "counted"),
    [("chromium", 1800, 4), ("firefox", 1800, 4), ("chromium", 700, 0)],
    indirect=["browser"],
)
def test_slides(visitor, library, delay, counted):
    """A slide that stays for 1.8 s counts once, and a slide that stays for 0.7 s doesn't."""
    visitor.use("visible")
    visitor.site.put_file("swiper.css", library("swiper/swiper-bundle.css").encode(), "text/css")
    visitor.site.put_file("swiper.js", library("swiper/swiper-bundle.js").encode())
    visitor.site.put_file("go.js", START % delay)
    slides = SLIDER.format("".join(SLIDE.format(number, number) for number in range(4)))
    visitor.driver.get(visitor.site.put("page", slides, head=f"{HEAD}</script>"))
    # Behind the last slide, Swiper starts again with the first one.
    visitor.wait_until(lambda: visitor.run("return shown") == [0, 1, 2, 3, 0, 1], 20)
    assert visitor.impressions == {f"e{number}": 1 for number in range(counted)}

"""Pages of Jinja2 templates in a real browser: the same marks, links and reports as those of Django's templates."""

import pytest

pytestmark = pytest.mark.urls("tests.browser.site")

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Club</title></head><body><main>
<h1>Club</h1>
{% experience "hero" as hero %}<p>{{ hero.Title }}</p><button data-moe-click="buy">Buy</button>{% endexperience %}
{% for key in ["promo", "nope"] %}{% experience key as promo %}
<a href="{{ click_url(promo, '/page.jinja?again', element='more') }}">{{ promo.Title }}</a>
{% fallback %}<p id="fallback">For all</p>{% endexperience %}{% endfor %}
</main>{{ personalize_scripts() }}</body></html>"""


@pytest.mark.parametrize("mode", ["render", "visible"])
def test_page(visitor, settings, run_axe, mode):
    """The page counts what the visitor sees and clicks, under a strict Content Security Policy, and is accessible."""
    extensions = ["django_moe_personalize.contrib.jinja2.PersonalizeExtension"]
    jinja2 = {"BACKEND": "django.template.backends.jinja2.Jinja2", "OPTIONS": {"extensions": extensions}}
    settings.TEMPLATES = [*settings.TEMPLATES, jinja2]
    visitor.use(mode)
    visitor.site.put_file("page.jinja", PAGE, "text/html")
    visitor.driver.get(f"{visitor.site.url}/page.jinja")
    visitor.wait_until(lambda: visitor.impressions == {"hero": 1, "promo": 1})
    assert run_axe(visitor.driver) == []
    assert visitor.run("return document.querySelector('#fallback').textContent") == "For all"
    visitor.click("button")
    visitor.wait_until(lambda: visitor.clicks == [("hero", "buy")])
    visitor.click("a")
    visitor.wait_until(lambda: visitor.clicks == [("hero", "buy"), ("promo", "more")])
    visitor.wait_until(lambda: visitor.driver.url.endswith("/page.jinja?again"))

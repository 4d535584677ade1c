"""The links of ``{% click_url %}``."""

import html
from decimal import Decimal

import pytest
from django.test import Client
from django.utils.translation import gettext_lazy

from django_moe_personalize.testing import override_experiences, override_personalize


@pytest.fixture
def follow(render, visit):
    """Return a function that renders a link to ``destination`` and returns where a click leads."""

    def follow(arguments, **context):
        url = render("{% experience 'hero' as h %}{% click_url h " + arguments + " %}{% endexperience %}", **context)
        return visit(html.unescape(url)).headers["Location"] if url.startswith("/moe/click/") else url

    return follow


@pytest.mark.parametrize(
    ("source", "element", "offering"),
    [
        ("{% click_url o '/p/' %}", "", None),
        ("{% click_url o '/p/' element='cta' %}", "cta", None),
        ("{% click_url o '/p/' offering=o.offerings.0 %}", "offer-1", "offer-1"),
        ("{% click_url o '/p/' offering=o.offerings.1 element='image' %}", "image", "offer-2"),
    ],
)
def test_click_names_its_element_and_offering(render, shown, visit, source, element, offering):
    """The event has the clicked element and the context of the clicked offering (contract §5)."""
    page = render('{% experience "offers" as o %}' + source + "{% endexperience %}")
    assert visit(html.unescape(page)).headers["Location"] == "/p/"
    assert shown.clicks == {"offers": 1}
    [click] = [entry for entry in shown.engine.ledger.entries() if entry.action.endswith("CLICKED")]
    assert (click.element, click.attributes.get("moe_offering_id")) == (element, offering)
    assert "offerings" not in click.attributes


@pytest.mark.parametrize(
    ("destination", "location"),
    [
        ("'/sale/?a=1&b=2'", "/sale/?a=1&b=2"),
        ("'https://partner.example/x'", "https://partner.example/x"),
        ("'HTTP://Partner.example:8080/x'", "HTTP://Partner.example:8080/x"),
        ("partner", "#"),
        ("cdn", "https://cdn.example/a"),
        ("own", "http://testserver/a"),
        ("'javascript:alert(1)'", "#"),
        ("'//evil.example'", "#"),
        ("evil", "#"),
        ("'?page=2'", "/page/?page=2"),
        ("'sale/'", "/page/sale/"),
        ("'../up/'", "/up/"),
        ("''", "/page/"),
        ("'#buy'", "#buy"),
    ],
)
def test_destinations(follow, destination, location):
    """A literal may lead to any http(s) host, content only to the site and CONTENT_HOSTS.

    A relative destination is relative to the page. A place on the page itself is not a click.
    """
    with override_personalize(CONTENT_HOSTS=["cdn.example"]):
        context = {"partner": "https://partner.example/", "cdn": "https://cdn.example/a", "own": "http://testserver/a"}
        assert follow(destination, **context, evil="java\tscript:alert(1)") == location


@pytest.mark.parametrize("option", ["element=lazy", "element=number", "offering=undefined", "element=nothing"])
def test_odd_options_never_break_the_page(follow, option):
    """A translated text, a number or a missing variable is accepted."""
    assert follow(f"'/a/' {option}", lazy=gettext_lazy("cta"), number=Decimal("7"), nothing=None) == "/a/"


def test_page_of_a_refused_host(settings):
    """Django renders a page for a Host header that ALLOWED_HOSTS refuses, so its links must not fail."""
    settings.ROOT_URLCONF = "tests.site"
    with override_experiences({"hero-banner": {"Title": "x"}}):
        assert b"/moe/click/" in Client(headers={"host": "evil.example"}).get("/tags/").content


@pytest.mark.parametrize("key", ["hero", "nope"])
def test_link_without_the_urls_or_an_experience(render, caplog, key):
    """The link is the plain destination, and the script is left out. The log says how to add the URLs."""
    link = "{% click_url h '/a/' %}{% personalize_scripts %}"
    source = f"{{% experience '{key}' as h %}}{link}{{% fallback %}}{link}{{% endexperience %}}"
    assert render(source, with_urls=False) == "/a/"
    assert caplog.text.count('Add path("moe/", include("django_moe_personalize.urls")) to your URLs.') == 1


def test_context_too_long_for_a_token(render, caplog, monkeypatch):
    """The link stays plain and the mark is left out if the experience context doesn't fit into a URL."""
    monkeypatch.setattr("django_moe_personalize.tracking.tokens.MAX_TOKEN_LENGTH", 50)
    source = "{% experience 'hero' as h %}<b data-moe-click>{% click_url h '/a/' %}{% endexperience %}"
    assert render(source) == "<b data-moe-click>/a/"
    assert "too long for a token" in caplog.text

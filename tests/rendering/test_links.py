"""Links, impressions, the marks for the browser, and the headers of personalized pages."""

import html
import json
import re
from decimal import Decimal
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from django.http import HttpRequest, HttpResponse
from django.template import Context
from django.test import Client
from django.utils.functional import SimpleLazyObject
from django.utils.html import escape
from django.utils.translation import gettext_lazy

from django_moe_personalize.conf import get_settings
from django_moe_personalize.rendering import keep_out_of_caches, seal_response
from django_moe_personalize.testing import override_experiences, override_personalize
from django_moe_personalize.visitor import Consent
from tests.rendering.conftest import compile_template


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
    """A click has the element and the offering (contract §5). Offerings have no impressions of their own."""
    page = render('{% experience "offers" as o %}' + source + "{% endexperience %}")
    assert visit(html.unescape(page)).headers["Location"] == "/p/"
    assert shown.clicks == {"offers": 1}
    impression, click = shown.engine.ledger.entries()
    assert impression.attributes["moe_offering_ids"] == "offer-1,offer-2"
    assert (click.element, click.attributes.get("moe_offering_id")) == (element, offering)
    assert "moe_offering_ids" not in click.attributes


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
        ("'tel:+49 30 1'", "tel:+49%2030%201"),
        ("'mailto:ada@example.com?subject=Hi'", "mailto:ada@example.com?subject=Hi"),
        ("'sms:+4930'", "sms:+4930"),
        ("'MyShop://sale/1'", "MyShop://sale/1"),
        ("'tel:'|add:number", "tel:+4930"),
        ("_('tel:+49')", "tel:+49"),
        ("_('https://partner.example/x')", "https://partner.example/x"),
        ("''|add:tel", "#"),
        ("'/'|add:tel", "/tel:+4930"),
        ("tel", "#"),
        *((f"'{scheme}:x'", "#") for scheme in ("JavaScript", "data", "vbscript", "file", "blob")),
        ("'https://partner.example/'|add:tel", "https://partner.example/tel:+4930"),
        ("'https://partner.example'|add:'.evil.example/'", "#"),
        ("quoted", "/a%20b%22%3E/%5C%60%7B%7D%C3%A4?c=%27%3C%20d&e=%20"),
        ("safe", "/s/?a=1&b=2"),
        ("'/s/?a=1&copy=2'", "/s/?a=1&copy=2"),
    ],
)
def test_destinations(follow, destination, location):
    """A literal may lead to any host and app, content only to the site and CONTENT_HOSTS. "#buy" is not a click."""
    with override_personalize(CONTENT_HOSTS=["cdn.example"]):
        context = {"partner": "https://partner.example/", "cdn": "https://cdn.example/a", "own": "http://testserver/a"}
        context |= {"number": "+4930", "tel": "tel:+4930", "evil": "java\tscript:alert(1)"}
        context |= {"quoted": "/a b\">/\\`{}ä?c='< d&e=%20", "safe": escape("/s/?a=1&b=2")}
        assert follow(destination, **context) == location


@pytest.mark.parametrize(
    ("listed", "url", "is_allowed"),
    [
        ("cdn.example", "https://CDN.example./a", True),
        ("CDN.Example.", "https://cdn.example/a", True),
        ("cdn.example", "https://cdn.example:443/a", True),
        ("cdn.example:443", "https://cdn.example/a", True),
        ("cdn.example:443", "http://cdn.example/a", False),
        ("cdn.example", "http://cdn.example:80/a", True),
        ("cdn.example", "https://cdn.example:8443/a", False),
        ("cdn.example:8443", "https://cdn.example:8443/a", True),
        ("cdn.example", "//cdn.example/a", True),
        ("bücher.example", "https://xn--bcher-kva.example/a", True),
        ("xn--bcher-kva.example:8443", "https://BÜCHER.example:8443/a", True),
        ("strasse.example", "https://straße.example/a", False),
        ("cdn.example", "https://ada@cdn.example/a", False),
        ("cdn.example", "https://cdn.example:99999/a", False),
        ("cdn.example", "https://cdn.example\\@evil.example/a", False),
        ("cdn.example", "https://cdn.example" + "/a" * 2000, False),
    ],
)
def test_hosts_are_compared_as_browsers_do(listed, url, is_allowed):
    """Case, a dot at the end, the usual port and the two ways to write an international name don't matter."""
    with override_personalize(CONTENT_HOSTS=[listed]):
        template = compile_template("{{ url|experience_url }}")
        assert template.render(Context({"url": url})) == (url if is_allowed else "#")


def test_text_is_escaped_once(render):
    """A value that a tag has stored is the text itself. A link takes a safe string as the HTML that it is."""
    source = (
        "{% experience_value 'hero' 'Url' as u %}{{ u }} {% click_url nothing u %} {{ u|experience_url }} "
        "{% firstof u as f %}{% click_url nothing f %} {{ f|experience_url }} "
        "{% experience_value 'hero' 'No' default='<b>' as d %}{{ d }} {% experience_value 'hero' 'Zero' as z %}{{ z }}"
        "{% if u == '/s/?a=1&b=2' %} plain{% endif %}"
    )
    assert render(source) == "/s/?a=1&amp;b=2 " * 5 + "<b> 0 plain"


@pytest.mark.parametrize("text", ['O\'Neil & "Söhne"', "a &amp; b"])
def test_element_from_a_variable(render, shown, visit, text):
    """The element of a click is the text, although a tag has escaped it."""
    visit(
        html.unescape(
            render(
                "{% firstof t as e %}{% experience 'hero' as h %}{% click_url h '/' element=e %}{% endexperience %}",
                t=text,
            )
        )
    )
    assert [entry.element for entry in shown.engine.ledger.entries()][1:] == [text]


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


def test_context_too_long_for_a_link(render, caplog, monkeypatch):
    """The link stays plain if the experience context doesn't fit into a URL."""
    monkeypatch.setattr("django_moe_personalize.tracking.page.MAX_LINK_LENGTH", 50)
    assert render("{% experience 'hero' as h %}{% click_url h '/a/' %}{% endexperience %}") == "/a/"
    assert "A link of the experience 'hero' has a context and a destination that are too long" in caplog.text


def send_click(visit, page, element):
    """Report a click on ``element`` inside the mark of the page."""
    token = re.search(r'data-moe-experience="([^"]+)"', page)[1]
    report = json.dumps({"events": [["click", token, element]]})
    visit("/moe/beacon/", method="post", data=report, content_type="text/plain")


def test_experience_counts_once_a_page(render, shown):
    """An experience that the page shows three times has one impression. A fallback has none."""
    render(
        '{% experience "hero" %}a{% endexperience %}{% experience "hero" %}b{% endexperience %}'
        '{% experience_value "hero" "Title" %}{% experience "nope" %}{% fallback %}x{% endexperience %}'
    )
    assert (shown.impressions, shown.clicks) == ({"hero": 1}, {})


def test_only_experiences_with_clickable_elements_have_marks(render):
    """The mark is an attribute of the first element, and a comment ends the experience."""
    page = render(
        '{% experience "hero" %}<b>x</b>{% endexperience %}'
        '{% experience "offers" %}<button data-moe-click="buy">x</button>{% endexperience %}'
    )
    assert re.fullmatch('<b>x</b><button data-moe-experience="[^"]+" data-moe-click="buy">x</button><!--/moe-->', page)


def test_element_name_with_entities(render, shown, visit):
    """The browser reports the name without entities, and this name is the signed one."""
    source = '{% experience "hero" %}<b data-moe-click="{{ name }}">x</b>{% endexperience %}'
    page = render(source, name="Tom & Jerry's")
    send_click(visit, page, "Tom & Jerry's")
    assert shown.clicks == {"hero": 1}


def test_link_with_a_mark_counts_once(render, shown, visit):
    """A link may report a click twice: by its URL, and by data-moe-click."""
    page = render(
        "{% experience 'hero' as h %}"
        "<a href=\"{% click_url h '/a/' element='cta' %}\" data-moe-click=\"cta\">x</a>{% endexperience %}"
    )
    send_click(visit, page, "cta")
    visit(html.unescape(re.search(r'href="([^"]+)"', page)[1]))
    assert shown.clicks == {"hero": 1}


@pytest.mark.parametrize(
    ("mode", "opening", "impressions"),
    [
        ("render", None, {"hero": 1, "offers": 1}),
        ("manual", None, {}),
        ("visible", r"<!--moe-watch moe\.\w{12}\S+-->", {}),
        ("web_sdk", r"<!--moe %5B%22moe\.\w{12}%22%2C%20%5B%5B%22trackImpression%22\S+-->", {}),
    ],
)
def test_impression_modes(render, shown, mode, opening, impressions):
    """The response counts, or the view's code, or the browser by a mark. A value alone never has a mark."""
    marked = f"{opening}x<!--/moe-->" if opening else "x"
    source = "{% experience 'hero' %}x{% endexperience %}{% experience_value 'offers' 'Title' %}"
    with override_personalize(IMPRESSIONS=mode):
        assert re.fullmatch(f"{marked}For you", render(source))
    assert shown.impressions == impressions


def test_calls_of_the_web_sdk(render):
    """The mark has the calls for the impression and for each element. An element may be named like an offering."""
    source = "{% experience 'offers' %}<b data-moe-click='buy'></b><i data-moe-click='offer-1'></i>{% endexperience %}"
    with override_personalize(IMPRESSIONS="web_sdk"):
        mark = re.search(r'data-moe-experience="(\S+)"', render(source))[1]
    _, [[_, context], *shown], clicked = json.loads(unquote(mark))
    offers = [{"moe_offering_id": f"offer-{n}"} for n in (1, 2)]
    assert shown == [["offeringShown", offer] for offer in offers]
    assert clicked == {
        "buy": [["trackClick", context, {"button_id": "buy"}]],
        "offer-1": [["trackClick", context, {"button_id": "offer-1"}], ["offeringClicked", offers[0]]],
    }


@pytest.mark.parametrize("name", ["upper", "truncatechars:9", "force_escape"])
def test_filter_of_a_block(render, name):
    """A filter would change the marks inside its block, so there are none."""
    source = f"{{% filter {name} %}}{{% experience 'hero' %}}<b>x</b>{{% endexperience %}}{{% endfilter %}}"
    plain = render(source)
    with override_personalize(IMPRESSIONS="visible"):
        assert render(source) == plain


def fetch_only(request):
    return Consent(track=False)


@pytest.mark.parametrize("mode", ["render", "visible", "web_sdk", "manual"])
def test_no_marks_without_consent_to_track(render, mode):
    """Without consent to track, a page has no marks, and its links are plain."""
    source = "{% experience 'hero' as h %}<a data-moe-click href=\"{% click_url h '/a/' %}\">x</a>{% endexperience %}"
    with override_personalize(CONSENT=f"{__name__}.fetch_only", IMPRESSIONS=mode):
        assert render(source) == '<a data-moe-click href="/a/">x</a>'


@pytest.mark.parametrize(
    ("given", "vary"),
    [({}, "Cookie"), ({"Vary": "Accept-Language"}, "Accept-Language, Cookie"), ({"Vary": "cookie"}, "cookie")],
)
def test_vary_of_the_view_is_kept(given, vary):
    """Cookie is added to the Vary of the view."""
    response = HttpResponse(headers=given)
    seal_response(response, get_settings())
    assert response.headers["Vary"] == vary


def test_view_cannot_make_the_page_public():
    """The headers for shared caches are replaced or removed."""
    names = ["Expires", "X-Accel-Expires", "Surrogate-Control", "Edge-Control", "CDN-Cache-Control", "cache-control"]
    brands = ["Cloudflare-CDN", "Vercel-CDN", "Netlify-CDN", "Akamai", "x-litespeed"]
    caching = dict.fromkeys([*names, *(f"{brand}-Cache-Control" for brand in brands)], "max-age=600")
    kept = {"Access-Control-Max-Age": "600", "Surrogate-Key": "home"}
    response = HttpResponse(headers={**caching, **kept})
    seal_response(response, get_settings())
    del response.headers["Content-Type"]
    assert dict(response.headers) == {"Cache-Control": "private, no-store", "Vary": "Cookie", **kept}


def test_other_page_caches_learn_that_the_page_is_private():
    """wagtail-cache and django CMS don't store a page that read an experience, nor the placeholders around the read."""
    outer, inner, request, renderer = SimpleNamespace(), SimpleNamespace(), HttpRequest(), SimpleNamespace()

    def render_placeholder(placeholder, *others):
        if others:
            render_placeholder(*others)
        elif placeholder:
            render_placeholder(None)
        else:
            keep_out_of_caches(request)

    keep_out_of_caches(request)
    assert request._wagtailcache_skip is True
    request.toolbar = SimpleLazyObject(lambda: SimpleNamespace(content_renderer=renderer))
    render_placeholder(outer, inner)
    assert request.toolbar._cache_disabled is True
    assert renderer.placeholder_cache_is_enabled() is outer.cache_placeholder is inner.cache_placeholder is False

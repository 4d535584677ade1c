"""The tag library in real templates."""

import html
import json
import re
from decimal import Decimal
from types import ModuleType

import pytest
from django.http import HttpResponse
from django.template import Context, Engine, TemplateSyntaxError, engines
from django.template.loader import render_to_string
from django.test import Client, RequestFactory
from django.urls import include, path
from django.utils.translation import gettext_lazy

from django_moe_personalize.context import Personalization
from django_moe_personalize.testing import override_experiences, override_personalize

HERO = {"Title": "Hello", "Body": "<b>bold</b><script>alert(1)</script>", "Evil": "javascript:alert(1)", "Zero": 0}
OFFERS = [
    {
        "dp_offering_id": f"offer-{n}",
        "offering_content": {"type": "json", "payload": {"title": f"Offer {n}"}},
        "offering_context": {"moe_offering_id": f"offer-{n}"},
    }
    for n in (1, 2)
]


@pytest.fixture
def shown():
    """Give every visitor a hero and a list of offers."""
    with override_experiences({"hero": HERO, "offers": {"Title": "For you", "offerings": OFFERS}}) as seen:
        yield seen


@pytest.fixture
def render(shown, visit, settings):
    """Return a function that renders a template as a whole page and gives its text."""

    def render(source, **context):
        engine = settings.TEMPLATES[0] | {
            "APP_DIRS": False,
            "OPTIONS": {
                "loaders": [
                    (
                        "django.template.loaders.cached.Loader",
                        [
                            (
                                "django.template.loaders.locmem.Loader",
                                TEMPLATES
                                | {
                                    "page.html": source
                                    if "extends" in source
                                    else "{% load moe_personalize %}" + source
                                },
                            )
                        ],
                    )
                ]
            },
        }
        settings.TEMPLATES = [engine]

        def view(request):
            return HttpResponse(render_to_string("page.html", context, request))

        module = ModuleType("urls_of_one_test")
        module.urlpatterns = [path("page/", view), path("moe/", include("django_moe_personalize.urls"))]
        settings.ROOT_URLCONF = module
        return visit("/page/").content.decode()

    return render


TEMPLATES = {
    "base.html": (
        "{% load moe_personalize %}<body>{% experience 'hero' as h %}[{{ h.Title "
        "}}]{% endexperience %}{% block content %}{% endblock %}</body>"
    ),
    "piece.html": "{% load moe_personalize %}{% experience 'hero' as h %}<{{ h.Title }}>{% endexperience %}",
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('{% experience "hero" as h %}{{ h.Title }}{% endexperience %}', "Hello"),
        ('{% experience "hero" %}{{ experience.Title }}{% endexperience %}', "Hello"),
        ('{% experience "hero" as h %}{{ h.Nope }}!{% endexperience %}', "!"),
        ('{% experience "hero" as h %}{{ h.payload.Title }}{% endexperience %}', "Hello"),
        ('{% experience "nope" as h %}x{% fallback %}default{% endexperience %}', "default"),
        ('{% experience "nope" %}x{% endexperience %}', ""),
        ('{% experience "" %}x{% fallback %}default{% endexperience %}', "default"),
        ("{% experience key %}{{ experience.Title }}{% endexperience %}", "Hello"),
        ("{% experience absent %}x{% fallback %}default{% endexperience %}", "default"),
        ("{% experience number %}x{% fallback %}default{% endexperience %}", "default"),
        (
            "{% for k in keys %}{% experience k as h %}{{ h.Title }},{% fallback %}-,{% endexperience %}{% endfor %}",
            "Hello,-,Hello,",
        ),
        ('{% experience "hero" as h %}{{ h.Title }}{% endexperience %}{{ h.Title }}', "Hello"),
        (
            (
                '{% experience "hero" as a %}{% experience "offers" as b %}'
                "{{ a.Title }} {{ b.Title }}{% endexperience %}{% endexperience %}"
            ),
            "Hello For you",
        ),
        (
            (
                '{% experience "nope" %}{% fallback %}{% experience "hero" as '
                "h %}{{ h.Title }}{% endexperience %}{% endexperience %}"
            ),
            "Hello",
        ),
        (
            (
                '{% experience "offers" as o %}{% for offer in o.offerings %}'
                "{{ offer.title }};{% empty %}none{% endfor %}{% endexperience %}"
            ),
            "Offer 1;Offer 2;",
        ),
        (
            '{% experience "hero" as h %}{% for offer in h.offerings %}x{% empty %}none{% endfor %}{% endexperience %}',
            "none",
        ),
        (
            (
                '{% extends "base.html" %}{% load moe_personalize %}{% block content %}'
                '{% experience "offers" as o %}{{ o.Title }}{% endexperience %}{% endblock %}'
            ),
            "<body>[Hello]For you</body>",
        ),
        ('{% include "piece.html" %}', "<Hello>"),
        ('{% include "piece.html" only %}', "<Hello>"),
        ('{% experience_value "hero" "Title" %}', "Hello"),
        ('{% experience_value "hero" "Zero" default="x" %}', "0"),
        ('{% experience_value "hero" "Nope" default="x" %}', "x"),
        ('{% experience_value "nope" "Title" default="x" %}', "x"),
        ('{% experience_value "nope" "Title" %}', ""),
        ('{% experience_value absent "Title" default="x" %}', "x"),
        ('{% experience_value "hero" "Title" as t %}{{ t }}', "Hello"),
        ('{% experience_value "hero" "Body" %}', "&lt;b&gt;bold&lt;/b&gt;&lt;script&gt;alert(1)&lt;/script&gt;"),
        ('{% experience_value "nope" "Title" default=unsafe %}', "&lt;i&gt;"),
        (
            '{% experience "hero" as h %}{{ h.Body }}{% endexperience %}',
            "&lt;b&gt;bold&lt;/b&gt;&lt;script&gt;alert(1)&lt;/script&gt;",
        ),
        ('{% experience "hero" as h %}{{ h.Body|experience_html }}{% endexperience %}', "<b>bold</b>"),
        ('{% experience "hero" as h %}{{ h.Evil|experience_url }}{% endexperience %}', "#"),
        ("{{ '/sale/'|experience_url }}", "/sale/"),
        ('{% experience "hero" as h %}{{ h.payload|json_script:"data" }}{% endexperience %}', None),
    ],
)
def test_tags(render, source, expected):
    """Content is escaped, defaults show where nothing is there, and names stay inside their block."""
    page = render(source, key="hero", keys=["hero", "nope", "hero"], number=7, unsafe="<i>")
    if expected is None:
        assert "<script>alert" not in page
        assert r"\u003Cscript\u003Ealert(1)" in page
    else:
        assert page == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% experience %}{% endexperience %}", '{% experience %}; the right one: {% experience "key" as name %}'),
        ('{% experience "a" "b" %}{% endexperience %}', "the right one"),
        ('{% experience "a" as %}{% endexperience %}', "the right one"),
        ('{% experience "a" as 1x %}{% endexperience %}', "the right one"),
        ('{% experience "a" %}', "Unclosed tag"),
        ('{% experience "a" %}{% fallback %}{% fallback %}{% endexperience %}', "{% fallback %} stands once"),
        ("{% fallback %}", "{% fallback %} stands once"),
        ("{% click_url hero %}", "{% click_url hero '/sale/' element='cta' %}"),
        ("{% click_url hero '/a/' 'b' %}", "{% click_url hero '/sale/' element='cta' %}"),
        ("{% click_url hero '/a/' nope='b' %}", "{% click_url hero '/sale/' element='cta' %}"),
        ("{% experience_value 'hero' %}", '{% experience_value "key" "Variable" default="…" %}'),
        ("{% experience_value 'hero' 'Title' 'x' %}", '{% experience_value "key" "Variable" default="…" %}'),
        ("{% experience_value 'hero' 'Title' nope='x' %}", '{% experience_value "key" "Variable" default="…" %}'),
    ],
)
def test_wrong_use_says_the_right_one(source, message):
    """A mistake in a template is a TemplateSyntaxError that shows the right form."""
    engine = Engine(libraries={"moe_personalize": "django_moe_personalize.templatetags.moe_personalize"})
    with pytest.raises(TemplateSyntaxError, match=re.escape(message)):
        engine.from_string("{% load moe_personalize %}" + source)


@pytest.mark.parametrize("request_is_there", [True, False])
def test_template_without_the_middleware(caplog, request_is_there):
    """A template rendered for a mail, or without the middleware, shows its defaults and says why once."""
    engine = Engine(libraries={"moe_personalize": "django_moe_personalize.templatetags.moe_personalize"})
    source = (
        '{% load moe_personalize %}{% experience "hero" %}x{% fallback %}A{% endexperience %}'
        '{% experience_value "hero" "Title" default="B" %}{% click_url hero "/c/" %}'
    )
    context = Context({"request": RequestFactory().get("/")} if request_is_there else {})
    assert engine.from_string(source).render(context) == "AB/c/"
    assert caplog.text.count("passed PersonalizeMiddleware") == 1


def test_rendering_counts_once_a_page(render, shown):
    """An experience that a page shows three times was shown once; a fallback not at all."""
    render(
        '{% experience "hero" %}a{% endexperience %}{% experience "hero" %}b{% endexperience %}'
        '{% experience_value "hero" "Title" %}{% experience "nope" %}{% fallback %}x{% endexperience %}'
    )
    assert shown.impressions == {"hero": 1}
    assert shown.clicks == {}


def test_offerings_ride_on_the_impression(render, shown):
    """The impression of an experience says which offerings it showed; they count nothing of their own."""
    render('{% experience "offers" as o %}{{ o.Title }}{% endexperience %}')
    [entry] = shown.engine.ledger.entries()
    assert [offering["moe_offering_id"] for offering in entry.attributes["offerings"]] == ["offer-1", "offer-2"]


@pytest.mark.parametrize(
    ("source", "element", "offering"),
    [
        ("{% click_url o '/p/' %}", "", None),
        ("{% click_url o '/p/' element='cta' %}", "cta", None),
        ("{% click_url o '/p/' offering=o.offerings.0 %}", "offer-1", "offer-1"),
        ("{% click_url o '/p/' offering=o.offerings.1 element='image' %}", "image", "offer-2"),
    ],
)
def test_click_url(render, shown, visit, source, element, offering):
    """A link tells which element, and which offering, was clicked (contract §5)."""
    page = render('{% experience "offers" as o %}' + source + "{% endexperience %}")
    assert visit(html.unescape(page)).headers["Location"] == "/p/"
    assert shown.clicks == {"offers": 1}
    [click] = [entry for entry in shown.engine.ledger.entries() if entry.action.endswith("CLICKED")]
    assert click.element == element
    assert click.attributes.get("moe_offering_id") == offering
    assert "offerings" not in click.attributes


@pytest.mark.parametrize(
    ("destination", "link"),
    [
        ("'/sale/?a=1&b=2'", "/sale/?a=1&b=2"),
        ("'https://partner.example/x'", "https://partner.example/x"),
        ("'HTTP://Partner.example:8080/x'", "HTTP://Partner.example:8080/x"),
        ("content", "#"),
        ("allowed", "https://cdn.example/a"),
        ("own", "http://testserver/a"),
        ("'javascript:alert(1)'", "#"),
        ("'//evil.example'", "#"),
        ("evil", "#"),
    ],
)
def test_destinations(render, shown, visit, destination, link):
    """A template's author may link anywhere over http(s), content to the site itself and CONTENT_HOSTS."""
    with override_personalize(CONTENT_HOSTS=["cdn.example"]):
        page = render(
            '{% experience "hero" as h %}{% click_url h ' + destination + " %}{% endexperience %}",
            content="https://partner.example/",
            allowed="https://cdn.example/a",
            own="http://testserver/a",
            evil="java\tscript:alert(1)",
        )
        if link == "#":
            assert page == "#"
        else:
            assert visit(html.unescape(page)).headers["Location"] == link


@pytest.mark.parametrize(
    ("destination", "location"),
    [("'?page=2'", "/page/?page=2"), ("'sale/'", "/page/sale/"), ("'../up/'", "/up/"), ("''", "/page/")],
)
def test_relative_destinations_are_relative_to_the_page(render, visit, destination, location):
    """A link goes where it would go as a plain one, not to a place under the endpoint it passes through."""
    page = render("{% experience 'hero' as h %}{% click_url h " + destination + " %}{% endexperience %}")
    assert visit(html.unescape(page)).headers["Location"] == location


def test_place_on_the_page_itself_is_no_journey(render):
    """A fragment is followed by the browser alone, so the link stays what it is."""
    assert render("{% experience 'hero' as h %}{% click_url h '#buy' %}{% endexperience %}") == "#buy"


@pytest.mark.parametrize("option", ["element=lazy", "element=number", "offering=undefined", "element=nothing"])
def test_odd_options_never_break_the_page(render, visit, option):
    """A translated label, a number or a variable that is not there make a link like any other."""
    source = "{% experience 'hero' as h %}{% click_url h '/a/' " + option + " %}{% endexperience %}"
    page = render(source, lazy=gettext_lazy("cta"), number=Decimal("7"), nothing=None)
    assert visit(html.unescape(page)).headers["Location"] == "/a/"


def test_host_that_is_not_allowed(shown, settings):
    """A site that lets any Host header in renders its links all the same."""
    settings.ROOT_URLCONF = "tests.site"
    assert Client(headers={"host": "evil.example"}).get("/tags/").status_code == 200
    with override_experiences({"hero-banner": {"Title": "x"}}):
        assert b"/moe/click/" in Client(headers={"host": "evil.example"}).get("/tags/").content


@pytest.mark.parametrize("tag", ["experience 'a' %}{% endexperience", "experience_value 'a' 'b'", "click_url a '/b/'"])
def test_tags_inside_a_fragment_cache_are_refused(tag):
    """What {% cache %} would show to everybody does not compile; beside it and around it is fine."""
    engine = engines["django"]
    opening, closing = "{% load cache moe_personalize %}{% cache 60 x %}{% if y %}", "{% endif %}{% endcache %}"
    with pytest.raises(TemplateSyntaxError, match="one visitor's content to everybody"):
        engine.from_string(opening + "{% " + tag + " %}" + closing)
    assert engine.from_string(opening + closing + "{% experience 'a' %}" + opening + closing + "{% endexperience %}")


def test_element_name_with_entities(render, shown, visit):
    """The browser reports an attribute as it reads it, and that is what was signed."""
    page = render(
        ('{% experience "hero" %}<b data-moe-click="{{ name }}">x</b>{% endexperience %}'), name="Tom & Jerry's"
    )
    token = re.search(r'data-moe-experience="([^"]+)"', page)[1]
    report = json.dumps({"events": [["click", token, "Tom & Jerry's"]]})
    visit("/moe/beacon/", method="post", data=report, content_type="text/plain")
    assert shown.clicks == {"hero": 1}


def test_link_with_a_mark_counts_once(render, shown, visit):
    """A tracked link that is a data-moe-click element too tells of one click twice; it counts once."""
    page = render(
        "{% experience 'hero' as h %}<a href=\"{% click_url h "
        "'/a/' element='cta' %}\" data-moe-click=\"cta\">x</a>{% endexperience %}"
    )
    token = re.search(r'data-moe-experience="([^"]+)"', page)[1]
    report = json.dumps({"events": [["click", token, "cta"]]})
    visit("/moe/beacon/", method="post", data=report, content_type="text/plain")
    visit(html.unescape(re.search(r'href="([^"]+)"', page)[1]))
    assert shown.clicks == {"hero": 1}


def test_value_counts_where_the_response_does(shown, render):
    """A value on its own counts in the response; where the browser counts it cannot be marked."""
    with override_personalize(IMPRESSIONS="visible"):
        assert render("{% experience_value 'hero' 'Title' %}") == "Hello"
    assert shown.impressions == {}


def test_nodes_can_be_walked():
    """Tools that walk a compiled template find what stands in both halves."""
    from django.template.defaulttags import CommentNode

    engine = Engine(libraries={"moe_personalize": "django_moe_personalize.templatetags.moe_personalize"})
    source = (
        "{% experience 'a' %}{% comment %}{% endcomment %}"
        "{% fallback %}{% comment %}{% endcomment %}{% endexperience %}"
    )
    template = engine.from_string("{% load moe_personalize %}" + source)
    [node] = [node for node in template.nodelist if type(node).__name__ == "ExperienceNode"]
    assert len(list(node)) == len(node.get_nodes_by_type(CommentNode)) == 2


def test_click_url_without_an_experience_is_plain(render):
    """The same link may stand in the fallback: it goes where it says and counts nothing."""
    page = render(
        "{% experience 'nope' as h %}{% fallback %}{% click_url h '/sale/' element='cta' %}{% endexperience %}"
    )
    assert page == "/sale/"


def test_click_url_without_the_urls(shown, visit, settings, caplog):
    """Where the URLs are not included a link still goes where it says, and the log names the mend."""

    def view(request):
        source = (
            "{% load moe_personalize %}{% experience 'hero' as h %}"
            "{% click_url h '/a/' %}{% endexperience %}{% personalize_scripts %}"
        )
        from tests.site import show

        return show(request, source)

    module = ModuleType("urls_of_one_test")
    module.urlpatterns = [path("page/", view)]
    settings.ROOT_URLCONF = module
    assert visit("/page/").content == b"/a/"
    assert 'path("moe/", include("django_moe_personalize.urls"))' in caplog.text


def test_context_too_long_for_a_token(render, caplog, monkeypatch):
    """An experience whose context does not fit into a URL keeps its plain link."""
    monkeypatch.setattr("django_moe_personalize.tracking.tokens.MAX_TOKEN_LENGTH", 50)
    source = (
        "{% experience 'hero' as h %}{% click_url h '/a/' %}{% endexperience "
        "%}{% experience 'hero' %}<b data-moe-click>{% endexperience %}"
    )
    assert render(source) == "/a/<b data-moe-click>"
    assert "too long for a token" in caplog.text


def test_marks_are_there_only_when_the_browser_reports(render):
    """Empty template elements stand around an experience with a data-moe-click element, and around no other."""
    page = render(
        '{% experience "hero" %}<b>x</b>{% endexperience %}{% experience '
        '"offers" %}<button data-moe-click="buy">x</button>{% endexperience %}'
    )
    assert re.fullmatch(
        (
            r'<b>x</b><template data-moe-experience="[^"]+"></template><button '
            r'data-moe-click="buy">x</button><template data-moe-end></template>'
        ),
        page,
    )


@pytest.mark.parametrize(
    ("mode", "mark", "impressions"),
    [
        ("render", r"x", {"hero": 1}),
        ("manual", r"x", {}),
        (
            "visible",
            r'<template data-moe-experience="[^"]+" data-moe-watch></template>x<template data-moe-end></template>',
            {},
        ),
        (
            "web_sdk",
            r'<template data-moe-context="{&quot;cid&quot;[^"]+}"></template>x<template data-moe-end></template>',
            {},
        ),
    ],
)
def test_impression_modes(shown, render, mode, mark, impressions):
    """IMPRESSIONS says who counts: the response, the view, the viewport, or the vendor's script."""
    with override_personalize(IMPRESSIONS=mode):
        assert re.fullmatch(mark, render('{% experience "hero" %}x{% endexperience %}'))
    assert shown.impressions == impressions


@pytest.mark.parametrize("mode", ["render", "visible", "web_sdk", "manual"])
def test_no_marks_without_consent_to_track(shown, render, mode):
    """Where nothing may be counted nothing is marked, and links are plain."""
    with override_personalize(CONSENT="tests.test_tags.fetch_only", IMPRESSIONS=mode):
        page = render(
            "{% experience 'hero' as h %}<a data-moe-click href=\"{% click_url h '/a/' %}\">x</a>{% endexperience %}"
        )
    assert page == '<a data-moe-click href="/a/">x</a>'


def fetch_only(request):
    """Consent to be asked for, not to be counted."""
    from django_moe_personalize.visitor.consent import Consent

    return Consent(fetch=True, identify=True, track=False)


def test_scripts(render):
    """The script is the site's own static file and knows where to report."""
    page = render("{% personalize_scripts %}")
    assert page == '<script src="/static/moe_personalize/personalize.js" data-beacon="/moe/beacon/" defer></script>'


@pytest.mark.parametrize("name", ["_csp_nonce", "csp_nonce"])
def test_scripts_take_the_nonce(settings, name):
    """Django's nonce (6.0 and later) and django-csp's are taken up."""
    settings.ROOT_URLCONF = "tests.site"
    engine = Engine(libraries={"moe_personalize": "django_moe_personalize.templatetags.moe_personalize"})
    request = RequestFactory().get("/")
    setattr(request, name, "n0nce")
    page = engine.from_string("{% load moe_personalize %}{% personalize_scripts %}").render(
        Context({"request": request})
    )
    assert ' nonce="n0nce" ' in page


def test_html_without_nh3_is_escaped(render, monkeypatch, caplog):
    """Without nh3 content stays text, and the log names the mend."""
    monkeypatch.setitem(__import__("sys").modules, "nh3", None)
    page = render('{% experience "hero" as h %}{{ h.Body|experience_html }}{% endexperience %}')
    assert page.startswith("&lt;b&gt;bold")
    assert "django-moe-personalize[html]" in caplog.text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('<a href="/a" onclick="x()" style="x">t</a>', '<a href="/a" rel="noopener noreferrer">t</a>'),
        ('<a href="https://evil.example/">t</a>', '<a rel="noopener noreferrer">t</a>'),
        ('<a href="https://cdn.example/">t</a>', '<a href="https://cdn.example/" rel="noopener noreferrer">t</a>'),
        ('<img src="//evil.example/x.png" alt="a">', '<img alt="a">'),
        ('<img src="/x.png" onerror="x()">', '<img src="/x.png">'),
        ("<svg><script>x</script></svg>t", "t"),
        ('<p class="lead">t</p>', '<p class="lead">t</p>'),
        ("<iframe src='/'></iframe>t", "t"),
    ],
)
def test_html_is_cleaned(given, expected):
    """Marketers' HTML keeps its text and emphasis, and links and images of allowed hosts alone."""
    from django_moe_personalize.rendering.experience import render_html

    with override_personalize(CONTENT_HOSTS=["cdn.example"]):
        assert render_html(given) == expected


def test_context_processor(shown, visit, settings):
    """The context processor gives templates request.personalization."""
    from django_moe_personalize.context_processors import personalization

    request = RequestFactory().get("/")
    assert personalization(request) == {"personalization": None}
    request.personalization = Personalization(request)
    assert personalization(request)["personalization"] is request.personalization

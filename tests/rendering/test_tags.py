"""The template tags and filters that show content."""

import re
import sys
from functools import partial, wraps
from types import FunctionType

import pytest
from django.contrib.staticfiles.storage import StaticFilesStorage
from django.template import Context, Engine, Library, Node, TemplateSyntaxError
from django.template.defaulttags import CommentNode
from django.templatetags.cache import CacheNode, do_cache
from django.test import RequestFactory, override_settings
from django.utils.safestring import mark_safe

from django_moe_personalize import rendering
from django_moe_personalize.apps import check_deployment
from django_moe_personalize.context import Personalization
from django_moe_personalize.context_processors import personalization
from django_moe_personalize.testing import override_personalize
from tests.rendering.conftest import compile_template

END = "{% endexperience %}"
ESCAPED = "&lt;b&gt;bold&lt;/b&gt;&lt;script&gt;alert(1)&lt;/script&gt;"


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
        ("{% for k in keys %}{% experience k %}a{% fallback %}b{% endexperience %}{% endfor %}", "aba"),
        ('{% experience "hero" as h %}{{ h.Title }}{% endexperience %}{{ h.Title }}', "Hello"),
        ('{% experience "hero" as h %}{% experience "offers" as o %}{{ h.Zero }} {{ o.Title }}' + 2 * END, "0 For you"),
        ('{% experience "nope" %}{% fallback %}{% experience "hero" as h %}{{ h.Title }}' + 2 * END, "Hello"),
        ('{% experience "offers" as o %}{% for x in o.offerings %}{{ x.title }}{% endfor %}' + END, "Offer 1Offer 2"),
        ('{% experience "hero" as h %}{% for x in h.offerings %}x{% empty %}none{% endfor %}' + END, "none"),
        (
            '{% extends "base.html" %}{% load moe_personalize %}{% block main %}'
            '{% experience "offers" as o %}{{ o.Title }}{% endexperience %}{% endblock %}',
            "[Hello]For you",
        ),
        ('{% include "piece.html" %}', "<Hello>"),
        ('{% include "piece.html" only %}', "<Hello>"),
        ('{% experience_value "hero" "Title" %}', "Hello"),
        ('{% experience_value "hero" "Zero" default="x" %}', "0"),
        ('{% experience_value "hero" "Nope" default="x" %}', "x"),
        ('{% experience_value "nope" "Title" default="x" %}', "x"),
        ('{% experience_value "nope" "Title" %}', ""),
        ('{% experience_value absent "Title" default="x" %}', "x"),
        ('{% experience_value "hero" "Title" %}{% experience_value "hero" "Zero" %}', "Hello0"),
        ('{% experience_value "hero" "Title" as t %}{{ t }}', "Hello"),
        ('{% experience_value "hero" "Body" %}', ESCAPED),
        ('{% experience_value "nope" "Title" default=unsafe %}', "&lt;i&gt;"),
        ('{% experience "hero" as h %}{{ h.Body }}{% endexperience %}', ESCAPED),
        ('{% experience "hero" as h %}{{ h.Body|experience_html }}{% endexperience %}', "<b>bold</b>"),
        ('{% experience "hero" as h %}{{ h.Evil|experience_url }}{% endexperience %}', "#"),
        ("{{ '/sale/'|experience_url }}", "/sale/"),
    ],
)
def test_tags(render, source, expected):
    """Content is escaped, defaults replace missing content, and names are valid inside their block only."""
    assert render(source, key="hero", keys=["hero", "nope", "hero"], number=7, unsafe="<i>") == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% experience %}{% endexperience %}", 'of {% experience %}. Write {% experience "key" as name %}…'),
        ('{% experience "a" "b" %}{% endexperience %}', "Wrong arguments of {% experience %}"),
        ('{% experience "a" as %}{% endexperience %}', "Wrong arguments of {% experience %}"),
        ('{% experience "a" as 1x %}{% endexperience %}', "Wrong arguments of {% experience %}"),
        ('{% experience "a" %}', "Unclosed tag"),
        ('{% experience "a" %}{% fallback %}{% fallback %}{% endexperience %}', "Misplaced {% fallback %}"),
        ("{% fallback %}", 'Misplaced {% fallback %}. Write it once, as in {% experience "key" as name %}'),
        ("{% click_url hero %}", "of {% click_url %}. Write {% click_url hero '/sale/' element='cta' %}"),
        ("{% click_url hero '/a/' 'b' %}", "Wrong arguments of {% click_url %}"),
        ("{% click_url hero '/a/' nope='b' %}", "Wrong arguments of {% click_url %}"),
        ("{% experience_value 'hero' %}", '. Write {% experience_value "key" "Variable" default="…" %}'),
        ("{% experience_value 'hero' 'Title' 'x' %}", "Wrong arguments of {% experience_value %}"),
        ("{% experience_value 'hero' 'Title' nope='x' %}", "Wrong arguments of {% experience_value %}"),
        ("{% personalize_scripts 'x' %}", "{% personalize_scripts %} takes no arguments."),
    ],
)
def test_syntax_errors_show_the_right_form(source, message):
    """A mistake in a template raises TemplateSyntaxError."""
    with pytest.raises(TemplateSyntaxError, match=re.escape(message)):
        compile_template(source)


class KeepNode(CacheNode):
    """A site's own cache."""

    @classmethod
    def compile(cls, parser, token):
        parser.parse((f"end{token.contents}",))
        parser.delete_first_token()
        return Node()


class Caching:
    __call__ = staticmethod(KeepNode.compile)


def compile_block(parser, token):
    """Parse a block tag whose name alone says whether it caches."""
    return KeepNode.compile(parser, token)


register = Library()
CACHES = ["cache", "wagtailcache", "cachealot", "cached", "cached_as", "cms_cache", "Caching", "announce_cache"]
OTHERS = ["nocache", "uncached", "end_cache_here", "never_cache", "cachebuster", "render_uncached_part", "static_alias"]
FUNCTIONS = {
    "placeholder": FunctionType(compile_block.__code__, {**globals(), "__name__": "cms.templatetags.cms_tags"}),
    "method": KeepNode.compile,
    "object": Caching(),
    "partial": partial(wraps(do_cache)(lambda *args: KeepNode.compile(*args))),
}
for name, function in {**dict.fromkeys([*CACHES, *OTHERS], compile_block), **FUNCTIONS}.items():
    register.tag(name, function)
TAGS = [
    "experience 'a' %}{% endexperience",
    "experience_value 'a' 'b' as c",
    "click_url a '/b/'",
    "personalize_scripts",
]
AROUND = ["if y", "with a=b", "filter upper", "for x in y", "static_alias", "block c", "nocache"]


def compile_inside(block, source, beside=""):
    """Compile a template with one source inside a block tag, and another next to it."""
    libraries = {"caches": __name__, "moe_personalize": "django_moe_personalize.templatetags.moe_personalize"}
    template = f"{{% load caches moe_personalize %}}{{% {block} %}}{source}{{% end{block.split()[0]} %}}{beside}"
    return Engine(libraries=libraries).from_string(template)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("block", [*CACHES, *FUNCTIONS])
def test_tags_inside_a_fragment_cache_are_refused(block, tag):
    """A block tag that caches would show one visitor's content to all. The error names both tags and the fix."""
    inside, name = f"{{% {tag} %}}", tag.split()[0]
    message = f"{{% {name} %}} is inside {{% {block} %}}, which would show one visitor's content to all visitors. Move"
    for source in [inside, *(f"{{% {other} %}}{inside}{{% end{other.split()[0]} %}}" for other in AROUND)]:
        with pytest.raises(TemplateSyntaxError, match=re.escape(message)):
            compile_inside(block, source)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("block", [*OTHERS, "verbatim", "comment", "experience 'a'"])
def test_tags_next_to_a_fragment_cache_are_right(block, tag):
    """Next to a cache, around a cache, and inside a block tag that caches nothing, a tag is right."""
    assert compile_inside(block, f"{{% cache %}}x{{% endcache %}}{{% {tag} %}}", f"{{% {tag} %}}")


@pytest.mark.parametrize("has_request", [True, False])
def test_template_without_the_middleware(caplog, has_request):
    """A template for an email, or a request without the middleware, shows the defaults. The log says why once."""
    source = (
        '{% experience "hero" %}x{% fallback %}A{% endexperience %}'
        '{% experience_value "hero" "Title" default="B" %}{% click_url hero "/c/" %}'
    )
    context = Context({"request": RequestFactory().get("/")} if has_request else {})
    assert compile_template(source).render(context) == "AB/c/"
    [message] = caplog.messages
    assert "no request that passed PersonalizeMiddleware" in message


def test_missing_variable_is_logged_once(render, caplog):
    """The log names the experience and the variable."""
    render("{% experience_value 'hero' 'Nope' %}{% experience_value 'hero' 'Nope' %}")
    told = "The experience 'hero' has no variable 'Nope', so its default is shown. Check the name in the template."
    assert caplog.messages.count(told) == 1


def test_nodes_of_both_halves_are_found():
    """Tools that walk a compiled template find the nodes of the body and of the fallback."""
    comment = "{% comment %}{% endcomment %}"
    source = f"{{% experience 'a' %}}{comment}{{% fallback %}}{comment}{{% endexperience %}}"
    node = compile_template(source).nodelist[-1]
    assert len(list(node)) == len(node.get_nodes_by_type(CommentNode)) == 2


def test_safe_text_is_not_taken_for_an_equal_one():
    """A SafeString stays HTML, and an equal str is escaped, in any order. Few and short values are remembered."""
    rendering._escape.cache_clear()
    for _ in range(2):
        assert rendering.render_value("<b>") == "&lt;b&gt;"
        assert rendering.render_value(mark_safe("<b>")) == "<b>"
    assert rendering.render_value("<" * 3000) == "&lt;" * 3000
    assert rendering._escape.cache_info()[:2] == (1, 1)
    assert rendering._escape.cache_info().maxsize == 1024


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
    """The HTML of marketers keeps its text, its emphasis, and links and images of allowed hosts."""
    with override_personalize(CONTENT_HOSTS=["cdn.example"]):
        assert rendering.render_html(given) == expected


def test_html_without_nh3_is_escaped(render, monkeypatch, caplog):
    """The log says what to install."""
    monkeypatch.setitem(sys.modules, "nh3", None)
    page = render('{% experience "hero" as h %}{{ h.Body|experience_html }}{% endexperience %}')
    assert page == ESCAPED
    assert "Run `pip install nh3`." in caplog.text


def test_scripts(render):
    """The script is a static file of the site, and has the URL of the beacon."""
    page = render("{% personalize_scripts %}")
    assert page == '<script src="/static/moe_personalize/personalize.js" data-beacon="/moe/beacon/" defer></script>'


class UnreachableStorage(StaticFilesStorage):
    def url(self, name):
        raise ConnectionError("https://key@cloud.example")


MANIFEST = {
    "STORAGES": {"staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"}},
    "STATIC_ROOT": "/no",
}
UNREACHABLE = {"STORAGES": {"staticfiles": {"BACKEND": f"{__name__}.UnreachableStorage"}}}
NOT_INSTALLED = {
    "INSTALLED_APPS": ["django_moe_personalize"],
    "MIDDLEWARE": ["django_moe_personalize.middleware.PersonalizeMiddleware"],
}
NO_URL = {"STATIC_URL": None}


@pytest.mark.parametrize(
    ("changes", "moe", "has_script", "problem"),
    [
        (MANIFEST, {}, True, "ValueError"),
        (UNREACHABLE, {}, True, "ConnectionError"),
        (NOT_INSTALLED, {}, True, ""),
        (NOT_INSTALLED | NO_URL, {}, False, "STATIC_URL is not set"),
        (NO_URL, {}, False, "ImproperlyConfigured"),
        (MANIFEST, {"ENABLED": False}, False, ""),
    ],
)
def test_script_without_a_static_file(render, caplog, changes, moe, has_script, problem):
    """The page works. The log says once what to do, and so does ``check --deploy`` if the site needs the script."""
    with override_settings(**changes), override_personalize(IMPRESSIONS="visible", **moe):
        page = render("{% personalize_scripts %}" * 2)
        messages = check_deployment()
    assert page.count('"/static/moe_personalize/personalize.js"') == 2 * has_script
    assert [message.id for message in messages] == ["moe_personalize.W017"] * bool(problem)
    assert all(problem in message.msg and "collectstatic" in message.hint for message in messages)
    assert len(caplog.messages) == bool(problem)
    assert problem in caplog.text
    assert "cloud" not in caplog.text


def test_script_that_a_site_does_not_need():
    """A site without static files that counts on the server has nothing to fix. Wrong settings have their own check."""
    with override_settings(**NO_URL, **NOT_INSTALLED):
        assert check_deployment() == []
    with override_settings(**NO_URL, MOE_PERSONALIZE={"DEADLINE": "soon"}):
        assert check_deployment() == []


@pytest.mark.urls("tests.site")
@pytest.mark.parametrize("name", ["_csp_nonce", "csp_nonce"])
def test_scripts_have_the_nonce(name):
    """Both Django's nonce (6.0 and later) and the one of django-csp are used."""
    request = RequestFactory().get("/")
    setattr(request, name, "n0nce")
    assert ' nonce="n0nce" ' in compile_template("{% personalize_scripts %}").render(Context({"request": request}))


def test_context_processor():
    """Templates get ``request.personalization``, or ``None`` without the middleware."""
    request = RequestFactory().get("/")
    assert personalization(request) == {"personalization": None}
    request.personalization = Personalization(request)
    assert personalization(request)["personalization"] is request.personalization

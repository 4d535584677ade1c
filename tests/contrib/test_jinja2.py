"""Jinja2 templates, in Django's backend and in django-jinja: the same content, marks and counts as Django's tags."""

from types import ModuleType

import jinja2
import pytest
from django.http import HttpResponse
from django.shortcuts import render as show
from django.template import engines
from django.template.response import TemplateResponse
from django.urls import include, path

from django_moe_personalize.checks.usages import find_usages
from django_moe_personalize.contrib.jinja2 import PersonalizeExtension
from django_moe_personalize.planning import find_template_keys
from django_moe_personalize.schemas import ExperienceSchema, declaration
from django_moe_personalize.templatetags.moe_personalize import register
from tests.rendering.conftest import shown  # noqa: F401 - a fixture

EXTENSION = "django_moe_personalize.contrib.jinja2.PersonalizeExtension"
END = "{% endexperience %}"
END_ISLAND = "{% endexperience_island %}"
STATE = '<script id="moe-state" type="application/json">{"experiences": '
TEMPLATES = {
    "base.jinja": "{% experience 'hero' as h %}[{{ h.Title }}]{% endexperience %}{% block main %}{% endblock %}",
    "piece.jinja": "{{ experience_value('offers', 'Title') }}",
    "cards.jinja": "{% macro card() %}{% experience 'hero' as h %}<{{ h.Title }}>{% endexperience %}{% endmacro %}",
}
BACKENDS = {
    "django": ("django.template.backends.jinja2.Jinja2", {}),
    "django-async": ("django.template.backends.jinja2.Jinja2", {"enable_async": True}),
    "django-jinja": ("django_jinja.jinja2.Jinja2", {"match_extension": ".jinja"}),
}


async def arender(request):
    """Render a template with enable_async in the event loop."""
    template = engines["j"].get_template(request.path[1:-1]).template
    return HttpResponse(await template.render_async(request=request))


VIEWS = {
    "view": lambda request: show(request, request.path[1:-1]),
    "response": lambda request: TemplateResponse(request, request.path[1:-1]),
    "async": arender,
}


@pytest.fixture(params=[(b, v) for b in BACKENDS for v in VIEWS if v != "async" or "async" in b], ids="-".join)
def visit_pages(request, shown, visit, settings):  # noqa: F811 - the fixture
    """Return a function that serves each template on a route of its own, and returns the responses."""
    (backend, options), view = BACKENDS[request.param[0]], VIEWS[request.param[1]]

    def visit_pages(*sources):
        pages = {f"{number}.jinja": source for number, source in enumerate(sources)}
        options["loader"] = jinja2.DictLoader(TEMPLATES | pages)
        options["extensions"] = [EXTENSION, "jinja2.ext.i18n"]
        settings.TEMPLATES = [{"BACKEND": backend, "NAME": "j", "OPTIONS": {**options}}]
        settings.ROOT_URLCONF = urls = ModuleType("urls_of_one_test")
        urls.urlpatterns = [path(f"{name}/", view, name=name) for name in pages]
        urls.urlpatterns.append(path("moe/", include("django_moe_personalize.urls")))
        return [visit(f"/{name}/") for name in pages]

    return visit_pages


PAGES = [
    ("{% experience 'hero' as h %}{{ h.Title }}{% fallback %}x{% endexperience %}", "Hello"),
    ("{% experience 'hero' %}{{ experience.Title }}{% endexperience %}", "Hello"),
    ("{% experience 'nope' %}x{% fallback %}default{% endexperience %}", "default"),
    ("{% experience 7 %}x{% endexperience %}!", "!"),
    ("{% set h = 1 %}{% experience 'hero' as h %}{% endexperience %}{{ h }}", "1"),
    (
        "{% for k in ['hero', 'nope'] %}{% experience k %}a{{ loop.index }}{% fallback %}b" + END + "{% endfor %}",
        "a1b",
    ),
    ("{% experience 'hero' as h %}{{ h.Body }}{% endexperience %}", "&lt;b&gt;bold"),
    ("{% experience 'hero' as h %}{{ h.Body|experience_html }}{% endexperience %}", "<b>bold</b>"),
    ("{% experience 'hero' as h %}{{ h.Evil|experience_url }}{% endexperience %}", "#"),
    ("{% set u %}/?a=1&amp;b=2{% endset %}{{ u|experience_url }}", "/?a=1&amp;b=2"),
    ("{{ experience_value('hero', 'Zero', default='x') }}", "0"),
    ("{{ experience_value('hero', 'Nope', default='<x>') }}", "&lt;x&gt;"),
    ("{{ experience_value('nope', 'Title') }}!", "!"),
    ("{% set t = experience_value('hero', 'Title') %}{{ t|upper }}", "HELLO"),
    ("{% extends 'base.jinja' %}{% block main %}{% include 'piece.jinja' %}{% endblock %}", "[Hello]For you"),
    ("{% import 'cards.jinja' as cards with context %}{{ cards.card() }}", "<Hello>"),
    ("{% filter upper %}{% experience 'hero' as h %}{{ h.Title }}{% endexperience %}{% endfilter %}", "HELLO"),
    ("{{ click_url(none, 'https://other.example/?a=1&b=2') }}", "https://other.example/?a=1&amp;b=2"),
    ("{{ click_url(none, 'https://other.example/' ~ '') }}", "#"),
    ("{% experience_island 'hero' class='wide' %}Welcome" + END_ISLAND, '<div class="wide" data-moe-island="'),
    ("{% experience_island '../hero' %}{{ 1 + 1 }}" + END_ISLAND, "2"),
    ("{% set k = '../k' %}{% experience_island k template='a' %}" + END_ISLAND, '<div class="" data-moe-island="'),
    ("{% experience 'hero' %}" + END + "{{ personalize_state() }}", STATE + '{"hero": {"experience_key": "hero", '),
    ("{{ personalize_state('nope', 'offers') }}", STATE + '{"nope": null, "offers": {"experience_key": "offers", '),
    ("{{ personalize_state() }}", STATE + '{}, "beacon": "/moe/beacon/"}</script>'),
]


def test_pages(visit_pages):
    """The extension mirrors the tag library in sync and async templates and views."""
    responses = visit_pages(*(source for source, _ in PAGES))
    for (source, expected), response in zip(PAGES, responses, strict=True):
        assert (source, response.content.decode()[: len(expected)]) == (source, expected)


def test_counts_once(visit_pages, shown):  # noqa: F811 - the fixture
    """The page counts once, is private, and its link counts a click."""
    source = (
        "{% extends 'base.jinja' %}{% block main %}{% include 'piece.jinja' %}"
        "{% import 'cards.jinja' as c with context %}{{ c.card() }}{% experience 'hero' as h %}"
        "<a href=\"{{ click_url(h, '/sale/', element='cta') }}\">"
        '<button data-moe-click="b"></button></a>{% endexperience %}'
        "{{ personalize_identity() }}{{ personalize_scripts() }}{% endblock %}"
    )
    (response,) = visit_pages(source)
    text = response.content.decode()
    assert shown.impressions == {"hero": 1, "offers": 1}
    assert response["Cache-Control"] == "private, no-store"
    assert 'href="/moe/click/' in text
    assert "data-beacon" in text
    assert 'identity.js" data-key="moe_identity" data-id=""' in text


def test_schema(visit_pages, monkeypatch):
    """If a key has a schema, the template shows the defaults of the schema for wrong variables."""
    monkeypatch.setattr(declaration, "_schemas", [])

    class Hero(ExperienceSchema):
        key = "hero"
        Title: int = 7
        Missing: str = "default"

    source = "{% experience 'hero' as h %}{{ h.Title }} {{ h.Missing }}{% endexperience %}"
    source += "{{ experience_value('hero', 'Missing') }}{{ experience_value('nope', 'Title') }}"
    assert visit_pages(source)[0].content.decode() == "7 defaultdefault"


def test_usages(tmp_path, settings, monkeypatch):
    """The literal keys of all readable templates are usages, with file and line."""
    monkeypatch.chdir(tmp_path)
    tag = "\n{% experience 'in-tag' %}{{ experience_value('value', 'T') }}{{ personalize_state('s') }}" + END
    (tmp_path / "page.html").write_text(
        tag + "\n{% if x %}{{ experience_value(key, 'T') }}{% endif %}{% experience 7 %}" + END
    )
    (tmp_path / "island.html").write_text("{% experience_island 'island' %}" + END_ISLAND)
    (tmp_path / "broken.html").write_text("{% experience 'broken' %}")
    (tmp_path / "nothing.html").write_text("{{ 1 }}")
    (tmp_path / "plain.html").write_text("{% experience_of_others %}")
    (tmp_path / "picture.png").write_bytes(b"\xffexperience")
    django = {"BACKEND": "django.template.backends.django.DjangoTemplates"}
    jinja = {"BACKEND": BACKENDS["django"][0], "DIRS": [tmp_path], "NAME": "j"}
    listing = {"extensions": [EXTENSION], "loader": jinja2.FunctionLoader(lambda name: None)}
    found = [{**jinja, "OPTIONS": {"extensions": [EXTENSION]}}, {**jinja, "NAME": "k"}]
    settings.TEMPLATES = [django, *found, {**jinja, "DIRS": [], "NAME": "l", "OPTIONS": listing}]
    usages = [(usage.experience_key, usage.place) for usage in find_usages() if usage.kind == "template"]
    found = [("in-tag", "page.html:2"), ("island", "island.html:1"), ("s", "page.html:2"), ("value", "page.html:2")]
    assert usages == found


KEYED = {
    "keyed.jinja": "{% macro keyed(key, other='no-key', last='in-default') %}{% experience key %}{% endexperience %}"
    "{{ experience_value(last, 'T') }}{% endmacro %}{{ keyed('in-macro', 'no-key') }}",
    "imports.jinja": "{% import 'keyed.jinja' as m %}{% from 'keyed.jinja' import keyed as k, nothing %}\n"
    "{{ m.keyed('in-import') }}{% call k(key='in-from') %}{% endcall %}{{ m.other('no-key') }}{{ m.keyed(x) }}",
    "set.jinja": "{% set k = 'in-set' %}{% with w = 'in-with', v = 'no-key' %}{% experience w %}{% endexperience %}"
    "{% endwith %}{{ experience_value(k, 'T') }}{% for f in ['in-for', x] %}{% experience f %}{% endexperience %}"
    "{% endfor %}{% for g in x %}{% experience g %}{% endexperience %}{% endfor %}{% set x, y = 'no-key', 'no-key' %}",
    "broken.jinja": "{%- experience 'no-key' %}",
    "unrelated.jinja": "{% if %}",
}


def test_keys_with_a_name(settings, caplog):
    """A variable or a macro's argument counts where its text is written. A broken template is logged."""
    options = {"extensions": [EXTENSION], "loader": jinja2.DictLoader(KEYED)}
    settings.TEMPLATES = [{"BACKEND": BACKENDS["django"][0], "OPTIONS": options}]
    usages = {(usage.experience_key, usage.place) for usage in find_usages() if usage.kind == "template"}
    lines = {"macro": "keyed", "default": "keyed", "import": "imports", "from": "imports", "set": "set"}
    lines |= {"with": "set", "for": "set"}
    places = {f"in-{end}": f"{name}.jinja:{2 if name == 'imports' else 1}" for end, name in lines.items()}
    assert usages == {*places.items()}
    assert "'broken.jinja' can't be read, so its experience keys are not known: line 1: Unexpected" in caplog.text
    assert "unrelated" not in caplog.text


def test_keys_of_a_template():
    """Keys are found in compiled templates, also from strings. Missing and broken templates are skipped."""
    loader = jinja2.DictLoader(TEMPLATES | {"broken.jinja": "{% if %}"})
    environment = jinja2.Environment(loader=loader, extensions=[PersonalizeExtension], autoescape=True)
    names = "{% include ['nope.jinja', 'broken.jinja', 'piece.jinja'] %}{% import 'cards.jinja' as c %}{% include x %}"
    names += "{{ personalize_state('state') }}{% experience_island 'island' %}" + END_ISLAND
    template = environment.from_string(names + "{{ experience_value('strip', 'Text') }}{% experience key %}" + END)
    assert find_template_keys(template) == ("state", "strip", "offers", "hero")


def test_extension_mirrors_the_tag_library():
    """Each tag and filter of Django's templates is there. A block tag is a tag, and any other tag is a function."""
    environment = jinja2.Environment(extensions=[PersonalizeExtension], autoescape=True)
    names = environment.globals.keys() | PersonalizeExtension.tags | {"fallback"}
    assert register.tags.keys() <= names
    assert register.filters.keys() <= environment.filters.keys()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% cache %}{% experience 'a' %}" + END + "{% endcache %}", "inside {% cache %}"),
        ("{% experience 'a' %}{% fallback %}{% fallback %}" + END, "unknown tag 'fallback'"),
        ("{% experience 'a' %}", "Unexpected end of template"),
    ],
)
def test_mistakes(source, message):
    """A mistake is an error when Jinja2 compiles the template."""

    class Cache(jinja2.ext.Extension):
        tags = {"cache"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endcache",), drop_needle=True)

    environment = jinja2.Environment(extensions=[PersonalizeExtension, Cache], autoescape=True)
    with pytest.raises(jinja2.TemplateSyntaxError, match=message):
        environment.from_string(source)


def test_without_a_request_or_autoescape(shown):  # noqa: F811 - the fixture
    """Without a request the fallback is shown. Without autoescape the global escapes by itself."""
    environment = jinja2.Environment(extensions=[PersonalizeExtension], autoescape=False)  # noqa: S701 - the case of this test
    source = "{% experience 'hero' %}x{% fallback %}y{% endexperience %}{{ experience_value('hero', 'T', '<') }}"
    source += "{{ click_url(none, '/a/') }}{{ personalize_state('hero') }}{{ personalize_identity() }}"
    state = STATE + '{"hero": null}, "beacon": "/moe/beacon/"}</script>'
    assert environment.from_string(source).render() == "y&lt;/a/" + state

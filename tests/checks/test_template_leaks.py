"""``{% cache %}`` around one visitor's content: the check finds it in any template, and survives foreign nodes."""

import re

import django
import pytest
from django.core.checks import run_checks
from django.template import Library, Node, NodeList, engines
from django.template.loader import get_template
from django.template.loaders.base import Loader
from django.templatetags.cache import CacheNode

from django_moe_personalize.checks.template_leaks import get_engines

register = Library()

FILES = {
    "hero.html": "{% load moe_personalize %}<b>\n{% experience 'hero' as hero %}{{ hero.Title }}{% endexperience %}",
    "deeper.html": "{% include 'hero.html' %}",
    "plain.html": "{% if request.user.is_staff %}hero and personalization{% endif %}",
    "again.html": "{% include 'again.html' %}",
    "card.html": "{% load cache %}{% cache 60 card %}<i>{{ hero.Title }}</i>{% endcache %}",
    "base.html": "{% load cache %}{% cache 60 side %}\n{% block side %}{% endblock %}{% endcache %}",
    "middle.html": "{% extends 'base.html' %}",
    "offer.html": "{% load moe_personalize %}{% block offer %}{% experience 'hero' %}{% endexperience %}{% endblock %}",
    "special.html": "{% extends 'offer.html' %}{% block offer %}<b>{{ block.super }}</b>{% endblock %}",
    "loop.html": "{% extends 'loop2.html' %}",
    "loop2.html": "{% extends 'loop.html' %}{% load cache %}{% cache 60 x %}{% endcache %}",
    "broken.html": "{% load cache %}{% cache 60 x %}{% nonsense %}",
    "failing.html": "{% load leaks %}{% fail %}",
    "a.html": "{% load cache %}{% cache 60 a %}{{ a }}{% endcache %}",
    "which.html": "{% include which %}",
    "layout.html": "{% extends layout %}",
}
PAGE = "{% load cache moe_personalize leaks %}\n"
EXPERIENCE = "{% experience 'hero' as hero %}"


class BrokenLoader(Loader):
    """A third-party loader that fails, and has odd attributes."""

    loaders = None

    def get_template_sources(self, template_name):
        return []

    def get_dirs(self):
        raise ValueError("no folders")


@register.inclusion_tag("hero.html")
def show_hero():
    return {}


register.inclusion_tag(["nowhere.html", "hero.html"], name="show_one_of")(show_hero)
register.inclusion_tag(engines["django"].from_string(FILES["hero.html"]), name="show_compiled")(show_hero)
register.inclusion_tag(7, name="show_number")(show_hero)


@register.inclusion_tag("plain.html", takes_context=True)
def show_value(context):
    return {"x": context["request"].personalization["hero"]}


@register.simple_tag(takes_context=True)
def draw(context):
    return get_template("hero.html").render({}, context["request"])


@register.simple_tag
def draw_for(request):
    return draw(request)


@register.simple_tag
def draw_alone():
    return get_template("hero.html").render({})


@register.simple_tag(takes_context=True)
def count(context):
    return len(context["request"].path)


register.simple_tag(draw, takes_context=True, name="cached_draw")
register.inclusion_tag("hero.html", name="cached_hero")(show_hero)
register.filter("draw_for", draw_for)
register.filter("lower_for", lambda value: len(value))


@register.tag
def fail(parser, token):
    raise RuntimeError


class Foreign(Node):
    """A third-party tag with odd attributes, such as ``extra_context=None``."""

    def __init__(self, nodelist, attributes):
        self.nodelist = nodelist
        self.__dict__.update(attributes)


class Raising(Foreign):
    child_nodelists = property(lambda self: 1 / 0)

    def __getattr__(self, name):
        raise RuntimeError(name)

    def render(self, context):
        return self.thing(context)


class Endless(Raising):
    """A tag that has any attribute, but no place in a template."""

    token = property(lambda self: 1 / 0, lambda self, value: None)

    def __getattr__(self, name):
        return self


class RaisingList(NodeList):
    def __iter__(self):
        raise RuntimeError


class PartialNode(Foreign):
    partial_mapping = None


class KeepNode(CacheNode):
    """A site's own cache."""


@register.tag
def keep(parser, token):
    nodelist = parser.parse(("endkeep",))
    parser.delete_first_token()
    return KeepNode(nodelist, parser.compile_filter("60"), "x", [], None)


ODD_ATTRIBUTES = {
    "none": (Foreign, {"extra_context": None, "loopvars": None}),
    "strings": (Foreign, {"extra_context": {"a": "text"}, "loopvars": 7}),
    "parts": (Foreign, {"child_nodelists": None}),
    "conditions": (Foreign, {"conditions_nodelists": [7]}),
    "list": (Foreign, {"other": RaisingList()}),
    "raising": (Raising, {}),
    "endless": (Endless, {}),
    "partial": (PartialNode, {}),
}


@register.tag
def foreign(parser, token):
    nodelist = parser.parse(("endforeign",))
    parser.delete_first_token()
    kind, attributes = ODD_ATTRIBUTES[token.split_contents()[1]]
    return kind(nodelist, attributes)


@pytest.fixture
def find(settings, tmp_path):
    """Return a function that writes a page, ``[…]`` for ``{% cache %}``, and returns the (message, hint) pairs."""

    def find(source, *, options=None, number="E014"):
        page = source.replace("[", "{% cache 60 page %}").replace("]", "{% endcache %}")
        for name, text in {**FILES, "page.html": page}.items():
            (tmp_path / name).write_text(text)
        library = {"libraries": {"leaks": __name__}}
        settings.TEMPLATES = [settings.TEMPLATES[0] | {"DIRS": [tmp_path], "OPTIONS": library | (options or {})}]
        found = [m for m in run_checks(tags=["moe_personalize"]) if m.id == f"moe_personalize.{number}"]
        return [(m.msg.replace(f"{tmp_path}/", ""), m.hint.replace(f"{tmp_path}/", "")) for m in found]

    return find


CARD = "{{ hero.Title }} in card.html, line 1"
HERO = "{% experience 'hero' as hero %} in hero.html, line 2"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("[{% include 'hero.html' %}]", HERO),
        ("[{% if x %}{% include 'deeper.html' %}{% endif %}]", HERO),
        ("[{% show_hero %}]", HERO),
        (
            "{% load i18n %}[{% blocktranslate %}{{ view.request.personalization.hero }}{% endblocktranslate %}]",
            "{% blocktranslate %}",
        ),
        (EXPERIENCE + "{% if x %}{% firstof hero.Title 'x' as a %}{% endif %}[{{ a }}]{% endexperience %}", "{{ a }}"),
        (
            EXPERIENCE + "{% regroup hero.offerings by k as a %}{% include 'a.html' %}{% endexperience %}",
            "{{ a }} in a.html, line 1",
        ),
        ("{% include 'card.html' %}" + EXPERIENCE + "{% include 'card.html' %}{% endexperience %}", CARD),
        ("[{% show_one_of %}]", HERO),
        ("[{% with a='hero.html' %}{% include a %}{% endwith %}]", HERO),
        ("[{% include 'which.html' with which='hero.html' %}]", HERO),
        ("[{% show_compiled %}]", "{% experience 'hero' as hero %} in <unknown source>, line 2"),
        ("[{{ personalization.hero.Title }}]", "{{ personalization.hero.Title }}"),
        ("[{% if 1 %}{% elif request.personalization.hero %}{% endif %}]", "{% if 1 %}"),
        (EXPERIENCE + "[{{ hero.Title }}]{% endexperience %}", "{{ hero.Title }}"),
        (EXPERIENCE + "{% include 'card.html' %}{% endexperience %}", "{{ hero.Title }} in card.html, line 1"),
        (EXPERIENCE + "{% for o in hero.offerings %}[{{ o.title }}]{% endfor %}{% endexperience %}", "{{ o.title }}"),
        (EXPERIENCE + "{% with a=hero.Title b=x %}[{{ a }}{{ b }}]{% endwith %}{% endexperience %}", "{{ a }}"),
        ("{% experience_value 'hero' 'Title' as title %}[{{ title|upper }}]", "{{ title|upper }}"),
        (
            "{% with r=view.request q=x %}[{{ q.personalization }}{{ r.personalization }}]{% endwith %}",
            "{{ r.personalization }}",
        ),
        ("{% cycle personalization.hero 'x' as a silent %}[{{ a }}]", "{{ a }}"),
    ],
)
def test_content_of_one_visitor_is_found(find, source, found):
    """A tag or a variable inside {% cache %} is an error that names both places and the fix."""
    place = {"{{ h": "card", "{{ a": "a"}.get(found[:4] * found.endswith("line 1"))
    place = f"{place}.html, line 1" if place else "page.html, line 2"
    found = found if " in " in found else f"{found} in page.html, line 2"
    message = f"{{% cache %}} shows one visitor's content to all visitors: {found}."
    hint = f"The {{% cache %}} starts in {place}. Keep the visitor's content out of it."
    assert find(PAGE + source) == [(message, hint)]


@pytest.mark.parametrize("parent", ["offer.html", "special.html"])
@pytest.mark.parametrize("name", ["offer", "other"])
def test_block_of_a_parent_in_the_fragment_of_a_child(find, parent, name):
    """The content of the parent that a child's {% cache %} stores is found, with both places."""
    source = (
        f"{{% extends '{parent}' %}}{{% load cache %}}\n{{% block {name} %}}[{{{{ block.super }}}}]{{% endblock %}}"
    )
    found = find(source)
    assert len(found) == (name == "offer")
    assert all("in offer.html, line 1" in message and "in page.html, line 2" in hint for message, hint in found)
    assert find(source.replace("[{{ block.super }}]", "[]{{ block.super }}")) == []


@pytest.mark.parametrize("parent", ["base.html", "middle.html"])
@pytest.mark.parametrize("body", ["{% experience 'hero' %}{% endexperience %}", "{% click_url x '/' %}"])
def test_block_in_the_fragment_of_a_parent(find, parent, body):
    """The content that a child puts into a parent's {% cache %} is found, with both places."""
    source = f"{{% extends '{parent}' %}}{{% load moe_personalize %}}\n{{% block side %}}{body}{{% endblock %}}"
    [(message, hint)] = find(source)
    assert "in page.html, line 2" in message
    assert "in base.html, line 1" in hint


@pytest.mark.parametrize(
    "source",
    [
        "[{% include 'plain.html' %}]{% include 'hero.html' %}",
        EXPERIENCE + "[hero]{{ hero.Title }}[{{ other.hero }}]{% endexperience %}",
        EXPERIENCE + "{% cache 60 x hero.Title %}{{ hero.Title }}{% endcache %}{% endexperience %}[{{ hero }}]",
        EXPERIENCE + "{% with hero='x' %}[{% trans 'the hero' %}]{% endwith %}{% endexperience %}",
        "[{% include 'nowhere.html' %}{% include 'again.html' %}{% include 'broken.html' %}]",
        "[{% count %}{% draw_alone %}{{ request|lower_for }}{{ x|draw_for }}{% block x %}{% endblock %}]",
        "{% include which %}{% draw %}{{ slot }}{% cached_hero %}[x]",
        "{% nocache %}{% draw %}{% endnocache %}[x]",
        "{% include 'hero.html' %}",
        "{% extends 'loop.html' %}",
        "{% extends name %}[x]",
        # It doesn't compile: the tag itself refuses to stand here.
        "[{% experience 'hero' %}{% endexperience %}]",
    ],
)
def test_content_for_all_visitors_is_right(find, source):
    """Other {% cache %} tags, and templates that don't compile, give no message."""
    load = "" if "extends" in source else PAGE + "{% load i18n %}"
    assert find(load + source) == []
    assert find(load + source, number="W012") == []


@pytest.mark.parametrize(
    "source",
    [
        "{% include which %}",
        "{% include 'hero'|add:'.html' %}",
        "{% with which='plain.html' %}{% with which=x %}|{% include which %}{% endwith %}{% endwith %}",
        "{% include 'failing.html' %}",
        "{% show_number %}",
        "{% show_value %}",
        "{% draw %}",
        "{% draw_for request %}",
        "{{ request|draw_for }}",
        "{{ slot|safe }}",
        "{% foreign raising %}{% endforeign %}",
        "{% foreign list %}{% endforeign %}",
        "{% foreign endless %}{% endforeign %}",
        "{% foreign partial %}{% endforeign %}",
    ],
)
def test_gap_is_a_warning(find, source):
    """A tag that may render any template is one warning for each {% cache %}, with its template and line."""
    found = re.search(r"({%|{{)(?! with| end)[^{]*(%}|}})", source)[0]
    place = "page.html, line 3"
    if "endless" in source:
        found, place = "a Endless", "an unknown place"
    message = "{% cache %} may show one visitor's content to all visitors. The check can't look into " + found
    hint = "The {% cache %} starts in page.html, line 2. Keep the visitor's content out of it."
    hint += " If it contains no such content, silence this warning."
    assert find(f"{PAGE}[\n{source}]", number="W012") == [(f"{message} in {place}.", hint)]
    [(message, _)] = find(f"{PAGE}[\n{source}{{{{ children }}}}{source}]", number="W012")
    assert message.endswith(f"{found} in {place}, and 1 more.")


@pytest.mark.parametrize(
    ("source", "cache"),
    [
        ("{% keep %}{% include which %}{% endkeep %}", "keep"),
        ("{% cached_draw %}", "cached_draw"),
        ("{% extends layout %}{% load moe_personalize %}{% block side %}{% click_url x '/' %}{% endblock %}", "cache"),
        ("{% extends layout %}{% block side %}{% include which %}{% endblock %}", "cache"),
        ("[{% include 'layout.html' %}]", "cache"),
    ],
)
def test_gap_in_another_tag(find, source, cache):
    """A tag that caches may have any name, render itself, or come from the parent that a variable names."""
    load = "" if source.startswith("{% extends") else PAGE
    [(message, _)] = find(load + source, number="W012")
    assert message.startswith(f"{{% {cache} %}} may show")
    assert find(load + source) == []


@pytest.mark.parametrize("cache", ["keep", "nocache"])
def test_name_of_the_tag(find, cache):
    """The error names the tag that caches. The tags that cache nothing give no message."""
    found = find(f"{PAGE}{{% {cache} %}}{{{{ personalization.hero }}}}{{% end{cache} %}}[x]")
    assert [message.partition(" shows")[0] for message, _ in found] == ["{% keep %}"] * (cache == "keep")


@pytest.mark.parametrize("kind", ODD_ATTRIBUTES)
def test_foreign_node(find, kind):
    """A third-party node never makes the check fail, and hides no leak inside or elsewhere."""
    foreign = f"{{% foreign {kind} %}}{{% include 'hero.html' %}}{{% endforeign %}}"
    found = find(f"{PAGE}[{foreign}{{{{ personalization.hero }}}}]{foreign}")
    expected = [HERO, "{{ personalization.hero }} in page.html, line 2"]
    assert [message.partition("visitors: ")[2] for message, _ in found] == [f"{place}." for place in expected]


@register.tag
def nocache(parser, token):
    nodelist = parser.parse(("endnocache",))
    parser.delete_first_token()
    return Foreign(nodelist, {})


def test_foreign_loader(find, settings, tmp_path):
    """The check skips a loader that fails, and reports no loader that can't be imported: Django does."""
    files = ("django.template.loaders.filesystem.Loader", [tmp_path])
    settings.TEMPLATES = [settings.TEMPLATES[0] | {"APP_DIRS": False}]
    for loader, number in ((f"{__name__}.BrokenLoader", 1), ("no.such.Loader", 0)):
        found = find(PAGE + "[{% include 'hero.html' %}]", options={"loaders": [loader, files]})
        assert len(found) == number


def test_partial_in_a_fragment(find):
    """A partial of Django 6.0 is followed."""
    partial = "{% partialdef hero %}{% include 'hero.html' %}{% endpartialdef %}[{% partial hero %}]"
    assert len(find(PAGE + partial)) == (django.VERSION >= (6, 0))


def test_first_folder_wins(find, settings, tmp_path, tmp_path_factory):
    """Of two templates with one name, the first folder's counts. A file that isn't text is skipped."""
    other = tmp_path_factory.mktemp("other")
    (other / "hero.html").write_text("plain")
    (other / "deeper.html").write_text(PAGE + "{% cache 60 x %}{{ personalization.hero }}{% endcache %}")
    (other / "image.html").write_bytes(b"\xff{% cache")
    loaders = [("django.template.loaders.filesystem.Loader", [other, tmp_path])]
    settings.TEMPLATES = [settings.TEMPLATES[0] | {"APP_DIRS": False}]
    [(message, _)] = find(PAGE + "[{% include 'hero.html' %}]", options={"loaders": loaders})
    assert f"{other}/deeper.html" in message


def test_site_without_fragments_compiles_nothing(find, monkeypatch):
    """Without {% cache %} the check only reads the files."""
    monkeypatch.setattr("django.template.Engine.get_template", lambda *args: pytest.fail("compiled"))
    for name in [name for name, text in FILES.items() if "cache" in text]:
        monkeypatch.setitem(FILES, name, "")
    assert find("{% include 'hero.html' %}{% extends 'base.html' %}") == []


@pytest.mark.parametrize("name", ["nonsense.None", "dummy.TemplateStrings"])
def test_other_engines(settings, name):
    """Django reports TEMPLATES that don't load. Another language has no {% cache %} of Django's."""
    settings.TEMPLATES = [{"BACKEND": f"django.template.backends.{name}", "DIRS": [], "APP_DIRS": False}]
    assert get_engines() == []

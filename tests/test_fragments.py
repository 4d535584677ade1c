"""``{% cache %}`` around one visitor's content, which the check finds wherever it comes from."""

import django
import pytest
from django.core.checks import run_checks
from django.template import Engine, Library
from django.template.backends.dummy import TemplateStrings

register = Library()

FILES = {
    "hero.html": "{% load moe_personalize %}<b>\n{% experience 'hero' as hero %}{{ hero.Title }}{% endexperience %}",
    "deeper.html": "{% include 'hero.html' %}",
    "plain.html": "{% if request.user.is_staff %}hero and personalization{% endif %}",
    "again.html": "{% include 'again.html' %}",
    "card.html": "{% load cache %}{% cache 60 card %}<i>{{ hero.Title }}</i>{% endcache %}",
    "base.html": "{% load cache %}{% cache 60 side %}\n{% block side %}{% endblock %}{% endcache %}",
    "middle.html": "{% extends 'base.html' %}",
    "loop.html": "{% extends 'loop2.html' %}",
    "loop2.html": "{% extends 'loop.html' %}{% load cache %}{% cache 60 x %}{% endcache %}",
    "broken.html": "{% load cache %}{% cache 60 x %}{% nonsense %}",
}
EXPERIENCE = "{% experience 'hero' as hero %}"


class OtherTemplates(TemplateStrings):
    """Templates of another language."""

    def __init__(self, params):
        super().__init__(params | {"OPTIONS": {}})


@register.inclusion_tag("hero.html")
def show_hero():
    """Show the hero."""
    return {}


@register.inclusion_tag(["hero.html"])
def show_one_of():
    """Show what nobody can follow."""
    return {}


@pytest.fixture
def find(settings, tmp_path):
    """Return a function that writes a page, ``[...]`` for a fragment, and gives what the check says."""

    def find(source, *, options=None, **more):
        files = FILES | {f"{name}.html": text for name, text in more.items()}
        files["page.html"] = source.replace("[", "{% cache 60 page %}").replace("]", "{% endcache %}")
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        library = {"libraries": {"fragments": "tests.test_fragments"}}
        settings.TEMPLATES = [settings.TEMPLATES[0] | {"DIRS": [tmp_path], "OPTIONS": library | (options or {})}]
        found = [m for m in run_checks(tags=[settings.TAG]) if m.id == "moe_personalize.E014"]
        return [(m.msg.replace(f"{tmp_path}/", ""), m.hint.replace(f"{tmp_path}/", "")) for m in found]

    return find


PAGE = "{% load cache moe_personalize fragments %}\n"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("[{% include 'hero.html' %}]", "{% experience 'hero' as hero %} in hero.html, line 2"),
        ("[{% if x %}{% include 'deeper.html' %}{% endif %}]", "{% experience 'hero' as hero %} in hero.html, line 2"),
        ("[{% show_hero %}]", "{% experience 'hero' as hero %} in hero.html, line 2"),
        ("[{{ personalization.hero.Title }}]", "{{ personalization.hero.Title }} in page.html, line 2"),
        (
            "[{% if 1 %}{% elif request.personalization.hero %}{% endif %}]",
            "{% if 1 %} in page.html, line 2",
        ),
        (EXPERIENCE + "[{{ hero.Title }}]{% endexperience %}", "{{ hero.Title }} in page.html, line 2"),
        (EXPERIENCE + "{% include 'card.html' %}{% endexperience %}", "{{ hero.Title }} in card.html, line 1"),
        (
            EXPERIENCE + "{% for o in hero.offerings %}[{{ o.title }}]{% endfor %}{% endexperience %}",
            "{{ o.title }} in page.html, line 2",
        ),
        (
            EXPERIENCE + "{% with a=hero.Title b=x %}[{{ a }}{{ b }}]{% endwith %}{% endexperience %}",
            "{{ a }} in page.html, line 2",
        ),
        (
            "{% experience_value 'hero' 'Title' as title %}[{{ title|upper }}]",
            "{{ title|upper }} in page.html, line 2",
        ),
    ],
)
def test_content_of_one_visitor_is_found(find, source, found):
    """A tag or a variable inside a fragment is an error that names both places and the mend."""
    messages = find(PAGE + source)
    place = "card.html, line 1" if "card" in source else "page.html, line 2"
    assert messages == [
        (
            f"{{% cache %}} keeps one visitor's content for everybody: {found}.",
            f"It begins in {place}. Put it around what is the same for all, inside or beside.",
        )
    ]


@pytest.mark.parametrize("parent", ["base.html", "middle.html"])
@pytest.mark.parametrize("body", ["{% experience 'hero' %}{% endexperience %}", "{% click_url x '/' %}"])
def test_block_in_the_fragment_of_a_parent(find, parent, body):
    """A block that a child fills is found where the child fills it, and where the fragment begins."""
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
        "[{% include name %}{% include 'nowhere.html' %}{% include 'again.html' %}{% include 'broken.html' %}]",
        "[{% show_one_of %}{% block x %}{% endblock %}]",
        "{% include 'hero.html' %}",
        "{% extends 'loop.html' %}",
        "{% extends name %}[x]",
        "[{% experience 'hero' %}{% endexperience %}]",
    ],
)
def test_what_is_the_same_for_all_passes(find, source):
    """Fragments without content of one visitor, and templates that do not compile, are left alone."""
    load = "" if "extends" in source else PAGE + "{% load i18n %}"
    assert find(load + source) == []


def test_partial_in_a_fragment(find):
    """What a partial of Django 6.0 brings into a fragment is found; before, there are none."""
    partial = "{% partialdef hero %}{% include 'hero.html' %}{% endpartialdef %}[{% partial hero %}]"
    assert len(find(PAGE + partial)) == (django.VERSION >= (6, 0))


def test_name_that_an_earlier_folder_has(find, settings, tmp_path, tmp_path_factory):
    """Of two templates of one name the first counts; the loaders may be given one by one."""
    other = tmp_path_factory.mktemp("other")
    (other / "hero.html").write_text("plain")
    (other / "deeper.html").write_text(PAGE + "{% cache 60 x %}{{ personalization.hero }}{% endcache %}")
    (other / "image.html").write_bytes(b"\xff{% cache")
    loaders = [("django.template.loaders.filesystem.Loader", [other, tmp_path])]
    settings.TEMPLATES = [settings.TEMPLATES[0] | {"APP_DIRS": False}]
    [(message, _)] = find(PAGE + "[{% include 'hero.html' %}]", options={"loaders": loaders})
    assert f"{other}/deeper.html" in message


def test_without_fragments_nothing_is_compiled(find, monkeypatch):
    """A site that never uses {% cache %} pays for reading its files alone."""
    monkeypatch.setattr("django.template.Engine.get_template", lambda *args: pytest.fail("compiled"))
    for name in [name for name, text in FILES.items() if "cache" in text]:
        monkeypatch.setitem(FILES, name, "")
    assert find("{% include 'hero.html' %}{% extends 'base.html' %}") == []


def test_who_cannot_fill_a_fragment_is_not_compiled(find, monkeypatch):
    """Templates that extend another are compiled only where a block stands in a fragment."""
    for name in ("base.html", "loop.html", "loop2.html"):
        monkeypatch.setitem(FILES, name, "{% block side %}{% endblock %}")
    compiled = []
    load = Engine.get_template
    monkeypatch.setattr(Engine, "get_template", lambda self, name: compiled.append(name) or load(self, name))
    assert len(find(PAGE + "[{% include 'hero.html' %}]")) == 1
    assert "middle.html" not in compiled


def test_engines_that_cannot_be_made(find, settings):
    """Django reports what is wrong with TEMPLATES itself; other languages have no {% cache %} of Django's."""
    settings.TEMPLATES = [{"BACKEND": "django.template.backends.nonsense.None"}]
    assert settings.check_fragments() == []
    settings.TEMPLATES = [{"BACKEND": "tests.test_fragments.OtherTemplates", "DIRS": [], "APP_DIRS": False}]
    assert settings.check_fragments() == []

"""Where a site uses experience keys: templates, code, views, settings, schemas, and finders of other libraries."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

from django.apps import apps
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path

from django_moe_personalize.checks import finders, python_code, usages
from django_moe_personalize.checks.usages import Usage, find_usages, register_finder
from django_moe_personalize.decorators import personalize
from django_moe_personalize.testing import override_personalize
from tests.schemas.test_schemas import shop  # noqa: F401 - a fixture

CODE = """
from django_moe_personalize.decorators import personalize as needs
from django_moe_personalize.mixins import PersonalizeMixin as Mixin
from django_moe_personalize import api
HERO = "key-02"
LATE: str = "key-03"

@needs("key-05", HERO)
def view(request, wanted):
    request.personalization["key-07"]
    request.personalization.get("key-08", "no-key")
    personal = request.personalization
    personal.prefetch("key-10", LATE, wanted)
    if "key-11" not in personal:
        personal.track_click("key-12", element="no-key")
    personal.track_impression(experience_key="key-14")
    personal.identity.get("no-key")
    personal.clear("no-key")
    api.fetch_experiences(["key-17", "key-17"], customer_id="no-key")
    request.session["no-key"]
    (found := request.personalization)["no-key" + "x"]
    return found.get("key-20")

class Home(Mixin):
    experiences = ("key-23",)
    template_name = "no-key"
    def get(self):
        return personalize("key-26")

class Sale(Home):
    experiences: list = ["key-29"]

class Other(View):
    experiences = ["no-key"]

urls = [Home.as_view(experiences=["key-34"], template_name="no-key"), include("no-key")]
"""
LINES = ["key-05", "key-07", "key-08", "key-10", "key-11", "key-12", "key-14", "key-17", "key-20", "key-23", "key-26"]


def test_keys_in_code(tmp_path):
    """The keys are those that the package's functions and classes get. A module's constant stands for its text."""
    file = tmp_path / "views.py"
    file.write_text(CODE)
    found = set(python_code.find_keys_in_code(file))
    assert {key for key, _, _ in found} == {*LINES, "key-29", "key-34", "key-02", "key-03"}
    lines = CODE.splitlines()
    assert all(key in lines[line - 1] for key, _, line in found)
    file.write_text("personalization = (")
    assert list(python_code.find_keys_in_code(file)) == []
    dots = "." * 99
    (tmp_path / "odd.py").write_text(f"from {dots} import A\nfrom django.conf import settings\n{ODD}")
    with override_settings(SETTINGS_MODULE=None):
        assert list(python_code.find_keys_in_code(tmp_path / "odd.py")) == []
    assert python_code.find_variable(str(tmp_path / "absent.py"), "Hero", "key") == 0


ODD = """
def view(personalization, *rest, **more):
    personalization.prefetch(A, settings.B, settings, *rest, **more)
    personalization[0], personalization[1:2], personalization.get(), (lambda: 1)()[0]
"""
NAMED = {
    "keys.py": """
from enum import Enum
from .options import *
from .base import *
HERO = "in-module"
LIST = ["in-list", *("in-star",)] + OTHER
class Keys(Enum):
    MEMBER = "in-enum"
""",
    "base.py": """
from django_moe_personalize.mixins import PersonalizeMixin
OTHER = ("in-base",)
class Base(PersonalizeMixin): pass
class Plain: pass
""",
    "options.py": "SHOP_HERO = 'in-settings'",
    "views.py": """
import os.path, keys_of_nobody, shop_of_names.keys
import shop_of_names.keys as absolute
from . import keys, base
from .base import Base as Parent, Plain
from .keys import HERO as SHORT, LIST, Keys
from .missing import GONE
from django.conf import settings
SOME = {"a": "in-some"}
LOOP = LOOP
BY_NAME = {"hero": "in-dict", "other": "no-key", **LIST_OF_NOBODY}
def view(personalization, SHADOWED, default="in-default", *, flag, more="in-keyword"):
    local = "in-function" if flag else LIST
    personalization.prefetch(*LIST, SHORT, keys.HERO, Keys.MEMBER.value, local, absolute.OTHER, GONE, LOOP, flag.x)
    [personalization.get(key) for key in ("in-loop",)]
    personalization.get("no" + "-key")
    personalization.prefetch(BY_NAME["hero"], default, more, settings.SHOP_HERO, flag["x"], {"a": "no-key"}["a"])
    for one in ("in-for", flag):
        personalization.get(SOME[flag], one) or personalization.get(one)
SHADOWED = "no-key"
class Home(Parent, Plain, object):
    KEY = "in-class"
    experiences = ["in-child"]
    def get(self):
        return self.request.personalization[self.KEY]
class Other(base.Plain):
    experiences = ["no-key"]
""",
}


def test_names_in_code(tmp_path, monkeypatch):
    """A name stands for its texts, also if another file sets it. The place is where the text is written."""
    folder = tmp_path / "shop_of_names"
    folder.mkdir()
    for name, text in {**NAMED, "__init__.py": ""}.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with override_settings(SETTINGS_MODULE="shop_of_names.options"):
        found = set(python_code.find_keys_in_code(folder / "views.py"))
    ends = ["module", "list", "star", "base", "enum", "function", "loop", "class", "child", "dict", "default"]
    ends += ["keyword", "settings", "some", "for"]
    assert {key for key, _, _ in found} == {f"in-{end}" for end in ends}
    for key, file, line in found:
        assert key in Path(file).read_text().splitlines()[line - 1]


def test_files_of_the_site(tmp_path, monkeypatch):
    """The files are those of the site's own apps and next to its URLs, without tests, migrations and other packages."""
    names = ["views.py", "tests.py", "test_views.py", "conftest.py", "testimonials.py", "tests/made.py", ".x/made.py"]
    for name in [*names, "migrations/0001.py", "inner/forms.py"]:
        (tmp_path / "shop" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shop" / name).write_text("")
    (tmp_path / "urls_of_drift.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    configs = [SimpleNamespace(path=str(tmp_path / "shop")), *apps.get_app_configs()]
    monkeypatch.setattr(apps, "get_app_configs", lambda: configs)
    for urls, more in [("urls_of_drift", ["urls_of_drift.py"]), ("no_such_urls", [])]:
        with override_settings(ROOT_URLCONF=urls):
            found = [str(file.relative_to(tmp_path)) for file in python_code.list_files()]
        assert found == ["shop/inner/forms.py", "shop/testimonials.py", "shop/views.py", *more]
    del sys.modules["urls_of_drift"]


TEMPLATES = {
    "base.html": "{% block a %}{% endblock %}{% experience key %}{% endexperience %}",
    "child.html": '{% block a %}{% experience "child" %}{% endexperience %}{% endblock %}',
    "branch.html": "{% if x %}{% experience 'in-branch' %}{% endexperience %}{% endif %}",
    "value.html": """{% experience_value "a-value"|lower "T" %}{% experience_value x|default:"a-default" "T" %}""",
    "part.html": "{% experience key %}{% endexperience %}{% experience 'fixed' %}{% endexperience %}",
    "outer.html": "{% include 'part.html' %}",
    "include.html": "{% include 'outer.html' with key='handed' %}{% include 'part.html' with key=x %}",
    "only.html": "{% with key='no-key' %}{% include 'part.html' with x='no-key' only %}{% endwith %}",
    "with.html": "{% with key='in-with' %}{% experience key %}{% endexperience %}{% include 'no.html' %}{% endwith %}",
    "loop.html": "{% include 'loop.html' with key='no-key' %}",
    "comment.html": "{# {% experience 'no-key' %} #}{% comment %}{% experience 'no-key' %}{% endcomment %}",
    "island.html": "{% experience_island 'island' %}{% endexperience_island %}{% personalize_state 'state' %}",
    "shadowed.html": "{% experience 'over' %}{% endexperience %}",
}


def test_templates(tmp_path, monkeypatch, caplog):
    """A key of a template counts where it is written, also as a variable of an include. A broken template is logged."""
    own, app = tmp_path / "own", tmp_path / "app"
    for folder in (own, app):
        folder.mkdir()
    for name, text in TEMPLATES.items():
        start = '{% extends "base.html" %}' if name == "child.html" else ""
        (own / name).write_text(f"{start}{{% load moe_personalize %}}\n{text}")
    (own / "broken.html").write_text('{% load moe_personalize %}{% experience "broken" %}')
    (own / "other.html").write_text("{% load nothing_to_include %}")
    (own / "again.html").write_text("{% extends 'again.html' %}{% include 'x' %}")
    for name, key in {"shadowed": "no-key", "again": "extended"}.items():
        (app / f"{name}.html").write_text(
            f"{{% load moe_personalize %}}\n{{% experience '{key}' %}}{{% endexperience %}}"
        )
    templates = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [own, app]}]
    monkeypatch.chdir(tmp_path)
    with override_settings(TEMPLATES=templates):
        found = {(usage.experience_key, usage.place) for usage in usages.find_in_templates()}
    names = {
        "a-value": "value",
        "a-default": "value",
        "child": "child",
        "in-branch": "branch",
        "fixed": "part",
        "handed": "include",
    }
    names |= {"in-with": "with", "over": "shadowed", "island": "island", "state": "island"}
    places = {(key, f"own/{name}.html:2") for key, name in names.items()}
    assert found == {*places, ("extended", "app/again.html:2")}
    assert "'broken.html' can't be read" in caplog.text
    assert "other.html" not in caplog.text


KEY = "made-in-code"
urlpatterns = [path("home/", personalize(*[KEY])(HttpResponse))]


@override_settings(ROOT_URLCONF=__name__)
def test_views(monkeypatch):
    """A view that computes its keys counts too, at the place of the function."""
    [found] = list(usages.find_in_views())
    assert (found.experience_key, found.kind) == (KEY, "view")
    assert found.file.endswith("response.py")
    monkeypatch.setattr(usages, "find_in_code", lambda: [Usage(KEY, "code", found.file, 3)])
    assert list(usages.find_in_views()) == []
    with override_settings(ROOT_URLCONF="no.such.urls"):
        assert list(usages.find_in_views()) == []
    assert usages.find_definition(len) == ("builtins.len", 0)


def test_settings(tmp_path, monkeypatch):
    """A key of EXPERIENCES has the file and line of the settings, or of the settings that they import."""
    assert list(usages.find_in_settings()) == []
    texts = {"drift_base": "\nKEYS = ['in-base']", "drift_site": SITE, "drift.keys": "K = [\n'in-module']"}
    for name, text in {**texts, "drift": "from .keys import K"}.items():
        (tmp_path / f"{name}.py").write_text(text)
        module = ModuleType(name)
        module.__file__ = str(tmp_path / f"{name}.py")
        module.__package__ = "drift" if name == "drift" else None
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)
    keys = {"*": ["in-base", "in-site", "computed", "in-module"]}
    with override_personalize(EXPERIENCES=keys), override_settings(SETTINGS_MODULE="drift_site"):
        found = {usage.experience_key: usage.place for usage in usages.find_in_settings()}
    expected = {"in-base": "drift_base.py:2", "in-site": "drift_site.py:4", "in-module": "drift.keys.py:2"}
    assert found == {**expected, "computed": f"drift_site.py:{SITE.count(chr(10)) - 1}"}
    with override_personalize(EXPERIENCES={"nowhere": ["computed"]}), override_settings(SETTINGS_MODULE="drift_site"):
        assert [usage.place for usage in usages.find_in_settings()] == ['MOE_PERSONALIZE["EXPERIENCES"]["nowhere"]']


STARS = "from .drift_base import *\nfrom drift_base import *\nfrom drift import K, keys\n"
SITE = STARS + "MORE = {'*': ['in-site']}\nfrom os import path\nfrom nowhere import *"


def test_schemas_and_finders_of_other_libraries(monkeypatch, shop):  # noqa: F811
    """A schema is a usage at the line of its key. A registered finder adds usages, once for each line."""
    monkeypatch.setattr(finders, "registered", registered := [])
    monkeypatch.setattr(usages, "registered", registered)
    theirs = [Usage("their-key", "wagtail", "page 3 https://a.example/", 0)] * 2
    finder = register_finder(lambda: theirs)
    assert register_finder(finder) is registered[0]
    assert len(registered) == 1
    found = find_usages()
    assert [usage.place for usage in found if usage.kind == "wagtail"] == ["page 3 https://a.example/"]
    [schema] = [usage for usage in found if usage.kind == "schema"]
    assert schema.place == "tests/schemas/shop.py:18"
    place, line = usages.find_schema_place(shop.Hero, "CtaUrl")
    assert (place.endswith("shop.py"), line) == (True, 14)
    assert usages.find_schema_place(shop.Hero, "Nothing")[1] == 17

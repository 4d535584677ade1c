"""Where a site uses experience keys: templates, code, views, settings, schemas, and finders of other libraries."""

import sys
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
    assert {key for key, _ in found} == {*LINES, "key-29", "key-34", "key-02", "key-03"}
    lines = CODE.splitlines()
    for key, line in found - {("key-02", 8), ("key-03", 13)}:
        assert key in lines[line - 1]
    file.write_text("personalization = (")
    assert list(python_code.find_keys_in_code(file)) == []
    assert python_code.find_variable(str(tmp_path / "absent.py"), "Hero", "key") == 0


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


def test_templates(tmp_path, monkeypatch):
    """A literal key of a template counts, also below an {% extends %} and in a branch. A broken template doesn't."""
    load = "{% load moe_personalize %}\n"
    tags = '{% if x %}{% experience "in-branch" %}{% endexperience %}{% endif %}\n{% experience_value "a-value" "T" %}'
    (tmp_path / "base.html").write_text(
        f"{load}{{% block a %}}{{% endblock %}}{tags}{{% experience key %}}{{% endexperience %}}"
    )
    block = (
        '{% extends "base.html" %}' + load + '{% block a %}{% experience "child" %}{% endexperience %}{% endblock %}'
    )
    (tmp_path / "child.html").write_text(block)
    island = f"{load}{{% experience_island 'island' %}}{{% endexperience_island %}}{{% personalize_state 'state' %}}"
    (tmp_path / "island.html").write_text(island)
    (tmp_path / "broken.html").write_text(f'{load}{{% experience "broken" %}}')
    templates = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [tmp_path]}]
    monkeypatch.chdir(tmp_path)
    with override_settings(TEMPLATES=templates):
        found = [(usage.experience_key, usage.place) for usage in usages.find_in_templates()]
    assert sorted(found) == [
        *[("a-value", "base.html:3"), ("child", "child.html:2"), ("in-branch", "base.html:2")],
        *[("island", "island.html:2"), ("state", "island.html:2")],
    ]


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
    for name, text in {"drift_base": "\nKEYS = ['in-base']", "drift_site": SITE}.items():
        (tmp_path / f"{name}.py").write_text(text)
        module = ModuleType(name)
        module.__file__ = str(tmp_path / f"{name}.py")
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)
    keys = {"*": ["in-base", "in-site", "computed"]}
    with override_personalize(EXPERIENCES=keys), override_settings(SETTINGS_MODULE="drift_site"):
        found = {usage.experience_key: usage.place for usage in usages.find_in_settings()}
    expected = {"in-base": "drift_base.py:2", "in-site": "drift_site.py:3"}
    assert found == {**expected, "computed": 'MOE_PERSONALIZE["EXPERIENCES"]["*"]'}


STARS = "from .drift_base import *\nfrom drift_base import *\n"
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

"""The package as a whole: one version, few dependencies, a layout that tells the story, and complete translations."""

import ast
import gettext
import json
import re
import tomllib

import pytest
from django.apps import apps
from django.core.management import call_command
from django.utils.functional import Promise
from django.utils.translation.template import templatize

import django_moe_personalize
from tests.documents import ROOT

PACKAGE = ROOT / "django_moe_personalize"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted(PACKAGE.rglob("*.py"))
CATALOGS = sorted(PACKAGE.glob("locale/*/LC_MESSAGES/django.po"))
MARKED = re.compile(r"""\b(_|[np]*gettext(?:_lazy)?)\(\s*u?["'](.+?)["'](?:, u?["'](.+?)["'])?""")
STORY = {
    "request": ["middleware.py"],
    "attributes": ["visitor/"],
    "fetch": ["planning.py", "fetching/"],
    "context": ["page.py", "context/"],
    "render": ["rendering.py"],
    "track": ["tracking/", "delivery/"],
}


def imported_names(path) -> set[str]:
    """Return the top-level names that a module imports, at any place in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            names.add(str(node.module).partition(".")[0])
    return names


def importers_of(name: str) -> set[str]:
    """Return the modules of the package that import ``name``, as paths below it."""
    return {path.relative_to(PACKAGE).as_posix() for path in MODULES if name in imported_names(path)}


def test_version_is_read_from_the_package():
    """Only ``__init__.py`` has the version, in a form that PEP 440 and SemVer both accept."""
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", django_moe_personalize.__version__)


def test_package_says_that_it_is_typed():
    """The package has ``py.typed``, as the classifier claims."""
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert (PACKAGE / "py.typed").is_file()


def test_core_dependencies_are_three():
    """A site that installs the package gets Django, requests and django-environ, and nothing but their dependencies."""
    names = {re.match(r"[\w-]+", dependency).group() for dependency in PROJECT["dependencies"]}
    assert names == {"django", "django-environ", "requests", "urllib3"}


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_extra_is_documented(extra):
    """Each extra is named in the README or in the documents, in the form that pip takes."""
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert any(f'"path/to/the/checkout[{extra}]"' in path.read_text() for path in documents)


def test_matrix_equals_the_classifiers():
    """The supported versions that the classifiers claim are the ones that tox runs."""
    matrix = (ROOT / "tox.ini").read_text().partition("env_list =")[2].partition("coverage")[0]
    classifiers = PROJECT["classifiers"]
    pythons = {
        c.rpartition(" ")[2] for c in classifiers if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", c)
    }
    djangos = {c.rpartition(" ")[2] for c in classifiers if c.startswith("Framework :: Django :: ")}
    assert {f"3.{minor}" for minor in re.findall(r"py3(\d+)", matrix)} == pythons
    assert {".".join(number) for number in re.findall(r"\b(?:dj)?([56])(\d)\b", matrix)} == djangos


def test_story_is_told_in_order():
    """The package's docstring tells the six steps of a page in order, with modules and folders that exist."""
    story, _, below = str(django_moe_personalize.__doc__).partition("\n\nBelow the story")
    steps = re.findall(r"^(\w+) +(``.*(?:\n +``.*)*)", story, re.MULTILINE)
    place = re.compile(r"``(\w+(?:\.py|/))``")
    assert [(step, place.findall(told)) for step, told in steps] == list(STORY.items())
    assert [path for path in place.findall(story + below) if not (PACKAGE / path).exists()] == []


def test_connections_and_the_environment_have_one_module_each():
    """One module opens connections, so every other part runs without a network. One module reads the environment.

    Only an app of its own knows OpenTelemetry.
    """
    assert importers_of("environ") == {"conf/settings.py"}
    assert importers_of("requests") == {"moengage/connections.py"}
    assert {name.partition("/")[0] for name in importers_of("urllib3")} <= {"moengage"}
    assert importers_of("opentelemetry") == {"contrib/otel/metrics.py", "contrib/otel/spans.py"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_module_keeps_the_rules(path):
    """A module has at most 400 lines, one role, and no lines that it hides from coverage."""
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert path.stem not in {"utils", "helpers", "common", "misc"}
    assert not re.search(r"#\s*pragma:\s*no", text)


def find_texts():
    """Return the texts in the package that are marked for translation, as the compiled catalog names them."""
    sources = [path.read_text() for path in PACKAGE.rglob("*.py")]
    sources += [templatize(path.read_text()) for path in PACKAGE.rglob("*.html")]
    marked = [match.groups() for source in sources for match in MARKED.finditer(source)]
    return {f"{first}\x04{second}" if name.startswith("p") else first for name, first, second in marked}


@pytest.mark.parametrize("path", CATALOGS, ids=[path.parts[-3] for path in CATALOGS])
def test_a_catalog_is_complete(path):
    """Each marked text has a translation, and ``compilemessages`` has run after the last change of a translation."""
    with path.with_suffix(".mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)._catalog
    del compiled[""]
    texts = {key[0] if isinstance(key, tuple) else key for key in compiled}
    assert texts == find_texts()
    source = path.read_text()
    assert "fuzzy" not in source
    assert source.count("\nmsgid ") == len(texts) + 1
    parts = {part for text in (*texts, *compiled.values()) for part in text.split("\x04")}
    assert [part for part in parts if json.dumps(part, ensure_ascii=False) not in source] == []


@pytest.mark.django_db
def test_texts_wait_for_the_language_of_the_request():
    """The names of models, fields, choices and the app are lazy, and the migrations are the same in all languages."""
    config = apps.get_app_config("moe_personalize")
    texts = [config.verbose_name]
    for model in config.get_models():
        texts += [model._meta.verbose_name, model._meta.verbose_name_plural]
        fields = [field for field in model._meta.get_fields() if not field.auto_created]
        texts += [field.verbose_name for field in fields]
        texts += [label for field in fields for _, label in field.choices or ()]
    assert len(texts) >= 20
    assert [text for text in texts if not isinstance(text, Promise)] == []
    call_command("makemigrations", "moe_personalize", check_changes=True, dry_run=True, verbosity=0)

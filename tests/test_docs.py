"""The documents and the code agree: the documents list everything that the code has, and nothing else."""

import ast
import dataclasses
import importlib
import inspect
import re
import tomllib

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import BaseCommand, get_commands, load_command_class
from django.dispatch import Signal

from django_moe_personalize import api, exceptions, rendering, signals, types, urls
from django_moe_personalize.conf import settings
from django_moe_personalize.context import Personalization
from django_moe_personalize.delivery.base import BaseDelivery, DeliveryCounts
from django_moe_personalize.delivery.queued import QueuedDelivery
from django_moe_personalize.delivery.twofold import TwofoldDelivery
from django_moe_personalize.sandbox import faults, rule_reader, workspace
from django_moe_personalize.sandbox.audiences import DEVICES
from django_moe_personalize.sandbox.control import _as_json
from django_moe_personalize.sandbox.decisions import Decision
from django_moe_personalize.sandbox.ledger import LedgerEntry
from django_moe_personalize.workbench.faults import PRESETS, describe_faults
from tests.documents import DOCS, PAGES, ROOT, read, read_rows, read_section, read_words

PACKAGE = ROOT / "django_moe_personalize"
BASES = (BaseDelivery, QueuedDelivery, TwofoldDelivery)


def collect_strings(path):
    """Return the string constants of a module, docstrings left out."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


SETTINGS_ROWS = read_rows(read("reference/settings.md"), "name", "default", "meaning")
SETTINGS = {read_words(name)[0]: default for name, default, _ in SETTINGS_ROWS}


def test_settings_are_those_of_the_code():
    """The reference has each setting once."""
    assert sorted(SETTINGS) == sorted(settings.FIELDS)
    assert len(SETTINGS_ROWS) == len(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_default_is_that_of_the_code(name):
    """A default that is a value equals the code's default. The defaults of two settings follow from other settings."""
    if not (match := re.match(r"`([^`]+)`(?: or|,|$)", SETTINGS[name])):
        assert name in ("BASE_URL", "SANDBOX")
        return
    field = settings.FIELDS[name]
    default = field.default_factory()
    value = ast.literal_eval(match[1])
    assert (value if value is None else field.metadata["read"](value)) == default


def test_data_centers_are_those_of_the_code():
    """The reference has each data center."""
    row = next(line for line in read("reference/settings.md").splitlines() if line.startswith("| `DATA_CENTER`"))
    assert re.findall(r'`"(\d+)"`', row) == list(settings.DATA_CENTERS)


def test_settings_named_in_the_environment_exist():
    """Every MOE_PERSONALIZE_… that a page names is a setting."""
    for page in PAGES:
        for name in re.findall(r"\bMOE_PERSONALIZE_([A-Z_]+)\b", page.read_text()):
            assert name in settings.FIELDS, f"{page.name}: MOE_PERSONALIZE_{name}"


def test_checks_are_those_of_the_code():
    """The reference has each id of a check, once."""
    found = [
        number
        for path in [*(PACKAGE / "checks").glob("*.py"), *(PACKAGE / "contrib").rglob("*.py")]
        for text in collect_strings(path)
        for number in re.findall(r"\b[EW]\d{3}\b", text)
    ]
    listed = [read_words(number)[0] for number, _ in read_rows(read("reference/checks.md"), "id", "says")]
    assert listed == sorted({f"moe_personalize.{number}" for number in found})


def test_errors_are_those_of_the_code():
    """The reference has each error with its base, its code and whether it may be retried."""
    tree = {
        name: (error.__bases__[0].__name__, error.code, error.retryable)
        for name, error in vars(exceptions).items()
        if isinstance(error, type) and issubclass(error, exceptions.MoePersonalizeError)
    }
    listed = {
        read_words(name)[0]: (read_words(base)[0], read_words(code)[0], {"yes": True, "no": False}[retryable])
        for name, base, code, retryable, _ in read_rows(
            read("reference/errors.md"), "error", "below", "code", "retryable", "when"
        )
    }
    assert listed == tree
    assert issubclass(settings.ConfigurationError, ImproperlyConfigured)


def test_fields_of_the_log_are_those_of_the_code():
    """The page on logging has each kind of line with its fields, and each part that logs its outages."""
    fields, parts = {}, set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [getattr(key, "value", "") for key in node.keys] if isinstance(node, ast.Dict) else []
            if "moe_event" in names:
                values = dict(zip(names, node.values, strict=True))
                for event in ast.walk(values.pop("moe_event")):
                    if isinstance(event, ast.Constant):
                        fields[event.value] = set(values)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Outage":
                parts |= {keyword.value.value for keyword in node.keywords if keyword.arg == "part"} or {""}
    text = read("howto/logging.md")
    rows = read_rows(text, "`moe_event`", "level", "when", "other fields")
    listed = {event: set(read_words(row[3])) for row in rows for event in read_words(row[0])}
    assert listed == {**fields, "notice": set()}
    assert {word for row in read_rows(text, "`moe_part`", "what fails") for word in read_words(row[0])} == parts
    described = {word for row in read_rows(text, "field", "value") for word in read_words(row[0])}
    assert described == {"moe_event", "moe_workspace"}.union(*fields.values())


def test_signals_are_those_of_the_code():
    """The reference has each signal, with the arguments that the code sends."""
    sent = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "send_robust":
                name = ast.unparse(node.func.value).rpartition(".")[2]
                sent[name] = {keyword.arg for keyword in node.keywords} - {"sender"}
    assert sent.keys() == {name for name, value in vars(signals).items() if isinstance(value, Signal)}
    rows = read_rows(read("reference/signals.md"), "signal", "sent", "arguments")
    assert {read_words(name)[0]: set(read_words(arguments)) for name, _, arguments in rows} == sent


@pytest.mark.parametrize(("heading", "kind"), [("## Tags", "tags"), ("## Filters", "filters")])
def test_tags_and_filters_are_those_of_the_library(heading, kind):
    """The reference has a section for each tag and each filter."""
    library = importlib.import_module("django_moe_personalize.templatetags.moe_personalize").register
    section = read_section(read("reference/templates.md"), heading)
    listed = set(re.findall(r"^### `(\w+)`$", section, re.MULTILINE))
    assert listed == set(getattr(library, kind))


def test_elements_of_content_are_those_of_the_code():
    """The reference has each element that HTML content may hold."""
    text = read_section(read("reference/templates.md"), "### `experience_html`")
    listed = text.partition("these elements:")[2].partition(";")[0]
    assert set(read_words(listed)) == rendering.HTML_TAGS


def test_findings_of_the_doctor_are_those_of_the_code():
    """The reference lists the id of each finding."""
    rows = read_rows(read_section(read("reference/commands.md"), "### Findings"), "finding", "level", "says")
    paths = [*PACKAGE.glob("doctor/*.py"), PACKAGE / "delivery/celery.py", PACKAGE / "delivery/tasks.py"]
    strings = [string for path in paths for string in collect_strings(path)]
    ids = {string for string in strings if re.fullmatch(r"(?!django)[a-z_]+\.[a-z0-9_]+", string)}
    assert {word.rstrip("…") for row in rows for word in read_words(row[0])} == ids


def test_levels_of_the_findings_are_those_of_the_code():
    """A program that reads the findings may rely on the level of each id."""
    rows = read_rows(read_section(read("reference/commands.md"), "### Findings"), "finding", "level", "says")
    listed = {word: level for names, level, _ in rows for word in read_words(names)}
    calls = [node for path in PACKAGE.glob("doctor/*.py") for node in ast.walk(ast.parse(path.read_text()))]
    found = 0
    for call in calls:
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Finding":
            values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "id")]
            level, name = (getattr(value, "value", None) for value in (values[0], values[-1]))
            if isinstance(level, str) and name in listed:
                found += 1
                assert listed[name] == level, name
    assert found > 30


def test_commands_are_those_of_the_code():
    """The reference has each command with each of its own arguments."""
    text = read("reference/commands.md")
    names = {name for name, app in get_commands().items() if app == "django_moe_personalize"}
    assert set(re.findall(r"^## `(\w+)`$", text, re.MULTILINE)) == names
    for name in names:
        parser = load_command_class("django_moe_personalize", name).create_parser("manage.py", name)
        common = BaseCommand().create_parser("manage.py", "any")
        shared = {string for action in common._actions for string in action.option_strings}
        own = {a.option_strings[0] if a.option_strings else a.dest for a in parser._actions}
        rows = read_rows(read_section(text, f"## `{name}`"), "argument", "default", "meaning")
        assert {read_words(argument)[0] for argument, _, _ in rows} == own - shared


@pytest.mark.parametrize(
    "path",
    [
        "delivery.celery.CeleryDelivery",
        "delivery.database.DatabaseDelivery",
        "delivery.dummy.DummyDelivery",
        "delivery.immediate.ImmediateDelivery",
        "delivery.tasks.TasksDelivery",
        "delivery.thread.ThreadDelivery",
        "moengage.transport.RequestsTransport",
    ],
)
def test_options_are_those_of_the_code(path):
    """The reference has each option of a delivery and of the transport with its default."""
    module, name = f"django_moe_personalize.{path}".rsplit(".", 1)
    heading = "## Transport" if name == "RequestsTransport" else f"### `{module}.{name}`"
    section = read_section(read("reference/delivery.md"), heading)
    rows = read_rows(section, "option", "default", "meaning")
    listed = {read_words(option)[0]: ast.literal_eval(read_words(default)[0]) for option, default, _ in rows}
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters.values()
    assert listed == {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def test_deliveries_are_those_of_the_code():
    """The reference and the how-to have each delivery of the package."""
    found = set()
    for file in (PACKAGE / "delivery").glob("[!_]*.py"):
        module = importlib.import_module(f"django_moe_personalize.delivery.{file.stem}")
        found |= {
            f"{cls.__module__}.{cls.__qualname__}"
            for cls in vars(module).values()
            if isinstance(cls, type) and issubclass(cls, BaseDelivery) and cls not in BASES
        }
    text = read_section(read("reference/delivery.md"), "## Backends")
    assert set(re.findall(r"^### `([\w.]+)`$", text, re.MULTILINE)) == found
    rows = read_rows(read("howto/delivery.md"), "backend", "how", "for")
    assert {read_words(row[0])[0] for row in rows} == found


def test_reasons_for_dropping_are_those_of_the_code():
    """The reference has the reasons that DeliveryCounts names."""
    rows = read_rows(read("reference/delivery.md"), "reason", "when")
    named = re.findall(r"``(\w+)``\s\(", DeliveryCounts.__doc__.partition("The reasons for dropping:")[2])
    assert [read_words(reason)[0] for reason, _ in rows] == named


def test_personalization_is_that_of_the_code():
    """The reference has each public member of request.personalization, except those of every mapping."""
    own = {name for name in (*vars(Personalization), *Personalization.__slots__) if not name.startswith("_")}
    rows = read_rows(read("reference/python.md"), "member", "meaning")
    listed = {re.sub(r"^await |\(.*", "", word) for member, _ in rows for word in read_words(member)}
    assert listed == own


def test_api_is_that_of_the_code():
    """The reference has each call of the API with its parameters. An async twin has those of its sync call."""
    calls = {
        name: list(inspect.signature(getattr(api, name.removeprefix("a"), f)).parameters)
        for name, f in vars(api).items()
        if inspect.isfunction(f) and f.__module__ == api.__name__ and not name.startswith("_")
    }
    listed = {}
    for call, _ in read_rows(read("reference/python.md"), "call", "gives"):
        name, _, parameters = read_words(call)[0].rstrip(")").partition("(")
        listed[name] = [p.partition("=")[0] for p in parameters.split(", ") if p != "*"]
    assert listed == calls


def test_types_are_those_of_the_code():
    """The reference has each type with its fields, each enum with its members, and each error that types.py exports."""
    exported = {name: value for name, value in vars(types).items() if not name.startswith("_")}
    python, errors = read("reference/python.md"), read("reference/errors.md")
    fields = {read_words(name)[0]: read_words(cell) for name, cell in read_rows(python, "type", "fields")}
    members = {read_words(name)[0]: read_words(cell) for name, cell in read_rows(python, "enum", "members")}
    rows = read_rows(errors, "error", "below", "code", "retryable", "when")
    described = {"Identity", "Consent", "ConfigurationError"} | {read_words(row[0])[0] for row in rows}
    assert sorted(exported) == sorted({*fields, *members, *described})
    for name, listed in fields.items():
        assert listed == [field.name for field in dataclasses.fields(exported[name]) if field.init]
    for name, listed in members.items():
        assert listed == [member.name for member in exported[name]]


def test_endpoints_are_those_of_the_code():
    """The reference has each URL by name."""
    names = {f"{urls.app_name}:{pattern.name}" for pattern in urls.urlpatterns}
    rows = read_rows(read("reference/endpoints.md"), "name", "takes", "answers")
    assert {read_words(row[0])[0] for row in rows} == names


@pytest.mark.parametrize(
    ("heading", "columns", "expected"),
    [
        ("## Workspace", ("member", "meaning"), workspace._WORKSPACE_FIELDS),
        ("## Experience", ("member", "meaning"), workspace._EXPERIENCE_FIELDS),
        ("## Rules", ("member", "holds when"), rule_reader._CONDITIONS),
        ("## Rules", ("comparison", "with"), rule_reader.COMPARISONS),
        ("## Faults", ("fault", "meaning"), [field.name for field in dataclasses.fields(faults.Faults)]),
        ("## Ledger", ("field", "meaning"), [field.name for field in dataclasses.fields(LedgerEntry)]),
        ("### Explain", ("field", "meaning"), list(_as_json(Decision("key", "sentence")))),
    ],
    ids=["workspace", "experience", "conditions", "comparisons", "faults", "ledger", "explain"],
)
def test_sandbox_is_that_of_the_code(heading, columns, expected):
    """The reference has each member of a workspace file and of the answers of the control paths, and each fault."""
    section = read_section(read("reference/workspace.md"), heading)
    if not heading.startswith("###"):
        section = section.partition("\n### ")[0]
    rows = read_rows(section, *columns)
    assert sorted(word for row in rows for word in read_words(row[0])) == sorted(expected)


def test_buttons_of_the_workbench_are_those_of_the_code():
    """The how-to page has each button of the switch, with its faults."""
    rows = read_rows(read("howto/workbench.md"), "button", "faults")
    listed = {
        read_words(label)[0]: ", ".join(map(" ".join, re.findall(r"`(\w+)` (\d+)", text))) for label, text in rows
    }
    assert listed == {preset.label: describe_faults(preset.faults) for preset in PRESETS.values()}


def test_devices_are_those_of_the_code():
    """The reference has the devices of MoEngage's dashboard."""
    row = next(line for line in read("reference/workspace.md").splitlines() if line.startswith("| `device` |"))
    assert re.findall(r'`"(\w+)"`', row) == list(DEVICES)


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "index.md"], ids=["README", "index"])
def test_supported_versions_are_those_of_the_classifiers(page):
    """README and index name the versions in the classifiers, which tox runs."""
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    sentence = re.search(r"Python 3\.\d[^;(]*?(?=;|, with|\()", page.read_text())[0]
    djangos = re.search(r"Django \d\.\d, [^.(]*\.\d and \d\.\d", page.read_text())[0]
    for text, prefix in ((sentence, "Programming Language :: Python :: "), (djangos, "Framework :: Django :: ")):
        claimed = [c.removeprefix(prefix) for c in classifiers if re.fullmatch(re.escape(prefix) + r"\d+\.\d+", c)]
        assert re.findall(r"\d+\.\d+", text) == claimed


def test_readme_draws_the_story():
    """The six words lead to their modules and folders, in the order of the story, and the drawing has the same."""
    text = (ROOT / "README.md").read_text()
    words = re.findall(r"\[(\w+)\]\(django_moe_personalize/(\w+(?:\.py|/))\)", text)
    assert [word for word, _ in words] == ["request", "attributes", "fetch", "context", "render", "track"]
    drawn = (DOCS / "_static" / "story.svg").read_text()
    assert re.findall(r'class="word"[^>]*>(\w+)<', drawn) == [word for word, _ in words]
    assert re.findall(r'class="file"[^>]*>([\w./]+)<', drawn) == [place for _, place in words]


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md"])
def test_links_lead_somewhere(page):
    """Every relative link of the page is a file of the repository."""
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("arguments", ["run -e demo", "run"])
def test_readme_has_the_commands_word_for_word(arguments):
    """A command to type has a line of its own, and tox knows its environment."""
    command = f"python3 -m pip install tox && python3 -m tox {arguments}"
    assert (ROOT / "README.md").read_text().splitlines().count(command) == 1
    assert "[testenv:demo]" in (ROOT / "tox.ini").read_text()


def test_layers_are_those_of_import_linter():
    """The architecture page draws the layers that import-linter checks."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    text = read_section(read("architecture.md"), "## Layers").partition("```text\n")[2].partition("```")[0]
    assert text.splitlines() == contract["layers"]


def test_goals_are_those_of_the_benchmarks():
    """The performance page has each goal that a script measures."""
    rows = read_rows(read_section(read("performance.md"), "## The goals"), "goal", "figure", "limit")
    numbers = [int(path.name[1:3]) for path in sorted((ROOT / "benchmarks").glob("p[0-9][0-9]_*.py"))]
    assert [goal for goal, *_ in rows] == [*(f"P{number}" for number in numbers), "STEPS"]


def test_every_defense_has_a_test_that_exists():
    """Each threat names at least one test, and every test that it names exists."""
    rows = read_rows(read("threat-model.md"), "threat", "defense", "test")
    named = {threat: read_words(tests) for threat, _, tests in rows}
    assert len(named) > 20
    assert [threat for threat, tests in named.items() if not tests] == []
    modules = [ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")]
    existing = {getattr(node, "name", None) for module in modules for node in ast.walk(module)}
    assert {name for tests in named.values() for name in tests} - existing == set()

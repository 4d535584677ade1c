"""The code in the documents runs: README and quickstart as whole sites, the other pages block by block."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from django.core.management import load_command_class
from django.http import HttpResponse
from django.template import engines
from django.template.engine import Engine
from django.urls import include, path

from django_moe_personalize.conf import find_problems
from django_moe_personalize.sandbox.workspace import WorkspaceError, load_workspace, parse_workspace
from tests.documents import DOCS, PAGES, ROOT, read_blocks

BLOCKS = [block for page in PAGES for block in read_blocks(page)]
HOME = """{% load moe_personalize %}{% experience "hero-banner" as hero %}<h1>{{ hero.Title }}</h1>
{% fallback %}<h1>Welcome</h1>{% endexperience %}"""

VISIT = """
import json, re
import django
django.setup()
from django.test import Client
from django_moe_personalize.client import get_engine
from django_moe_personalize.delivery.base import get_delivery

browser = Client(headers={"host": "localhost", "user-agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0"})
pages = [browser.get(path) for path in ("/", "/", "/?utm_medium=email", "/")]
link = re.search(r'href="(/moe/click/[^"]+)"', pages[-1].text)[1]
click = browser.get(link)
get_delivery().flush(timeout=30)
hero = get_engine().ledger.counts()["hero-banner"]
print(json.dumps({
    "status": [page.status_code for page in pages],
    "titles": [re.search("<h1>(.*?)</h1>", page.text)[1] for page in pages],
    "text": pages[0].text,
    "click": [click.status_code, click.headers["Location"]],
    "counts": [hero.impressions, hero.clicks],
}))
"""


def home(request):
    return HttpResponse(engines["django"].from_string(HOME).render({}, request))


urlpatterns = [path("", home), path("moe/", include("django_moe_personalize.urls"))]


def execute(*blocks):
    """Run blocks of Python one after the other, and return the names that they define."""
    namespace = {}
    for block in blocks:
        exec(block.code, namespace)  # noqa: S102 - the repository's own documents
    return namespace


def read_python(page):
    return [block for block in read_blocks(DOCS / page) if block.language == "python"]


def select(language):
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.language == language]


def run(folder, *command):
    """Run Python in a site's folder and return what it printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "MOE_"))}
    # A slow machine must not show a fallback.
    env |= {"MOE_PERSONALIZE_DEADLINE": "20", "DJANGO_SETTINGS_MODULE": "mysite.settings", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_site(folder, blocks):
    """Make a project as django-admin does, and write a page's files into it."""
    run(folder, "-m", "django", "startproject", "mysite", ".", "--settings", "")
    run(folder, "-m", "django", "startapp", "shop", "--settings", "")
    for block in blocks:
        name = f"mysite/{block.file}" if block.file in ("settings.py", "urls.py") else block.file
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text() if name.startswith("mysite/") else ""
        file.write_text(f"{text}\n{block.code}")
    settings = folder / "mysite/settings.py"
    if '"shop"' not in settings.read_text():
        # The reader of README has an app already.
        settings.write_text(settings.read_text() + '\nINSTALLED_APPS += ["shop"]\n')


def list_hero_titles(audience=None):
    """Return the titles of the sandbox's hero, for all audiences or for one."""
    return {
        variation.payloads[""]["Title"]["value"]
        for content in load_workspace().definitions["hero-banner"].contents
        if audience in (None, content.audience.name)
        for variation in content.variations
    }


@pytest.mark.parametrize(
    ("page", "parts"),
    [
        (ROOT / "README.md", []),
        (DOCS / "quickstart.md", [r"\A\s*<p>(?!Free returns)", r"(<li>.*){4}", 'data-beacon="/moe/beacon/"']),
    ],
    ids=["README", "quickstart"],
)
def test_page_builds_a_personalized_site(page, parts, tmp_path):
    """The site of README or quickstart shows and counts experiences of the sandbox, and remembers ``utm_medium``."""
    blocks = [block for block in read_blocks(page) if block.file]
    assert {"settings.py", "urls.py", "shop/views.py"} < {block.file for block in blocks}
    build_site(tmp_path, blocks)
    run(tmp_path, "manage.py", "migrate", "--verbosity", "0")
    run(tmp_path, "manage.py", "check", "--fail-level", "WARNING")
    seen = json.loads(run(tmp_path, "-c", VISIT))
    assert seen["status"] == [200] * 4
    assert seen["titles"][0] == seen["titles"][1]
    assert set(seen["titles"]) <= list_hero_titles()
    assert set(seen["titles"][2:]) == list_hero_titles("Email visitors")
    assert seen["click"] == [302, "/category/packs/"]
    assert seen["counts"] == [4, 1]
    assert [part for part in parts if not re.search(part, seen["text"], re.DOTALL)] == []


@pytest.mark.parametrize("block", select("python"))
def test_python_is_python(block):
    """A block compiles, and its imports from the package and from Django work."""
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("django"):
            exec(ast.unparse(node), {})  # noqa: S102 - see execute()


@pytest.mark.parametrize("block", [p for p in select("python") if "MOE_PERSONALIZE = {" in p.values[0].code])
def test_settings_are_valid(block, settings):
    """A block of settings has no mistake."""
    settings.MOE_PERSONALIZE = execute(block)["MOE_PERSONALIZE"]
    assert find_problems() == []


@pytest.mark.parametrize("block", select("html+django"))
def test_template_compiles(block):
    """A block of a template compiles with the library loaded."""
    library = "django_moe_personalize.templatetags.moe_personalize"
    Engine(libraries={"moe_personalize": library}, builtins=[library]).from_string(block.code)


@pytest.mark.parametrize("block", select("json"))
def test_json_is_json(block):
    """A block of JSON is JSON. If it is a workspace, the sandbox accepts it."""
    data = json.loads(block.code)
    if "experiences" in data:
        parse_workspace(data)


def test_mistake_in_a_workspace_is_reported_as_documented():
    """sandbox.md shows the message for its own example, if a weight there is in quotation marks."""
    blocks = read_blocks(DOCS / "howto/sandbox.md")
    data = json.loads(next(block.code for block in blocks if block.language == "json"))
    data["experiences"][0]["content"][1]["variations"][0]["weight"] = "70"
    with pytest.raises(WorkspaceError) as caught:
        parse_workspace(data, name="workspace.json")
    assert str(caught.value) == next(block.code for block in blocks if block.language == "text").strip()


@pytest.mark.parametrize(
    "line",
    [
        line
        for block in BLOCKS
        for line in block.code.splitlines()
        if re.search(r"manage\.py moe_(sandbox|deliver)", line) and "[" not in line
    ],
)
def test_command_line_is_taken(line):
    """The command accepts a command line of the documents."""
    _, name, *arguments = shlex.split(line.partition("python ")[2])
    load_command_class("django_moe_personalize", name).create_parser("manage.py", name).parse_args(arguments)


@pytest.mark.parametrize("name", ["test_home", "test_home_without_experiences", "test_switched_off"])
@pytest.mark.urls(__name__)
def test_tests_of_a_site_pass(name, client):
    """The tests that testing.md shows pass on a page such as theirs."""
    execute(*read_python("howto/testing.md"))[name](client)


@pytest.mark.parametrize(
    ("page", "function", "paths"),
    [
        ("howto/visitors.md", "identify", {"IDENTIFY": "shop.personalization.identify"}),
        ("howto/visitors.md", "consent", {"CONSENT": "shop.personalization.consent"}),
        ("howto/attributes.md", "cart", {"ATTRIBUTES": ["shop.personalization.cart"]}),
    ],
)
def test_function_is_where_the_settings_look(page, function, paths):
    """The functions that a page shows have the names in the settings that the page shows."""
    blocks = read_blocks(DOCS / page)
    found = [block for block in blocks if f"def {function}(" in block.code]
    assert {block.file for block in found} == {"shop/personalization.py"}
    named = {}
    for block in blocks:
        if block.code.startswith("MOE_PERSONALIZE = {"):
            named |= execute(block)["MOE_PERSONALIZE"]
    assert paths.items() <= named.items()


def test_outside_a_request(upstream):
    """The email of outside.md has the customer's headline and counts it. Its list names the active experiences."""
    namespace = execute(*read_python("howto/outside.md"))
    customer = type("Customer", (), {"number": "1"})
    assert namespace["write_mail"](customer) in list_hero_titles("Gold members")
    assert upstream.count("hero-banner") == (1, 0)
    assert "hero-banner" in namespace["list_active"]()
    assert "spring-sale" not in namespace["list_active"]()

"""Type the README, the quickstart and the how-to pages as printed, in an empty folder: each gives a site that works."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from django_moe_personalize.sandbox.workspace import load_workspace
from tests.documents import DOCS, ROOT, read_blocks

VISITOR = Path(__file__).with_name("visit_site.py")
QUICKSTART = DOCS / "quickstart.md"
HOWTO = DOCS / "howto"
PAGES = [HOWTO / f"{name}.md" for name in re.findall(r"^([a-z0-9-]+)$", (HOWTO / "index.md").read_text(), re.MULTILINE)]
TYPED = [page for page in PAGES if "<!-- page not typed: " not in page.read_text()]
LANGUAGES = ("python", "html+django", "html+jinja", "json", "toml", "sh")
ENDLESS = re.compile(r"runserver|--watch|moe_sandbox|db_worker|rqworker|curl |celery |python3? -m (venv|pip) ")
"""Commands that run until somebody stops them, and installations."""


def run(folder, *command):
    """Run Python in a site's folder and return what it printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "MOE_"))}
    # A slow machine must not show a fallback.
    env |= {"MOE_PERSONALIZE_DEADLINE": "20", "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    if (folder / "mysite").exists():
        env["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def type_block(folder, block):
    """Write a block into its file: code goes to the end of the file, and a template replaces an earlier template."""
    file = folder / (f"mysite/{block.file}" if block.file in ("settings.py", "urls.py") else block.file)
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.read_text() if file.exists() and block.language == "python" else ""
    file.write_text(f"{before}\n{block.code}" if before else block.code)


def type_command(folder, line):
    """Run a command line. ``check`` must find nothing."""
    name, *arguments = shlex.split(line)
    if name == "django-admin":
        arguments = ["-m", "django", *arguments]
    output = run(folder, *arguments)
    if "check" in arguments:
        assert output == "System check identified no issues (0 silenced).\n"


def type_page(folder, page):
    """Type the blocks of a page and run its commands, in their order."""
    for block in read_blocks(page):
        if block.language not in LANGUAGES or "not typed" in block.notes:
            continue
        if block.language == "sh":
            for line in block.code.splitlines():
                if re.match(r"(python|django-admin) ", line) and not ENDLESS.search(line):
                    type_command(folder, line)
        else:
            assert block.file, f"{block.place}: the block names no file"
            type_block(folder, block)


def read_findings(folder, templates):
    output = run(folder, str(VISITOR), json.dumps(templates))
    return json.loads(re.search(r"^\{.*\}$", output, re.MULTILINE)[0])


def visit(folder, *pages):
    """Return the findings of visit_site.py. The templates of the pages become pages too."""
    blocks = [block for page in pages for block in read_blocks(page) if block.language == "html+django"]
    seen = read_findings(folder, [block.code for block in blocks])
    assert (seen["checks"], seen["wrong"]) == ([], {})
    return seen


def list_hero_titles(audience=None):
    """Return the titles of the sandbox's hero, for all audiences or for one."""
    return {
        variation.payloads[""]["Title"]["value"]
        for content in load_workspace().definitions["hero-banner"].contents
        if audience in (None, content.audience.name)
        for variation in content.variations
    }


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    """Give a folder in which the quickstart was typed."""
    folder = tmp_path_factory.mktemp("quickstart")
    type_page(folder, QUICKSTART)
    return folder


@pytest.fixture
def site(quickstart, tmp_path):
    return shutil.copytree(quickstart, tmp_path / "site")


@pytest.fixture
def readme(tmp_path):
    """Give a project with an app, as the reader of README has one, and with README's lines."""
    run(tmp_path, "-m", "django", "startproject", "mysite", ".")
    run(tmp_path, "manage.py", "startapp", "shop")
    settings = tmp_path / "mysite/settings.py"
    settings.write_text(settings.read_text() + '\nINSTALLED_APPS += ["shop"]\n')
    for block in read_blocks(ROOT / "README.md"):
        if block.file:
            type_block(tmp_path, block)
    run(tmp_path, "manage.py", "migrate", "--verbosity", "0")
    return tmp_path


def assert_personalized(seen):
    """Assert that the home page shows and counts the sandbox's hero, and remembers ``utm_medium``."""
    assert seen["titles"][0] == seen["titles"][1]
    assert set(seen["titles"]) <= list_hero_titles()
    assert set(seen["titles"][2:]) == list_hero_titles("Email visitors")
    assert seen["click"] == "/category/packs/"
    assert seen["counts"] == [4, 1]


def test_quickstart(site):
    """All pages and their links exist, and the home page is personalized."""
    seen = visit(site)
    assert_personalized(seen)
    assert seen["links"] > 4
    for part in (r"\A\s*<p>(?!Free returns)", r"(<li>.*){4}", 'data-beacon="/moe/beacon/"'):
        assert re.search(part, seen["home"], re.DOTALL), part


def test_readme(readme):
    """The pages of the sample content are the reader's own, so only the home page exists."""
    run(readme, "manage.py", "check", "--fail-level", "WARNING")
    seen = read_findings(readme, [])
    assert seen["checks"] == []
    assert_personalized(seen)


def check_production(site):
    """Without DEBUG and with credentials, the system checks of the package find nothing either."""
    credentials = {"WORKSPACE_ID": "SITE", "API_KEY": "f3b1c2d4e5a6", "DATA_CENTER": "03"}
    lines = [f"MOE_PERSONALIZE[{name!r}] = {value!r}" for name, value in credentials.items()]
    lines = ["from mysite.settings import *", "DEBUG = False", "STATIC_ROOT = BASE_DIR / 'static'", *lines]
    (site / "mysite/production.py").write_text("\n".join(lines))
    type_command(site, "python manage.py check --deploy --tag moe_personalize --settings mysite.production")


@pytest.mark.parametrize("page", TYPED, ids=lambda page: page.stem)
def test_howto(site, page):
    """Typed after the quickstart, the page gives a site without a finding, whose pages and links exist."""
    type_page(site, page)
    seen = visit(site, page)
    if page.stem == "testing":
        run(site, "-m", "pytest", "-q", "-n", "2")
    if page.stem == "languages":
        assert seen["german"]
    if page.stem == "deployment":
        check_production(site)


def test_all_howtos_together(site):
    """Typed one after the other, no page drops what another page has set."""
    for page in TYPED:
        for block in read_blocks(page):
            if block.file and "not typed" not in block.notes:
                type_block(site, block)
    for command in ("migrate", "createcachetable"):
        run(site, "manage.py", command)
    seen = visit(site)
    texts = "".join(page.read_text() for page in TYPED)
    named = set(re.findall(r'^MOE_PERSONALIZE(?:\[|\.setdefault\()"(\w+)"', texts, re.MULTILINE)) - {"LEARN_ROUTES"}
    assert set(seen["settings"]) >= named
    assert len(seen["paths"]) > 8


def test_what_is_not_typed():
    """Only few blocks can't be typed as printed, and each has a reason."""
    blocks = [block for page in [QUICKSTART, *PAGES] for block in read_blocks(page)]
    notes = [block.notes["not typed"] for block in blocks if "not typed" in block.notes]
    assert len(notes) < 12

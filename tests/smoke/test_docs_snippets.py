"""The code in the documents runs, block by block. test_docs_typed.py types whole pages."""

import ast
import json
import os
import re
import shlex
from pathlib import Path

import pytest
from django.core.management import load_command_class
from django.template.engine import Engine

from django_moe_personalize.sandbox.workspace import WorkspaceError, parse_workspace
from tests.documents import DOCS, PAGES, read, read_blocks, read_rows, read_words
from tests.smoke.test_docs_typed import list_hero_titles

BLOCKS = [block for page in PAGES for block in read_blocks(page)]
ELSEWHERE = ("django_moe_personalize.contrib.wagtail", "wagtailcore_tags")
"""What needs Wagtail. tests/sites/test_wagtail_blocks.py runs such blocks."""


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


@pytest.mark.parametrize("block", select("python"))
def test_python_is_python(block):
    """A block compiles, and its imports from the package and from Django work."""
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("django"):
            if node.module in ELSEWHERE:
                continue
            exec(ast.unparse(node), {})  # noqa: S102 - see execute()


@pytest.mark.parametrize(
    "block", [param for param in select("html+django") if ELSEWHERE[1] not in param.values[0].code]
)
def test_template_compiles(block):
    """A block of a template compiles with the library loaded."""
    library = "django_moe_personalize.templatetags.moe_personalize"
    libraries = {"moe_personalize": library, "static": "django.templatetags.static"}
    Engine(libraries=libraries, builtins=[library]).from_string(block.code)


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


def test_outside_a_request(upstream):
    """The email of outside.md has the customer's headline and counts it. Its list names the active experiences."""
    namespace = execute(*read_python("howto/outside.md"))
    customer = type("Customer", (), {"number": "1"})
    assert namespace["write_mail"](customer) in list_hero_titles("Gold members")
    assert upstream.count("hero-banner") == (1, 0)
    assert "hero-banner" in namespace["list_active"]()
    assert "spring-sale" not in namespace["list_active"]()


@pytest.mark.parametrize(
    ("page", "columns"),
    [
        ("settings", ("name", "default", "meaning")),
        ("checks", ("id", "says")),
        ("errors", ("error", "below", "code", "retryable", "when")),
    ],
)
def test_each_row_has_an_anchor(page, columns):
    """People can link to a setting, a check or an error, for example ``settings.html#cache-ttl``."""
    if not (folder := os.environ.get("DOCS_HTML")):
        pytest.skip("DOCS_HTML names no folder of built documents: use tox.")
    html = Path(folder, "reference", f"{page}.html").read_text()
    names = [read_words(row[0])[0] for row in read_rows(read(f"reference/{page}.md"), *columns)]
    anchors = [name.rpartition(".")[2].lower().replace("_", "-") for name in names]
    assert len(anchors) > 10
    assert [anchor for anchor in anchors if html.count(f' id="{anchor}"') != 1 or f'href="#{anchor}"' not in html] == []

"""The workspace file in the browser: the mistakes and their lines, the hidden API key, other versions of the file."""

import json
import logging
import re
import stat

import pytest

from django_moe_personalize.sandbox.workspace import WorkspaceFile
from django_moe_personalize.workbench import Workbench
from django_moe_personalize.workbench.editor import Draft, Editor, find_problems
from tests.sandbox.ways import API_KEY
from tests.workbench.conftest import WORKSPACE, read_words


def open_text(bench):
    """Return the text and the version in the form, as a browser reads them: without CR."""
    page = bench.send("GET", "/workspace/").body.decode().replace("\r", "")
    text = re.search(r"<textarea[^>]*>\n(.*?)</textarea>", page, re.DOTALL)[1]
    for name, character in (("quot", '"'), ("lt", "<"), ("gt", ">"), ("amp", "&")):
        text = text.replace(f"&{name};", character)
    return {"text": text, "stamp": re.search(r'name="stamp" value="([^"]*)"', page)[1]}


def save(bench, form, old="", new="", **more):
    """Change the text and send the form. A browser sends line ends as CRLF."""
    text = form["text"].replace(old, new, 1).replace("\n", "\r\n")
    return bench.post("/workspace/", {**form, "text": text, **more})


def test_saved_text_counts_from_the_next_request_on(bench):
    """The file keeps its API key, its mode and its other bytes."""
    bench.path.chmod(0o640)
    before = bench.path.read_text()
    form = open_text(bench)
    assert '"api_key": "(hidden 1)"' in form["text"]
    assert save(bench, form, "Welcome back", "Grüß Gott").headers["location"] == "/workspace/?saved"
    assert bench.path.read_text(encoding="utf-8") == before.replace("Welcome back", "Grüß Gott")
    assert stat.S_IMODE(bench.path.stat().st_mode) == 0o640
    assert "Grüß Gott" in bench.get()
    assert "Saved." in bench.get("/workspace/", saved="")
    assert [path.name for path in bench.path.parent.iterdir()] == ["moe.json"]


def test_mistake_has_its_place_and_line_and_is_not_saved(bench):
    """The messages are those of the file loader. The text stays in the form."""
    before = bench.path.read_bytes()
    page = save(bench, open_text(bench), '"weight": 3', '"weight": "3"').body.decode()
    line = before.decode()[: before.decode().index('"weight"')].count("\n") + 1
    assert f'data-line="{line}">Line {line}</a>' in page
    assert "experiences[0].content[1].variations[0].weight: must be a number above 0, not &quot;3&quot;" in page
    assert "&quot;weight&quot;: &quot;3&quot;" in page.partition("<textarea")[2]
    assert bench.path.read_bytes() == before
    assert "Line 1 · line 1, column 2: not valid JSON" in read_words(save(bench, {"text": "{", "stamp": ""}))


def test_a_hidden_key_that_the_file_does_not_have_is_a_mistake(bench):
    """The text never replaces the API key with "(hidden 2)"."""
    before = bench.path.read_bytes()
    page = read_words(save(bench, open_text(bench), "(hidden 1)", "(hidden 2)"))
    assert 'Line 3 · api_key: the file has no key "(hidden 2)"' in page
    assert bench.path.read_bytes() == before


def test_half_of_a_character_breaks_no_page(bench):
    """JSON may have such a text. The pages show a replacement."""
    bench.save(json.dumps({**WORKSPACE, "experiences": [{"key": "\ud800", "payload": {"T": "\udfff"}}]}))
    assert "&#55296;" in bench.send("GET", "/").body.decode()
    assert "&#57343;" in bench.send("GET", "/visitor/", "customer_id=1").body.decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{\n"workspace_id": "a",\n"api_key": "b"}', []),
        (
            '[{"api_key": "secret"}]',
            [(0, "must be an object"), (0, '"workspace_id" is missing'), (0, '"api_key" is missing')],
        ),
        ('{"workspace_id": "a", "api_key": "b", "nope": [[1], {}]}', [(1, "nope: unknown field (valid")]),
        (
            '{"workspace_id": "a", "api_key": "b",\n"customers": {"x: y": {\n"a": [1, 2]}}}',
            [(3, 'customers["x: y"].a: must be a string')],
        ),
        (
            '{"workspace_id": "a", "api_key": "b", "experiences": [\n{"key": "k", "payload": {}},\n{"key": "j"}]}',
            [(3, 'experiences[1]: "payload" is missing')],
        ),
        ('{"workspace_id": "a", "api_key": ["secret"]}', [(1, "api_key: must be a string that is not empty")]),
        ('{"api_key": NaN}', [(0, "not valid JSON: NaN")]),
    ],
)
def test_each_mistake_has_its_line(text, expected):
    """A mistake without a place has no line, and doesn't quote the file."""
    found = find_problems(text, "moe.json")
    assert [problem.line for problem in found] == [line for line, _ in expected]
    assert [text for problem, (_, text) in zip(found, expected, strict=True) if text not in problem.text] == []
    assert "secret" not in str(found)


@pytest.mark.parametrize("broken", ["{", '"api_key": ', ""])
def test_api_key_is_hidden_in_a_broken_file_too(bench, broken):
    """The page shows the file as it is on the disk, with its mistakes. Every page says that it doesn't count."""
    bench.save(json.dumps(WORKSPACE, indent=2).replace("{", f"]{broken}", 1))
    response = bench.send("GET", "/workspace/")
    assert API_KEY not in response.body.decode()
    assert "1 mistake." in read_words(response)
    assert "moe.json has 1 mistake. The sandbox keeps the version of" in bench.get()
    assert "Variation 1" in bench.get("/visitor/", customer_id="1")


def test_api_keys_return_to_their_places(bench):
    """A variable may have the same name. A new key replaces the old one, and an unknown number stays as it is."""
    text = json.dumps({**WORKSPACE, "experiences": [{"key": "plain", "payload": {"api_key": "other"}}]}, indent=2)
    bench.save(text)
    form = open_text(bench)
    assert "other" not in form["text"]
    save(bench, form, "plain", "simple")
    assert bench.path.read_text() == text.replace("plain", "simple")
    save(bench, open_text(bench), '"(hidden 1)"', '"new"')
    assert json.loads(bench.path.read_text())["api_key"] == "new"
    save(bench, open_text(bench), '"(hidden 1)"', '"(hidden 3)"')
    assert json.loads(bench.path.read_text())["api_key"] == "new"


def test_other_version_on_the_disk_is_kept(bench):
    """Another program has changed the file meanwhile: only "Save anyway" replaces its version."""
    form = open_text(bench)
    bench.save({**WORKSPACE, "locales": ["fr"]})
    page = read_words(save(bench, form, "Welcome back", "Hello"))
    assert "Not saved: the file has changed on the disk" in page
    assert "Save anyway" in page
    assert "Hello" in page
    assert json.loads(bench.path.read_text())["locales"] == ["fr"]
    assert save(bench, form, "Welcome back", "Hello", anyway="1").status == 303
    assert "locales" not in json.loads(bench.path.read_text())
    assert "Hello" in bench.get()


def test_line_ends_stay(bench):
    """A file with CRLF keeps them."""
    bench.save(json.dumps(WORKSPACE, indent=2).replace("\n", "\r\n"))
    before = bench.path.read_bytes()
    save(bench, open_text(bench), "Welcome", "Come")
    assert bench.path.read_bytes() == before.replace(b"Welcome", b"Come")


def test_file_that_is_gone(bench):
    """The page says so, and a saved text makes the file again."""
    form = open_text(bench)
    text = bench.path.read_text()
    bench.path.unlink()
    assert "moe.json: cannot be read: No such file or directory. Check the path." in bench.get("/workspace/")
    assert save(bench, {**form, "text": text}, anyway="1").status == 303
    assert bench.path.read_text() == text


def test_folder_that_nobody_may_write(bench, monkeypatch):
    """The text stays in the form, the message has the cause, and no other file stays in the folder."""

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    page = read_words(save(bench, open_text(bench), "Welcome", "Come"))
    assert "moe.json: cannot be written: Permission denied. Check the permissions." in page
    assert "Come back" in page
    assert [path.name for path in bench.path.parent.iterdir()] == ["moe.json"]


def test_file_that_another_program_changes(bench, caplog):
    """The pages use it from the next request on, and don't name the mistakes of an earlier version."""
    caplog.set_level(logging.CRITICAL)
    bench.save("{")
    assert "1 mistake" in bench.get()
    bench.save({**WORKSPACE, "experiences": [{"key": "fresh", "payload": {}}]})
    assert "1 experience, " in bench.get()
    assert "mistake" not in bench.get()


def test_link_leads_to_its_file(bench, tmp_path):
    """A symbolic link stays, and its target gets the text."""
    link = tmp_path / "link.json"
    link.symlink_to(bench.path)
    editor = Editor(WorkspaceFile(link))
    assert editor.save(Draft(bench.path.read_text().replace("Welcome", "Come"), editor.stamp), anyway=False) is None
    assert link.is_symlink()
    assert "Come back" in bench.path.read_text()


def test_workspace_of_the_package_is_read_only(bench, monkeypatch):
    """The page says how to start with a copy, and a form changes nothing."""
    assert Editor(WorkspaceFile()).is_read_only
    form, before = open_text(bench), bench.path.read_bytes()
    monkeypatch.setattr("django_moe_personalize.workbench.editor.SHIPPED", bench.path)
    bench.workbench = Workbench(bench.engine, bench.injector, bench.file)
    page = read_words(save(bench, form, "Welcome", "Come"))
    assert "you can't edit it here" in page
    assert "python manage.py moe_sandbox --workspace workspace.json" in page
    assert "Check and save" not in page
    assert bench.path.read_bytes() == before

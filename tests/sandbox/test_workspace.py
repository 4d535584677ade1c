"""The workspace file: its forms, and the messages about its mistakes."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from django.http import HttpResponse
from django.template import engines

from django_moe_personalize.client import get_engine
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.workspace import (
    SHIPPED,
    State,
    WorkspaceError,
    WorkspaceFile,
    load_workspace,
    parse_workspace,
)
from tests.conftest import settle
from tests.processes import together
from tests.sandbox.ways import API_KEY, WORKSPACE_ID, build_engine, fetch

MINIMAL = {"workspace_id": "W", "api_key": "k"}
MIDNIGHT = "2026-12-02T00:00:00Z"


def problems(data: Any) -> list[str]:
    """Return the mistakes in a workspace, without the file name that begins each of them."""
    with pytest.raises(WorkspaceError) as caught:
        parse_workspace(data)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [problem.removeprefix("workspace: ") for problem in caught.value.problems]


def with_experience(**fields: Any) -> dict[str, Any]:
    """Return a workspace with one experience."""
    return {**MINIMAL, "experiences": [{"key": "k", "payload": {}, **fields}]}


def with_variable(variable: Any) -> dict[str, Any]:
    """Return a workspace with one offering and one experience, whose payload has one variable."""
    return {**with_experience(payload={"T": variable}), "offerings": {"mugs": {}}}


def with_rule(rule: Any) -> dict[str, Any]:
    """Return a workspace with one audience."""
    return {**MINIMAL, "audiences": {"A": rule}}


def served(payload: Any, **fields: Any) -> Any:
    """Return the wire form of a payload."""
    return fetch(build_engine({"key": "k", "payload": payload}, **fields), {"experience_key": ["k"]})["k"]["payload"]


def test_shipped_workspace_is_valid_and_complete() -> None:
    """The shipped workspace loads, and has the credentials, keys and products that the example shop needs."""
    workspace = load_workspace()
    offered = {
        each["dp_offering_id"]
        for content in workspace.definitions["recommendations"].contents
        for variation in content.variations
        for value in [variation.payloads[""]["offerings"]["value"]]
        for each in (json.loads(value) if isinstance(value, str) else value)
    }
    assert (workspace.workspace_id, workspace.api_key) == ("SANDBOX_DEBUG", "sandbox-key")
    assert "sandbox-key" not in repr(workspace)
    assert {"hero-banner", "promo-strip", "cart-upsell", "recommendations"} < set(workspace.definitions)
    assert workspace.definitions["spring-sale"].state(0) is State.PAUSED
    assert workspace.definitions["winter-gala"].state(0) is State.SCHEDULED
    assert len(offered) == 12


def test_every_problem_begins_with_the_file_and_the_place(tmp_path: Path) -> None:
    """The same file without the mistake loads."""
    file = tmp_path / "mine.json"
    file.write_bytes(SHIPPED.read_bytes())
    # An audience's rule is a function, which equals only itself.
    loaded = [repr(each.definitions) for each in (load_workspace(file), load_workspace(str(file)), load_workspace())]
    assert len({re.sub(" at 0x[0-9a-f]+", "", text) for text in loaded}) == 1
    broken = json.loads(SHIPPED.read_bytes())
    broken["experiences"][0]["content"][8]["variations"][0]["weight"] = "a"
    file.write_text(json.dumps(broken), "utf-8")
    with pytest.raises(WorkspaceError) as caught:
        load_workspace(file)
    place = "experiences[0].content[8].variations[0].weight"
    assert str(caught.value) == f'mine.json: {place}: must be a number above 0, not "a"'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n  "a": nope\n}', "mine.json: line 2, column 8: not valid JSON: "),
        (b'{"a": NaN}', "mine.json: not valid JSON: NaN is not a JSON number"),
        (b"\xff\xfe\xfd", "mine.json: not valid JSON: "),
        (b"[" * 100_000, "mine.json: not valid JSON: "),
        (b"[]", "mine.json: must be an object, not []"),
    ],
)
def test_broken_json_is_reported_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    """The message has the line and column if the JSON parser knows them."""
    file = tmp_path / "mine.json"
    file.write_bytes(content)
    with pytest.raises(WorkspaceError) as caught:
        load_workspace(file)
    assert str(caught.value).startswith(message)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    """The message has the path, the reason of the operating system and advice."""
    with pytest.raises(WorkspaceError, match=r"none\.json: cannot be read: No such file .*\. Check the path\."):
        load_workspace(tmp_path / "none.json")


def test_all_mistakes_are_reported_together() -> None:
    """The error has every mistake of the file."""
    data = {
        "workspace_id": "",
        "api_ky": "k",
        "experiences": [{"key": "a", "payload": {"T": None}, "control_group": 101}, "x"],
    }
    assert problems(data) == [
        'api_ky: unknown field, did you mean "api_key"?',
        'workspace_id: must be a string that is not empty, not ""',
        '"api_key" is missing',
        'experiences[1]: must be an object, not "x"',
        "experiences[0].payload.T: must not be null. Remove the variable.",
        "experiences[0].control_group: must be a number from 0 to 100, not 101",
        'experiences[1]: "key" is missing',
        'experiences[1]: "payload" is missing',
    ]


EXPERIENCES = [
    ({"status": "active"}, 'status: unknown value "active", did you mean "Active"?'),
    ({"status": 1}, "status: unknown value 1 (valid: Active, "),
    ({"audience": "X"}, 'audience: unknown audience "X" (valid: All users)'),
    ({"audience": 1}, "audience: must be the name of an audience or a rule, not 1"),
    ({"audience": {}}, "audience: must have at least one condition"),
    ({"content": []}, 'payload: cannot be next to "content". Move it into an entry'),
    ({"variations": []}, 'payload: cannot be next to "variations". Move it into a'),
    ({"start": "soon"}, 'start: must be an ISO 8601 time with a zone such as "2026-'),
    ({"start": 5}, "start: must be an ISO 8601 time with a zone"),
    ({"end": "2026-12-01T18:00:00"}, "end: must be an ISO 8601 time with a zone"),
    (dict.fromkeys(["start", "end"], MIDNIGHT), f'end: must be later than "start", not "{MIDNIGHT}"'),
    ({"locales": {"de": {}}}, 'locales.de: not in the "locales" of the workspace'),
]
"""Fields of an experience with a mistake, and the message after the place of the experience."""

NUMBER, BOOLEAN = "a number or a string that contains one", 'true, false, "true" or "false"'
JSON = "an object, an array or a string that contains JSON"
VARIABLES = [
    ({"value": 1, "datatype": "number"}, 'datatype: unknown field, did you mean "data_type"?'),
    ({"value": 1, "data_type": "int"}, 'data_type: unknown value "int" (valid: boolean, '),
    *(
        ({"value": value, "data_type": kind}, f'value: must be {valid} for the data_type "{kind}", not ')
        for kind, valid, values in [
            ("string", "a string", [1]),
            ("number", NUMBER, ["x", True]),
            ("float", NUMBER, ["nan"]),
            ("boolean", BOOLEAN, ["yes", 1]),
            ("json", JSON, ["{", 1, "[" * 100_000]),
        ]
        for value in values
    ),
    ({"$offerings": ["mug"]}, '$offerings[0]: unknown offering "mug", did you mean "mugs"?'),
    *(
        ({"$offerings": wrong}, f"$offerings: must be an array of strings, not {shown}")
        for wrong, shown in [("mug", '"mug"'), (None, "null"), (5, "5"), ([{}], "[{}]")]
    ),
    ({"$offerings": [], "as": "list"}, 'as: unknown value "list" (valid: array, object, string)'),
]
"""Variables of a payload with a mistake, and the message after the place of the variable."""


RULES = [
    ([], ": must be an object, not []"),
    ({}, ": must have at least one condition"),
    ({"//": "only a note"}, ": must have at least one condition"),
    ({"Hour": 5}, '.Hour: did you mean "hour"? For an attribute with this name write "session.Hour"'),
    (
        {"custmer.x": 1},
        '["custmer.x"]: unknown word "custmer" before the dot, did you mean "customer"?',
    ),
    ({"customer.": 1}, '["customer."]: must have the name of an attribute after the dot'),
    ({"a": None}, ".a: must be a string, a number, true or false, not null"),
    ({"a": {}}, ".a: must have at least one comparison (valid: is, is_not, "),
    ({"a": {"equals": 1}}, ".a.equals: unknown comparison"),
    ({"a": {"start_with": "x"}}, '.a.start_with: unknown comparison, did you mean "starts_with"?'),
    ({"a": {"gte": "many"}}, '.a.gte: must be a number, not "many"'),
    ({"a": {"exists": "yes"}}, '.a.exists: must be true or false, not "yes"'),
    ({"a": {"in": "x"}}, '.a.in: must be an array of values, not "x"'),
    ({"a": []}, ".a: must be an array of values, not []"),
    ({"a": [{}]}, ".a[0]: must be a string, a number, true or false, not {}"),
    ({"and": {}}, ".and: must be an array of rules, not {}"),
    ({"or": []}, ".or: must be an array of rules, not []"),
    ({"or": [{"a": 1}, 5]}, ".or[1]: must be an object, not 5"),
    ({"not": "x"}, '.not: must be an object, not "x"'),
    ({"day": "Sonntag"}, '.day: unknown value "Sonntag" (valid: Friday, '),
    ({"day": "Sundays"}, '.day: unknown value "Sundays", did you mean "Sunday"?'),
    ({"day": []}, ".day: unknown value [] (valid: Friday, "),
    ({"device": ["Mobile", "phone"]}, '.device: unknown value "phone" (valid: Desktop, Mobile, Tablet)'),
    ({"hour": 24}, ".hour: must be an hour (0 to 23), an array of hours, or {"),
    ({"hour": True}, ".hour: must be an hour"),
    ({"hour": []}, ".hour: must be an hour"),
    ({"hour": {"from": 5}}, ".hour: must be an hour"),
    ({"hour": {"from": 5, "until": "x"}}, ".hour: must be an hour"),
    ({"ip": "203.0.113.1/24"}, '.ip: must be a network such as "203.0.113.0/24" (all bits'),
    ({"ip": ["::/0", 5]}, ".ip: must be a network"),
]
"""Rules with a mistake, and the message after the name of the audience."""


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"zzz": 1}, "zzz: unknown field (valid: api_key, audiences, "),
        ({"EXPERIENCES": []}, 'EXPERIENCES: unknown field, did you mean "experiences"?'),
        ({"experiences": {}}, "experiences: must be an array, not {}"),
        ({"audiences": []}, "audiences: must be an object, not []"),
        ({"locales": "de"}, 'locales: must be an array of strings, not "de"'),
        ({"identity_resolution": [1]}, "identity_resolution: must be an array of strings, not [1]"),
        ({"offering_actions": 1}, "offering_actions: must be true or false, not 1"),
        ({"global_control_group": True}, "global_control_group: must be a number from 0 to 100, not true"),
        ({"customers": {"a b": 1}}, 'customers["a b"]: must be an object, not 1'),
        ({"customers": {"1": {"x": [1]}}}, "customers.1.x: must be a string, a number, true or false"),
        ({"offerings": {"x": 1}}, "offerings.x: must be an object, not 1"),
        ({"experiences": [{"key": "k", "content": []}]}, "experiences[0].content: must be an array of entries, not []"),
        *(
            ({"experiences": [{"key": "k", "variations": v}]}, "experiences[0].variations: must be an array")
            for v in ([], {})
        ),
        ({"experiences": [{"key": "k", "payload": {}}] * 2}, "experiences[1].key: an earlier experience has the key"),
        *((with_experience(**fields), f"experiences[0].{problem}") for fields, problem in EXPERIENCES),
        *((with_variable(variable), f"experiences[0].payload.T.{problem}") for variable, problem in VARIABLES),
        *((with_rule(rule), f"audiences.A{problem}") for rule, problem in RULES),
    ],
)
def test_a_mistake_is_reported_with_its_place(data: Any, problem: str) -> None:
    """The message has the place and the valid values."""
    found = problems(MINIMAL | data)
    assert any(each.startswith(problem) for each in found), found
    assert len({each.split(": ")[0] for each in found}) == len(found), found


def test_long_values_are_shortened_in_a_message() -> None:
    """A message stays readable for any content of the file."""
    (problem,) = problems(with_rule(["x" * 500]))
    assert len(problem) < 150


def test_short_forms_get_their_data_type() -> None:
    """The data type follows from a plain value; the long form keeps its own."""
    long_forms = {
        "S": {"value": "12", "data_type": "number"},
        "B": {"value": "true", "data_type": "boolean"},
        "J": {"value": "[1]", "data_type": "json"},
        "F": {"value": 1, "data_type": "float"},
        "T": {"value": "x", "data_type": "string"},
        "I": {"value": 3},
    }
    short_forms = {"//": "note", "s": "x", "n": 3, "f": 2.5, "b": False, "o": {"a": 1}, "a": [1]}
    assert served({**short_forms, **long_forms}) == {
        "s": {"value": "x", "data_type": "string"},
        "n": {"value": 3, "data_type": "number"},
        "f": {"value": 2.5, "data_type": "float"},
        "b": {"value": False, "data_type": "boolean"},
        "o": {"value": {"a": 1}, "data_type": "json"},
        "a": {"value": [1], "data_type": "json"},
        **long_forms,
        "I": {"value": 3, "data_type": "number"},
    }


def test_offerings_have_each_form_of_the_contract() -> None:
    """The forms are an array, a string that contains the array, and an object with the array in it."""
    payload = {shape: {"$offerings": ["mug"], "as": shape} for shape in ("string", "array", "object")}
    found = served({**payload, "default": {"$offerings": ["mug"]}}, offerings={"mug": {"title": "Mug"}})
    array = found["array"]["value"]
    assert array[0]["dp_offering_id"] == "mug"
    assert array[0]["offering_content"] == {"type": "json", "payload": {"title": "Mug"}}
    assert array[0]["offering_context"]["moe_offering_name"] == "Mug"
    assert json.loads(found["string"]["value"]) == array == found["default"]["value"]
    assert found["object"]["value"] == {"offerings": array}


def test_an_experience_needs_no_content_entries() -> None:
    """The variations or the payload may be in the experience itself."""
    workspace = parse_workspace(
        {
            **MINIMAL,
            "experiences": [
                {"key": "a", "variations": [{"payload": {}}, {"payload": {}, "weight": 3, "name": "bold"}]},
                {"key": "b", "name": "Bee", "payload": {}, "audience": {"x": "1"}},
                {"key": "c", "content": [{"payload": {}}, {"variations": [{"payload": {}}]}]},
            ],
        }
    )
    (content,) = workspace.definitions["a"].contents
    assert [(each.variation_id, each.name, each.weight) for each in content.variations] == [
        ("1", "", 1.0),
        ("2", "bold", 3.0),
    ]
    assert workspace.definitions["b"].contents[0].audience.name == 'Inline {"x": "1"}'
    assert [each.variations[0].variation_id for each in workspace.definitions["c"].contents] == ["1", "2"]


class Editor:
    """A person who edits a workspace file. Each version has its own modification time."""

    def __init__(self, path: Path) -> None:
        self.path, self.time = path, 1_790_000_000

    def save(self, text: str | bytes) -> None:
        self.time += 1
        self.path.write_bytes(text if isinstance(text, bytes) else text.encode())
        os.utime(self.path, (self.time, self.time))

    def save_title(self, title: str, **fields: Any) -> None:
        experience = {"key": "hero-banner", "payload": {"Title": title}}
        self.save(json.dumps({"workspace_id": WORKSPACE_ID, "api_key": API_KEY, "experiences": [experience], **fields}))


@pytest.fixture
def editor(tmp_path: Path) -> Editor:
    editor = Editor(tmp_path / "moe.json")
    editor.save_title("first")
    return editor


def read_title(engine: Engine) -> str:
    return fetch(engine, {"identifiers": {"customer_id": "1"}})["hero-banner"]["payload"]["Title"]["value"]


def test_a_changed_file_counts_from_the_next_request_on(editor: Editor) -> None:
    """The engine and its ledger stay, and so do the credentials, which clients have already."""
    engine = Engine(WorkspaceFile(editor.path))
    assert (read_title(engine), engine.refresh()) == ("first", editor.time)
    ledger = engine.ledger
    editor.save_title("second", api_key="other")
    assert read_title(engine) == "second"
    assert engine.ledger is ledger
    assert engine.refresh() > editor.time
    editor.save_title("third")
    body = {"experience_key": ["hero-banner"], "identifiers": {"customer_id": "1"}}
    assert engine.explain(body)[0].entry["payload"]["Title"]["value"] == "third"


@pytest.mark.parametrize("mistake", ["{", "[]", b"\xff", None], ids=["cut", "wrong", "bytes", "gone"])
def test_a_broken_edit_keeps_the_last_good_workspace(editor: Editor, caplog: Any, mistake: str | bytes | None) -> None:
    """The log names the mistake once for each edit, and says when the file is right again."""
    engine = Engine(WorkspaceFile(editor.path))
    if mistake is None:
        editor.path.unlink()
    else:
        editor.save(mistake)
    assert [read_title(engine) for _ in range(3)] == ["first"] * 3
    (line,) = caplog.messages
    assert line.startswith("The sandbox can't use the new workspace file, so it keeps the old workspace: ")
    assert "moe.json: " in line
    editor.save_title("right again")
    assert read_title(engine) == "right again"
    assert caplog.messages[1:] == ["The workspace file moe.json has no mistakes now, so the sandbox uses it."]
    assert {record.levelname for record in caplog.records} == {"ERROR", "WARNING"}


def test_threads_read_a_changed_file_once(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several requests may see a change at the same time."""
    file, read = WorkspaceFile(editor.path), []
    monkeypatch.setattr(file, "_read", lambda: read.append(1))
    editor.save_title("second")
    together(8, lambda index: file.refresh())
    assert read == [1]
    # This thread sees a change, but another thread reads the file before this thread may.
    stamps = iter([(1, 1), file._stamp])
    monkeypatch.setattr(file, "_read_stamp", lambda: next(stamps))
    file.refresh()
    assert read == [1]


PAGE = """{% load moe_personalize %}{% experience "hero-banner" %}{{ experience.Title }}{% endexperience %}
{% experience "new-banner" %}{{ experience.Title }}{% fallback %}nothing{% endexperience %}"""


def test_pages_show_a_changed_file_at_once(editor: Editor, visit: Any, serve: Any, settings: Any) -> None:
    """Neither fresh answers in memory nor the metadata hide the change. Without a change, the memory answers."""
    settings.MOE_PERSONALIZE = {**settings.MOE_PERSONALIZE, "SANDBOX": editor.path, "CACHE_TTL": 3600}
    serve(lambda request: HttpResponse(engines["django"].from_string(PAGE).render({}, request)))

    def read() -> list[str]:
        page = visit("/page/").content.decode().split()
        settle()
        return page

    assert [read(), read()] == [["first", "nothing"]] * 2
    new = {"key": "new-banner", "payload": {"Title": "new"}}
    hero = {"key": "hero-banner", "payload": {"Title": "second"}}
    editor.save_title("", experiences=[hero, new])
    assert [read(), read()] == [["second", "new"]] * 2
    get_engine().handle = None  # A further call of the sandbox would fail.
    assert read() == ["second", "new"]

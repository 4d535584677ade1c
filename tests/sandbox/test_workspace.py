"""The workspace file: its forms, and the messages about its mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest

from django_moe_personalize.sandbox import WorkspaceError, load_workspace, parse_workspace
from django_moe_personalize.sandbox.workspace import SHIPPED, State
from tests.sandbox.ways import build_engine, fetch

MINIMAL = {"workspace_id": "W", "api_key": "k"}


def problems(data: Any) -> list[str]:
    """Return the mistakes in a workspace, without the file name that begins each of them."""
    with pytest.raises(WorkspaceError) as caught:
        parse_workspace(data)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [problem.removeprefix("workspace: ") for problem in caught.value.problems]


def with_experience(**fields: Any) -> dict[str, Any]:
    """Return a workspace with one experience."""
    return {**MINIMAL, "experiences": [{"key": "k", "payload": {}, **fields}]}


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
    assert load_workspace(file) == load_workspace(str(file)) == load_workspace()
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


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({**MINIMAL, "zzz": 1}, "zzz: unknown field (valid: api_key, audiences, "),
        ({**MINIMAL, "EXPERIENCES": []}, 'EXPERIENCES: unknown field, did you mean "experiences"?'),
        ({**MINIMAL, "experiences": {}}, "experiences: must be an array, not {}"),
        ({**MINIMAL, "audiences": []}, "audiences: must be an object, not []"),
        ({**MINIMAL, "locales": "de"}, 'locales: must be an array of strings, not "de"'),
        ({**MINIMAL, "identity_resolution": [1]}, "identity_resolution: must be an array of strings, not [1]"),
        ({**MINIMAL, "offering_actions": 1}, "offering_actions: must be true or false, not 1"),
        ({**MINIMAL, "global_control_group": True}, "global_control_group: must be a number from 0 to 100, not true"),
        ({**MINIMAL, "customers": {"a b": 1}}, 'customers["a b"]: must be an object, not 1'),
        ({**MINIMAL, "customers": {"1": {"x": [1]}}}, "customers.1.x: must be a string, a number, true or false"),
        ({**MINIMAL, "offerings": {"x": 1}}, "offerings.x: must be an object, not 1"),
        (with_experience(status="active"), 'experiences[0].status: unknown value "active", did you mean "Active"?'),
        (with_experience(status=1), "experiences[0].status: unknown value 1 (valid: Active, "),
        (with_experience(audience="X"), 'experiences[0].audience: unknown audience "X" (valid: All users)'),
        (with_experience(audience=1), "experiences[0].audience: must be the name of an audience or a rule, not 1"),
        (with_experience(audience={}), "experiences[0].audience: must have at least one condition"),
        (with_experience(content=[]), 'experiences[0].payload: cannot be next to "content". Move it into an entry'),
        (with_experience(variations=[]), 'experiences[0].payload: cannot be next to "variations". Move it into a'),
        ({**MINIMAL, "experiences": [{"key": "k", "content": []}]}, "experiences[0].content: must have at least one"),
        (
            {**MINIMAL, "experiences": [{"key": "k", "variations": []}]},
            "experiences[0].variations: must have at least one entry",
        ),
        (
            {**MINIMAL, "experiences": [{"key": "k", "payload": {}}] * 2},
            'experiences[1].key: an earlier experience has the key "k" too',
        ),
        (with_experience(start="soon"), 'experiences[0].start: must be an ISO 8601 time with a zone such as "2026-'),
        (with_experience(start=5), "experiences[0].start: must be an ISO 8601 time with a zone"),
        (with_experience(end="2026-12-01T18:00:00"), "experiences[0].end: must be an ISO 8601 time with a zone"),
        (
            with_experience(start="2026-12-02T00:00:00Z", end="2026-12-02T00:00:00Z"),
            'experiences[0].end: must be later than "start", not "2026-12-02T00:00:00Z"',
        ),
        (with_experience(locales={"de": {}}), 'experiences[0].locales.de: not in the "locales" of the workspace'),
        (
            with_experience(payload={"T": {"value": 1, "datatype": "number"}}),
            'experiences[0].payload.T.datatype: unknown field, did you mean "data_type"?',
        ),
        (
            with_experience(payload={"T": {"value": 1, "data_type": "int"}}),
            'experiences[0].payload.T.data_type: unknown value "int" (valid: boolean, ',
        ),
        *(
            (
                with_experience(payload={"T": {"value": value, "data_type": data_type}}),
                f'experiences[0].payload.T.value: must be {valid} for the data_type "{data_type}", not ',
            )
            for value, data_type, valid in [
                (1, "string", "a string"),
                ("x", "number", "a number or a string that contains one"),
                ("nan", "float", "a number or a string that contains one"),
                (True, "number", "a number or a string that contains one"),
                ("yes", "boolean", 'true, false, "true" or "false"'),
                (1, "boolean", 'true, false, "true" or "false"'),
                ("{", "json", "an object, an array or a string that contains JSON"),
                (1, "json", "an object, an array or a string that contains JSON"),
                ("[" * 100_000, "json", "an object, an array or a string that contains JSON"),
            ]
        ),
        (
            {**with_experience(payload={"O": {"$offerings": ["mug"]}}), "offerings": {"mugs": {}}},
            'experiences[0].payload.O.$offerings[0]: unknown offering "mug", did you mean "mugs"?',
        ),
        (
            with_experience(payload={"O": {"$offerings": "mug"}}),
            'experiences[0].payload.O.$offerings: must be an array of strings, not "mug"',
        ),
        (
            with_experience(payload={"O": {"$offerings": [], "as": "list"}}),
            'experiences[0].payload.O.as: unknown value "list" (valid: array, object, string)',
        ),
    ],
)
def test_a_mistake_is_reported_with_its_place(data: Any, problem: str) -> None:
    """The message has the place and the valid values."""
    found = problems(data)
    assert any(each.startswith(problem) for each in found), found


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ([], "audiences.A: must be an object, not []"),
        ({}, "audiences.A: must have at least one condition"),
        ({"//": "only a note"}, "audiences.A: must have at least one condition"),
        ({"Hour": 5}, 'audiences.A.Hour: did you mean "hour"? For an attribute with this name write "session.Hour"'),
        (
            {"custmer.x": 1},
            'audiences.A["custmer.x"]: unknown word "custmer" before the dot, did you mean "customer"?',
        ),
        ({"customer.": 1}, 'audiences.A["customer."]: must have the name of an attribute after the dot'),
        ({"a": None}, "audiences.A.a: must be a string, a number, true or false, not null"),
        ({"a": {}}, "audiences.A.a: must have at least one comparison (valid: is, is_not, "),
        ({"a": {"equals": 1}}, "audiences.A.a.equals: unknown comparison"),
        ({"a": {"start_with": "x"}}, 'audiences.A.a.start_with: unknown comparison, did you mean "starts_with"?'),
        ({"a": {"gte": "many"}}, 'audiences.A.a.gte: must be a number, not "many"'),
        ({"a": {"exists": "yes"}}, 'audiences.A.a.exists: must be true or false, not "yes"'),
        ({"a": {"in": "x"}}, 'audiences.A.a.in: must be an array of values, not "x"'),
        ({"a": []}, "audiences.A.a: must be an array of values, not []"),
        ({"a": [{}]}, "audiences.A.a[0]: must be a string, a number, true or false, not {}"),
        ({"and": {}}, "audiences.A.and: must be an array of rules, not {}"),
        ({"or": []}, "audiences.A.or: must be an array of rules, not []"),
        ({"or": [{"a": 1}, 5]}, "audiences.A.or[1]: must be an object, not 5"),
        ({"not": "x"}, 'audiences.A.not: must be an object, not "x"'),
        ({"day": "Sonntag"}, 'audiences.A.day: unknown value "Sonntag" (valid: Friday, '),
        ({"day": "Sundays"}, 'audiences.A.day: unknown value "Sundays", did you mean "Sunday"?'),
        ({"day": []}, "audiences.A.day: unknown value [] (valid: Friday, "),
        ({"device": ["phone", "fridge"]}, 'audiences.A.device: unknown value "fridge" (valid: '),
        ({"hour": 24}, "audiences.A.hour: must be an hour (0 to 23), an array of hours, or {"),
        ({"hour": True}, "audiences.A.hour: must be an hour"),
        ({"hour": []}, "audiences.A.hour: must be an hour"),
        ({"hour": {"from": 5}}, "audiences.A.hour: must be an hour"),
        ({"hour": {"from": 5, "until": "x"}}, "audiences.A.hour: must be an hour"),
        ({"ip": "203.0.113.1/24"}, 'audiences.A.ip: must be a network such as "203.0.113.0/24" (all bits'),
        ({"ip": ["::/0", 5]}, "audiences.A.ip: must be a network"),
    ],
)
def test_a_mistake_in_a_rule_is_reported_with_its_place(rule: Any, problem: str) -> None:
    """The reader of rules is as strict as that of the rest."""
    found = problems(with_rule(rule))
    assert any(each.startswith(problem) for each in found), found


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
        ("1", "A", 1.0),
        ("2", "bold", 3.0),
    ]
    assert workspace.definitions["b"].contents[0].audience.name == 'Inline {"x": "1"}'
    assert [each.variations[0].variation_id for each in workspace.definitions["c"].contents] == ["1", "2"]

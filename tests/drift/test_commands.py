"""``moe_experiences``, ``moe_fetch`` and ``moe_record`` on the sandbox: in this process, and over HTTP."""

import io
import json

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from django_moe_personalize import api
from django_moe_personalize.doctor import drift
from django_moe_personalize.management.commands import moe_record
from django_moe_personalize.moengage.types import Experience
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.workspace import load_workspace, parse_workspace
from django_moe_personalize.schemas import ExperienceSchema, declaration
from django_moe_personalize.testing import override_experiences, override_personalize
from tests.sandbox.ways import serving
from tests.schemas.test_schemas import shop  # noqa: F401 - a fixture

OFFER = {"dp_offering_id": "1", "offering_content": {"type": "json", "payload": {}}, "offering_context": {"a": "b"}}
RULE = {"customer.club": "gold"}
WORKSPACE = {
    "workspace_id": "W_DEBUG",
    "api_key": "secret-key",
    "customers": {"ada@example.com": {"club": "gold"}, "7": {"club": "none"}},
    "experiences": [
        {
            "key": "hero-banner",
            "name": "Hero",
            "content": [
                {
                    "audience": RULE,
                    "payload": {"Title": "Hi ada@example.com", "Mail": "x.y@mail.example", "Tags": ["a"]},
                },
                {"payload": {"Title": "Hi", "CtaUrl": "/7/", "Offers": [OFFER], "Size": {"value": {"S": 7}}}},
            ],
        },
        {"key": "members", "audience": RULE, "payload": {"Text": "gold"}},
        {"key": "paused", "status": "Paused", "payload": {"Text": "-"}},
        {"key": "ended", "end": "2020-01-01T00:00:00+00:00", "payload": {"Text": "-"}},
        {"key": "later", "start": "2099-01-01T00:00:00+00:00", "payload": {"Text": "-"}},
    ],
}
KEYS = ["hero-banner", "members", "paused", "ended", "later", "hero-baner"]


@pytest.fixture(params=["in this process", "over HTTP"])
def sandbox(request, tmp_path):
    """Answer from the workspace. The site uses all of its keys, and one that doesn't exist."""
    (tmp_path / "moe.json").write_text(json.dumps(WORKSPACE))
    settings = {"EXPERIENCES": {"*": KEYS}, "WORKSPACE_ID": "W_DEBUG", "API_KEY": "secret-key", "CACHE_TTL": 0}
    if request.param == "in this process":
        with override_personalize(SANDBOX=str(tmp_path / "moe.json"), **settings):
            yield tmp_path
        return
    engine = Engine(load_workspace(tmp_path / "moe.json"))
    with serving(engine) as server, override_personalize(SANDBOX=False, BASE_URL=server.url, **settings):
        yield tmp_path


def run(*args):
    """Run a command. Return its output and its exit code, with the error in the output."""
    out, error, code = io.StringIO(), io.StringIO(), 0
    try:
        call_command(*args, stdout=out, stderr=error)
    except CommandError as raised:
        error.write(str(raised))
        code = raised.returncode
    return out.getvalue() + error.getvalue(), code


def test_list(sandbox, shop):  # noqa: F811
    """The table has each experience with its status and its places, and as JSON the same."""
    lines, code = run("moe_experiences")
    rows = [line.split() for line in lines.splitlines() if not line.startswith(" ")]
    assert code == 0
    assert rows[0][:3] == ["KEY", "STATUS", "NAME"]
    assert ["hero-banner", "active", "Hero"] in [row[:3] for row in rows]
    assert ["hero-baner", "missing"] in [row[:2] for row in rows]
    found = json.loads(run("moe_experiences", "--json")[0])
    assert list(found) == ["experiences"]
    statuses = {each["key"]: each["status"] for each in found["experiences"]}
    ended = "expired" if get_runtime().settings.sandbox else "missing"
    assert statuses == dict(zip(KEYS, ["active", "active", "paused", ended, "scheduled", "missing"], strict=True))
    [hero] = [each["used"] for each in found["experiences"] if each["key"] == "hero-banner"]
    assert {usage["kind"] for usage in hero} == {"schema", "settings", "view"}


def test_check(sandbox, shop):  # noqa: F811
    """Each key that visitors can't get is one line. So is each variable that breaks its schema."""
    text, code = run("moe_experiences", "--check", "--customer", "ada@example.com")
    assert code == 1
    lines = {line.partition(": ")[2] for line in text.splitlines() if "MOE_PERSONALIZE" in line}
    assert len(lines) == 3
    assert any(line.startswith("Experience 'paused' is paused") for line in lines)
    assert any('Did you mean "hero-banner"?' in line for line in lines)
    assert any("'ended'" in line and "ended" in line.replace("'ended'", "") for line in lines)
    broken = [line for line in text.splitlines() if "of experience 'hero-banner'" in line]
    assert sorted(line.split()[0].rpartition("/")[2] for line in broken)[:2] == ["shop.py:14:", "shop.py:20:"]
    assert "The variable 'CtaUrl' of experience 'hero-banner' is missing in 1 of 2 payloads." in text
    problems = json.loads(run("moe_experiences", "--check", "--json")[0].rpartition("}")[0] + "}")["problems"]
    assert {"key", "message", "fix", "used"} == set(problems[0])


def test_check_of_a_right_site(monkeypatch):
    """Without a difference the exit code is 0. A mistake in a schema is a difference too."""
    monkeypatch.setattr(declaration, "_schemas", [])
    with override_experiences({"hero-banner": {"Title": "Hi"}}, EXPERIENCES={"*": ["hero-banner"]}):
        monkeypatch.setattr(drift, "get_engine", lambda: None)
        text, code = run("moe_experiences", "--check")
        assert (code, text.partition(",")[0]) == (0, "The site uses 1 experience")

        class Hero(ExperienceSchema):
            key = "hero-banner"
            Title: set

        text, code = run("moe_experiences", "--check")
    assert code == 1
    assert "test_commands.py" in text
    assert "unusable annotation" in text
    assert "differ: 1 problem." in text


def test_fetch(sandbox, shop):  # noqa: F811
    """The command shows the payload, and why a key is absent."""
    text, code = run("moe_fetch", "hero-banner", "members", "paused", "hero-baner", "--as-of", "2026-12-24T18:00")
    assert code == 0
    assert "hero-banner: variation 2, audience All users\n" in text
    assert '  Title = "Hi"\n  CtaUrl = "/7/"\n' in text
    assert "  offerings: 1\n" in text
    assert "members: absent (USER_NOT_IN_SEGMENT)\n" in text
    assert "paused: absent (EXPERIENCE_NOT_ACTIVE)\n" in text
    assert "hero-baner: absent (INVALID_EXPERIENCE_KEY)\n1 of 4 experiences in " in text


def test_fetch_of_a_customer(sandbox, shop):  # noqa: F811
    """The customer's experiences as JSON, with the sent attributes and the breaches of the schema."""
    options = ["--customer", "ada@example.com", "--attribute", "cart=5=6", "--as-of", "2026-12-24T18:00+00:00"]
    found = json.loads(run("moe_fetch", "hero-banner", "members", *options, "--json", "--explain")[0])
    assert found["experiences"]["members"]["payload"] == {"Text": "gold"}
    assert (found["absent"], found["milliseconds"] > 0) == ({}, True)
    assert found["attributes"] == {"DAY_OF_THE_WEEK": "Thursday", "TIME_OF_THE_DAY": "18", "cart": "5=6"}
    assert any("'CtaUrl' is missing" in line for line in found["explanations"]["hero-banner"])
    text, _ = run("moe_fetch", "hero-banner", *options, "--explain")
    assert "Sent: DAY_OF_THE_WEEK=Thursday, TIME_OF_THE_DAY=18, cart=5=6\n" in text
    assert "see the schema Hero." in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["moe_fetch", "key", "--attribute", "name"], "--attribute name can't be sent"),
        (["moe_fetch", "key", "--attribute", "identifiers=1"], "can't be sent"),
        (["moe_fetch", "key", "--customer", ""], "is empty"),
        (["moe_fetch", "key", "--as-of", "noon"], "'noon' is not a moment. Write it as 2026-12-24T18:00."),
        (["moe_record", "/dev/null/moe.json"], "can't be written: Not a directory"),
        (["moe_record", __file__], "exists. Choose another file"),
        (["moe_record", "/dev/null/moe.json", ""], "is empty"),
    ],
)
def test_wrong_arguments(args, words):
    """A wrong argument is one line that says what to write."""
    assert words in run(*args)[0]


@pytest.mark.parametrize("command", [["moe_fetch", "key"], ["moe_experiences"], ["moe_record", "/dev/null/moe.json"]])
def test_no_answer(command):
    """If MoEngage can't answer, or the settings are wrong, the exit code is 2, and the text has the fix."""
    down = {"SANDBOX": False, "BASE_URL": "http://127.0.0.1:9/v1", "WORKSPACE_ID": "W", "API_KEY": "k"}
    with override_personalize(**down):
        text, code = run(*command)
    assert (code, text) == (2, "127.0.0.1 refuses connections. Start the server, or correct the port in BASE_URL.")
    with override_personalize(SANDBOX=False, WORKSPACE_ID="W"):
        assert run(*command)[1] == 2
    with override_personalize(ENABLED=False):
        assert "ENABLED is off" in run(*command)[0]


def test_record(sandbox):
    """The file replays the answers of each visitor. It has no credentials, no customer ids and no email addresses."""
    file = sandbox / "recorded.json"
    text, code = run("moe_record", str(file), "--customer", "ada@example.com", "--customer", "7")
    assert (code, text.partition(" in ")[0]) == (0, "Recorded 2 of 4 experiences for 3 visitors")
    assert [word for word in ("secret-key", "W_DEBUG", "ada@", "x.y@") if word in file.read_text()] == []
    with override_experiences(file):
        hero = api.fetch_experience("hero-banner", customer_id="42")
        gold = api.fetch_experiences(["hero-banner", "members", "paused"], customer_id="visitor-1").experiences
        assert api.fetch_experience("members", customer_id="visitor-2") is None
    assert (hero["Size"], hero["CtaUrl"], hero.offerings[0].offering_id) == ({"S": 7}, "/7/", "1")
    assert {key: dict(each) for key, each in gold.items()} == {
        "hero-banner": {"Title": "Hi visitor-1", "Mail": "visitor@example.com", "Tags": ["a"]},
        "members": {"Text": "gold"},
    }


def test_record_of_one_visitor(sandbox):
    """Without customers, everybody gets the recorded experiences. A key that doesn't exist is named."""
    file = sandbox / "recorded.json"
    file.write_text("old")
    text, _ = run("moe_record", str(file), "hero-banner", "hero-baner", "--force", "--attribute", "a=b")
    assert "Recorded 1 of 1 experiences for 1 visitor in" in text
    assert "The workspace has no experience hero-baner." in text
    workspace = json.loads(file.read_text())
    assert parse_workspace(workspace).definitions.keys() == {"hero-banner"}
    assert list(workspace["experiences"][0]["content"][0]) == ["payload"]
    with override_experiences(str(file)) as given:
        assert Client().get("/").status_code == 404
    assert given.impressions == {}


def test_many_keys():
    """More keys than MoEngage takes in one call travel in several calls."""
    keys = [f"key-number-{number}" for number in range(30)]
    with override_experiences({key: {"Title": key} for key in keys}):
        found = json.loads(run("moe_fetch", *keys, "--json")[0])
    assert list(found["experiences"]) == keys


def test_equal_payloads_and_null(tmp_path, monkeypatch, shop):  # noqa: F811
    """Visitors with equal payloads count once. A null in a payload isn't recorded: a workspace file can't have it."""
    payload = {"Title": "Hi", "Nothing": {"value": [None], "data_type": "json"}}
    with override_experiences({"hero-banner": payload}):
        monkeypatch.setattr(drift, "get_engine", lambda: None)
        text, _ = run("moe_experiences", "--check", "--customer", "7")
        assert "'CtaUrl' of experience 'hero-banner' is missing. Correct" in text
    hero = Experience("hero-banner", {"Nothing": None, "//": "x", "Title": "Hi"})
    assert moe_record._write_payload(hero, {}) == {"Title": "Hi"}


def test_check_of_each_workspace(tmp_path):
    """A key that only another workspace has is no problem. A key that no workspace has is one in each of them."""
    workspaces = {}
    for name, keys in {"default": ["hero-banner", "members"], "outlet": ["hero-banner", "clearance"]}.items():
        experiences = [{"key": key, "payload": {"Title": "Hi"}} for key in keys]
        workspace = {"workspace_id": "W_DEBUG", "api_key": "k", "experiences": experiences}
        (tmp_path / f"{name}.json").write_text(json.dumps(workspace))
        workspaces[name] = {"SANDBOX": str(tmp_path / f"{name}.json")}
    used = ["hero-banner", "members", "clearance", "hero-baner"]
    with override_personalize(WORKSPACES=workspaces, EXPERIENCES={"*": used}):
        for name in workspaces:
            text, _ = run("moe_experiences", "--check", "--workspace", name)
            assert [key for key in used if f"The workspace has no experience {key!r}" in text] == ["hero-baner"]

"""System checks of experience keys: their length, and whether the sandbox has them."""

import json

import pytest

from django_moe_personalize.decorators import personalize
from tests.checks import test_settings as site


@pytest.mark.parametrize(
    ("file", "key", "hint"),
    [
        (None, "hero-baner", 'Did you mean "hero-banner"?'),
        (None, "qqqqq", "Use one of hero-banner, "),
        (
            '{"workspace_id": "W", "api_key": "k", "experiences": []}',
            "other",
            "Add an experience to the workspace file.",
        ),
    ],
)
def test_key_that_the_sandbox_does_not_have(tmp_path, file, key, hint):
    """A wrong key is one warning, even if several routes have it."""
    if file is not None:
        (tmp_path / "moe.json").write_text(file)
    moe = {"SANDBOX": tmp_path / "moe.json" if file else True, "EXPERIENCES": {"*": [key], "plain": [key]}}
    [message] = site.check_site(DEBUG=True, MOE_PERSONALIZE=moe)
    assert message.id == "moe_personalize.W008"
    assert message.hint.startswith(hint)


@pytest.mark.parametrize("length", [4, 5, 50, 51])
@pytest.mark.parametrize("place", ['EXPERIENCES["*"]', f"the view {site.PAGE}", "the sandbox's workspace file"])
def test_length_of_a_key(monkeypatch, tmp_path, length, place):
    """MoEngage's dashboard takes keys of 5 to 50 characters. Others are a warning, because MoEngage may change this."""
    key, file = "k" * length, tmp_path / "moe.json"
    file.write_text(json.dumps({"workspace_id": "W", "api_key": "k", "experiences": [{"key": key, "payload": {}}]}))
    if "view" in place:
        monkeypatch.setattr(site.urlpatterns[0], "callback", personalize(key)(site.page))
    keys = {"EXPERIENCES": {"*": [key]}} if "*" in place else {}
    found = site.check_site(DEBUG=True, MOE_PERSONALIZE={"SANDBOX": file if "file" in place else True, **keys})
    found = [(message.id, message.msg) for message in found if message.id != "moe_personalize.W008"]
    text = f"The experience key {key!r} in {place} has {length} characters, but MoEngage takes 5 to 50."
    assert found == ([("moe_personalize.W016", text)] if length in (4, 51) else [])

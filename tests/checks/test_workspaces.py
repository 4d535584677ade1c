"""System checks of a site with several workspaces."""

import pytest

from django_moe_personalize.checks import settings as checks
from tests.checks.test_settings import PAGE, check_site
from tests.conf.configured import CREDENTIALS

SEVERAL = {"default": {}, "outlet": {"WORKSPACE_ID": "OUTLET", "API_KEY": "of-the-outlet"}}


@pytest.mark.parametrize(
    ("own", "moe", "number", "words"),
    [
        ({"API_KEY": None}, {}, "E004", "Workspace outlet: MOE_PERSONALIZE has WORKSPACE_ID, but no API_KEY."),
        ({"IDENTIFY": "no.such"}, {}, "E009", "Workspace outlet: "),
        ({}, {"DATA_CENTER": ""}, "E005", "MOE_PERSONALIZE has no DATA_CENTER."),
        ({}, {"WORKSPACE": ""}, "W020", "has 2 WORKSPACES and no WORKSPACE"),
        ({}, {"WORKSPACE": "no.such"}, "E009", 'MOE_PERSONALIZE["WORKSPACE"] is'),
        ({"WORKSPACE_ID": CREDENTIALS["WORKSPACE_ID"]}, {}, "W021", "'default' and 'outlet' have the same"),
    ],
)
def test_mistake_of_a_workspace(own, moe, number, words):
    """A message names the workspaces that it concerns, unless it concerns all of them."""
    workspaces = {**SEVERAL, "outlet": {**SEVERAL["outlet"], **own}}
    [message] = check_site({"WORKSPACES": workspaces, "WORKSPACE": PAGE, **moe})
    assert message.id == f"moe_personalize.{number}"
    assert words in message.msg
    assert message.msg.startswith("Workspace ") is words.startswith("Workspace ")


def test_tenants_with_workspaces(monkeypatch):
    """Tenants whose workspace the site chooses may have users with the same ids, so no check warns."""
    monkeypatch.setattr(checks.apps, "is_installed", {"django_tenants"}.__contains__)
    found = check_site({"WORKSPACES": SEVERAL, "WORKSPACE": PAGE, "IDENTIFY": ""})
    assert [message.id[-4:] for message in found] == ["W014"]

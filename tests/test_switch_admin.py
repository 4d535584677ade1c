"""The kill switch in the admin: who may change it, and that all pages obey."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.utils import timezone

from django_moe_personalize.fetching.switch import get_switch
from django_moe_personalize.models import Switch
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.testing import override_personalize
from tests.delivery.conftest import configure, vendor  # noqa: F401 - fixtures
from tests.delivery.test_admin import admin_tables, site  # noqa: F401 - fixtures
from tests.pages import text

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.admin_urls")]

LIST = "/admin/moe_personalize/switch/"
HERO = "hero-banner"


@pytest.fixture
def sign_in(client):
    """Give a function that signs in a user with these permissions."""

    def sign_in(*codenames):
        user = User.objects.create(username="ada", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        client.force_login(user)
        return client

    return sign_in


def act(client, action, *keys):
    rows = [Switch.build_id("default", key) for key in keys]
    return client.post(LIST, {"action": action, "_selected_action": rows}, follow=True)


def read_history():
    from django.contrib.admin.models import LogEntry

    return list(LogEntry.objects.filter(content_type__model="switch").values_list("action_flag", "object_repr"))


def test_a_person_switches_off_and_on_again(sign_in):
    """The page says who changed what, and so does the history of the admin."""
    client = sign_in("change_switch")
    assert client.get(f"{LIST}add/").status_code == 200
    response = client.post(f"{LIST}add/", {"experience_key": HERO}, follow=True)
    assert response.redirect_chain == [(LIST, 302)]
    assert get_switch().list_off() == [HERO]
    assert Switch.objects.values_list("experience_key", "is_off", "changed_by").get() == (HERO, True, "ada")
    assert ">off</td>" in text(response)
    response = act(client, "switch_on", HERO)
    assert "Switched on again: hero-banner." in text(response)
    assert ">on</td>" in text(response)
    assert get_switch().list_off() == []
    assert "Switched off: hero-banner." in text(act(client, "switch_off", HERO))
    assert get_switch().list_off() == [HERO]
    assert read_history() == [(2, HERO), (2, HERO), (1, HERO)]


def test_a_person_switches_everything_off(sign_in, client):
    """With a time after which all experiences come back."""
    tomorrow = timezone.localtime() + timedelta(days=1)
    until = {"until_0": tomorrow.date().isoformat(), "until_1": "12:00:00", "is_all": "on"}
    assert "All experiences" in text(sign_in("change_switch").post(f"{LIST}add/", until, follow=True))
    (entry,) = get_switch().entries
    assert (entry.experience_key, entry.until > tomorrow.timestamp() - 24 * 3600) == ("", True)
    Switch.objects.update(until=timezone.now())
    assert ">on</td>" in text(client.get(LIST))


@override_personalize(SANDBOX=True, BASE_URL="")
def test_the_form_refuses_mistakes(sign_in):
    """A key that the workspace lacks, unless the person insists, and a time that is over."""
    client = sign_in("change_switch")
    response = client.post(f"{LIST}add/", {"experience_key": "hero-baner", "until_0": "2020-01-01", "until_1": "12:00"})
    assert "The workspace has no experience 'hero-baner'. Did you mean 'hero-banner'?" in text(response)
    assert "This time is over. Enter a later time." in text(response)
    for wrong in ({}, {"experience_key": HERO, "is_all": "on"}):
        assert "Enter a key, or choose all experiences." in text(client.post(f"{LIST}add/", wrong))
    assert not Switch.objects.exists()
    client.post(f"{LIST}add/", {"experience_key": "hero-baner", "is_forced": "on"})
    assert get_switch().list_off() == ["hero-baner"]


@override_personalize(SANDBOX=True, BASE_URL="", WORKSPACES={"default": {}, "outlet": {}})
def test_a_person_chooses_the_workspace(sign_in):
    """On a site with several workspaces. The actions switch the rows of each workspace there."""
    client = sign_in("change_switch")
    assert "outlet</option>" in text(client.get(f"{LIST}add/"))
    for workspace in ("default", "outlet"):
        client.post(f"{LIST}add/", {"experience_key": HERO, "workspace": workspace})
    switches = [get_switch(get_runtime(workspace)) for workspace in ("default", "outlet")]
    assert [switch.list_off() for switch in switches] == [[HERO], [HERO]]
    rows = list(Switch.objects.values_list("pk", flat=True))
    page = client.post(LIST, {"action": "switch_on", "_selected_action": rows}, follow=True)
    assert "Switched on again: hero-banner, hero-banner." in text(page)
    assert [switch.list_off() for switch in switches] == [[], []]
    assert "outlet" in text(client.get(f"{LIST}{Switch.build_id('outlet', HERO)}/change/"))


@pytest.mark.parametrize(("permissions", "status"), [([], 403), (["view_switch"], 200)])
def test_only_some_people_may_switch(sign_in, permissions, status):
    """A person who may only look has no form and no action. Nobody deletes or edits a row."""
    get_switch().turn([HERO], is_off=True, by="bob")
    client = sign_in(*permissions, "add_switch", "delete_switch")
    pages = (LIST, f"{LIST}{Switch.objects.get().pk}/change/")
    assert [client.get(page).status_code for page in pages] == [status, status]
    assert client.get(f"{LIST}add/").status_code == 403
    act(client, "switch_on", HERO)
    act(client, "delete_selected", HERO)
    assert get_switch().list_off() == [HERO]
    assert Switch.objects.get().is_off
    assert client.post(f"{LIST}{Switch.objects.get().pk}/change/", {"experience_key": ""}).status_code == 403

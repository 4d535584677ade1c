"""The kill switch, from the command to the page: what is off is shown nowhere, and nothing asks for it."""

import json
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError

from django_moe_personalize import api
from django_moe_personalize.fetching.metadata import get_metadata_store
from django_moe_personalize.fetching.switch import get_switch
from django_moe_personalize.fetching.switch_store import NoStoreError, Store
from django_moe_personalize.models import Switch
from django_moe_personalize.moengage.types import FailureReason
from django_moe_personalize.runtime import get_runtime, reset_runtimes
from django_moe_personalize.testing import override_personalize
from tests.conftest import settle
from tests.pages import title

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.site")]

HERO, STRIP = "hero-banner", "promo-strip"


def switch(*args, **options):
    """Run the command and return what it prints."""
    out = StringIO()
    call_command("moe_switch", *args, stdout=out, **options)
    return out.getvalue()


@pytest.mark.parametrize("path", ["/tags/", "/atags/", "/configured/", "/template-response/"])
def test_a_page_doesnt_show_what_is_off(upstream, visit, path):
    """Cached content goes at once, other experiences stay, and no call asks for the key. On again, it comes back."""
    assert title(visit(path)) != "Welcome"
    upstream.forget()
    switch("off", HERO)
    page = visit(path)
    assert title(page) == "Welcome"
    assert page["Cache-Control"] == "private, no-store"
    visit.forget_cookies()
    assert title(visit(path, headers={"User-Agent": "Another"})) == "Welcome"
    settle()
    assert [body["experience_key"] for body in upstream.fetches] == [[STRIP]]
    switch("on", HERO)
    assert title(visit(path)) != "Welcome"


@pytest.mark.parametrize("path", ["/tags/", "/atags/", "/streaming/"])
def test_with_everything_off_no_call_goes_to_moengage(upstream, visit, path):
    """Neither a fetch nor a call for the metadata, also from code without a request."""
    switch("off")
    assert visit(path).status_code == 200
    result = api.fetch_experiences([HERO], customer_id="42")
    assert [failure.reason for failure in result.failures] == [FailureReason.PERSONALIZATION_FAILED]
    assert (dict(result.experiences), result.failures[0].experience_keys) == ({}, (HERO,))
    assert api.fetch_experiences_meta().experiences == ()
    assert get_metadata_store().list_known() == ()
    settle()
    assert upstream.requests == []


def test_other_keys_arent_looked_at(upstream, visit):
    """A page without the key is as before."""
    switch("off", STRIP)
    assert visit("/read/").text != "default"
    assert visit("/read/").text != "default"


def test_the_api_leaves_out_what_is_off(upstream):
    """The other keys have their experience, or the reason of MoEngage."""
    switch("off", HERO)
    result = api.fetch_experiences([HERO, STRIP, "unknown"], customer_id="42")
    assert list(result.experiences) == [STRIP]
    assert {failure.reason: failure.experience_keys for failure in result.failures} == {
        FailureReason.PERSONALIZATION_FAILED: (HERO,),
        FailureReason.INVALID_EXPERIENCE_KEY: ("unknown",),
    }


def test_a_click_on_a_page_from_before_counts(upstream, visit):
    """The page has shown the experience, and the person has clicked."""
    link = visit("/tags/").text.partition('href="')[2].partition('"')[0]
    switch("off")
    assert visit(link).status_code == 302
    settle()
    assert upstream.count(HERO) == (1, 1)


def test_a_page_explains_that_a_key_is_off(upstream, rf, client):
    """With the reason, and with the person who has switched it off."""
    client.get("/tags/")
    get_switch().turn([HERO], is_off=True, by="ada")
    request = client.get("/tags/").wsgi_request
    told = request.personalization.explain()
    (hero,) = [each for each in told["experiences"] if each["key"] == HERO]
    assert (hero["state"], hero["reason"]) == ("absent", "SWITCHED_OFF")
    assert hero["sentence"].startswith("Experience 'hero-banner' is switched off (by ada at ")
    assert told["switched_off"] == [HERO]
    assert "hero-banner: absent, SWITCHED_OFF" in request.personalization._describe()


def test_the_status_names_who_when_and_how_long(upstream):
    """For people, and as JSON."""
    assert switch("status") == "Nothing is switched off.\n"
    assert "checked" not in switch("off", HERO, duration="1h30m")
    switch("off", STRIP)
    told = switch("status")
    assert told.count("is switched off (by ") == 2
    assert told.count(", until 20") == 1
    switch("off")
    state = json.loads(switch("status", json=True))
    assert state["workspace"] == "default"
    assert list(state["experiences"]) == [HERO, STRIP]
    assert state["all"].keys() == {"until", "changed_by", "changed_at"}
    until, at = (Switch.objects.get(experience_key=HERO).__dict__[name] for name in ("until", "changed_at"))
    assert timedelta(hours=1, minutes=29) < until - at <= timedelta(hours=1, minutes=30)
    switch("on")
    assert switch("status") == "Nothing is switched off.\n"


@pytest.mark.parametrize(
    ("args", "options", "told"),
    [
        (("off", "hero-baner"), {}, "The workspace has no experience 'hero-baner'. Did you mean 'hero-banner'?"),
        (("off", "qqqq"), {}, "no experience 'qqqq'. Nothing was changed. To switch the key off anyway, add --force."),
        (("on", "hero-baner"), {}, "hero-baner is not off. These keys are off: promo-strip. Nothing was changed."),
        (("off",), {"duration": "soon"}, "--for soon is not a duration. Write 90s, 30m, 2h, 1d or 1h30m."),
        (("off",), {"duration": "0m"}, "not a duration"),
        (("off",), {"duration": "99999d"}, "not a duration"),
        (("on",), {"duration": "2h"}, "Only `moe_switch off` takes --for and --force."),
        (("off",), {"workspace": "outlet"}, "has no workspace 'outlet'"),
    ],
)
def test_the_command_refuses_mistakes(args, options, told):
    """With what is wrong and what to do, and without a change."""
    switch("off", STRIP)
    with pytest.raises(CommandError) as caught:
        switch(*args, **options)
    assert told in str(caught.value)
    assert switch("status").count("is switched off") == 1


@pytest.mark.parametrize("keys", [(), (HERO,)])
def test_a_workspace_has_a_switch_of_its_own(upstream, visit, keys):
    """With several workspaces, someone must choose one, because both may have the same key."""
    with override_personalize(WORKSPACES={"default": {}, "outlet": {}}):
        with pytest.raises(CommandError, match="Choose one: --workspace default or outlet"):
            switch("off", *keys)
        assert "switched off" in switch("off", *keys, workspace="outlet")
        assert title(visit("/tags/")) != "Welcome"
        assert switch("status", workspace="default") == "Nothing is switched off.\n"
        off = get_switch(get_runtime("outlet"))
        assert off.list_off() == list(keys or [""])
        assert off.write_command(HERO) == "manage.py moe_switch on hero-banner --workspace outlet"
        switch("off", HERO, workspace="default")
        assert title(visit("/tags/")) == "Welcome"


def test_the_last_key_leaves_none_off(upstream):
    """The command says so to a person who switches on what is on."""
    switch("off")
    with pytest.raises(CommandError, match=r"hero-banner is not off\. No single key is off\."):
        switch("on", HERO)


def test_force_accepts_an_unknown_key():
    """The list of experiences may be old."""
    assert "Experience 'new-key' is switched off" in switch("off", "new-key", force=True)


def test_the_command_says_that_the_state_cant_change(monkeypatch):
    """With the exit code 2, as other commands do if a service fails."""

    def fail(*args, **options):
        raise DatabaseError("secret")

    for name in ("read", "change"):
        monkeypatch.setattr(Store, name, fail)
    for action, verb in (("status", "read"), ("off", "changed")):
        with pytest.raises(CommandError, match=rf"The state can't be {verb} \(DatabaseError\)\. Check") as caught:
            switch(action)
        assert caught.value.returncode == 2


def test_a_site_that_can_keep_no_state(monkeypatch):
    """The command says what to do."""

    def fail(*args, **options):
        raise NoStoreError("Run `manage.py migrate`.")

    monkeypatch.setattr(Store, "change", fail)
    with pytest.raises(CommandError, match="migrate"):
        switch("off")


def test_a_user_without_a_name(monkeypatch):
    """As in many containers."""

    def fail():
        raise OSError

    monkeypatch.setattr("getpass.getuser", fail)
    assert "All experiences are switched off (at 20" in switch("off")


def test_an_outage_of_moengage_doesnt_hinder_the_command(upstream):
    """Without a list of experiences in the cache, no key is refused, and no call is made."""
    upstream.refuse()
    with override_personalize(SANDBOX=False, WORKSPACE_ID="SHOP", API_KEY="key", DATA_CENTER="03"):
        told = switch("off", "any-key")
        assert "'any-key' is switched off" in told
        assert "so no key was checked. Run `manage.py moe_experiences` to compare." in told
        assert upstream.requests == []
        upstream.answer = None
        api.fetch_experiences_meta()
        upstream.forget()
        for _ in ("this process", "the site's cache"):
            with pytest.raises(CommandError, match="Did you mean 'hero-banner'"):
                switch("off", "hero-baner")
            reset_runtimes()
        assert upstream.requests == []

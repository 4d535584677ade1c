"""``manage.py moe_doctor``: how it speaks, what it finds in settings, views and templates, and what it never says."""

import io
import sys
import types
from dataclasses import replace

import pytest
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.test import override_settings
from django.urls import path

from django_moe_personalize.conf import get_settings
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.doctor import report
from django_moe_personalize.doctor.vendor import compare_keys
from django_moe_personalize.moengage.types import Action, Event, ExperienceMeta, ExperiencesMetadata, ExperienceStatus
from django_moe_personalize.testing import override_personalize
from tests import site
from tests.diagnosis import KEY, ask_vendor, diagnose, find, of, use_outbox  # noqa: F401 - fixtures among them
from tests.processes import use_shared_cache  # noqa: F401 - a fixture
from tests.delivery.events import backend, make_events

# The command


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self):
        return True


def test_a_line_a_finding(settings):
    """A site that works is told so, in plain text, and the exit code is 0."""
    settings.DEBUG = True
    settings.ROOT_URLCONF = "tests.site"
    out = io.StringIO()
    with override_personalize(SANDBOX=True):
        call_command("moe_doctor", stdout=out)
    *lines, last = out.getvalue().splitlines()
    assert {line.split()[0] for line in lines} == {"ok"}
    assert last == "Nothing to mend, 0 to look at."
    assert "\x1b" not in out.getvalue()


def test_colours_on_a_terminal_alone(monkeypatch):
    """Django's style colours the state where somebody looks, unless told not to."""
    terminal, plain = Terminal(), Terminal()
    call_command("moe_doctor", stdout=terminal, force_color=True)
    call_command("moe_doctor", stdout=plain, no_color=True)
    assert "\x1b[" in terminal.getvalue()
    assert "\x1b[" not in plain.getvalue()
    captured = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    call_command("moe_doctor", stdout=captured)
    monkeypatch.undo()
    assert "\x1b[" not in captured.getvalue()


def test_a_problem_is_an_error(vendor):
    """What has to be mended ends the command with an exit code of 1, after everything was said."""
    vendor.fail(401)
    out = io.StringIO()
    with pytest.raises(CommandError, match="1 to mend") as raised:
        call_command("moe_doctor", stdout=out)
    assert raised.value.returncode == 1
    assert "problem  MoEngage refuses the credentials (401)" in out.getvalue()
    assert "ImmediateDelivery sends while the page waits" in out.getvalue()


# Settings and checks


def test_settings_that_cannot_be_read():
    """The checks say why; nothing else can be known."""
    with override_settings(MOE_PERSONALIZE={"DEADLINE": -1, "DEADLIME": 1}):
        found = diagnose()
    assert {state for state, _ in found} == {"problem"}
    assert [text.split(":")[0] for _, text in found] == ["moe_personalize.E001", "moe_personalize.E002"]


def test_credentials_that_are_missing(settings):
    """The checks name them, and the vendor is not asked."""
    with override_personalize(SANDBOX=False):
        found = diagnose()
    assert find("E003", found)[0] == "problem"
    assert find("MoEngage was not asked", found)[0] == "problem"


def test_silenced_checks_are_silent(settings):
    """What a site has decided about is not brought up again."""
    settings.DEBUG = False
    assert find("W006")[0] == "warning"
    settings.SILENCED_SYSTEM_CHECKS = ["moe_personalize.W006"]
    assert not [text for _, text in diagnose() if "W006" in text]


def test_switched_off():
    """Then nothing is asked."""
    with override_personalize(ENABLED=False):
        assert find("Personalization is off")[0] == "warning"
        assert not [text for _, text in diagnose() if "sandbox" in text and "W006" not in text]


# The site's keys


def test_keys_of_settings_views_and_templates(settings, tmp_path):
    """Keys that are declared are found, each with the place that names it first."""
    (tmp_path / "page.html").write_text(
        '{% load moe_personalize %}{% experience "from-template" as x %}{{ x.Html|experience_html }}{% endexperience %}'
        "{% experience_value 'hero-banner' 'Title' %}{% personalize_scripts %}"
    )
    (tmp_path / "broken.html").write_text('{% load moe_personalize %}{% experience "lost" %}')
    (tmp_path / "plain.html").write_text("nothing of ours")
    settings.TEMPLATES = [
        {"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [str(tmp_path)]},
        {"BACKEND": "django.template.backends.dummy.TemplateStrings"},
    ]
    settings.ROOT_URLCONF = "tests.site"
    with override_personalize(EXPERIENCES={"*": ["from-settings"]}):
        templates = report.read_templates()
        keys = report.find_keys(get_settings(), templates)
    assert keys == {
        "from-settings": 'EXPERIENCES["*"]',
        "from-template": "the template page.html",
        "hero-banner": "the view tests.site.tags",
        "promo-strip": "the view tests.site.tags",
    }
    assert templates.show_html
    assert templates.have_scripts


class Callable:
    """A view that is an object, as some decorators make it."""

    moe_experience_keys = ("from-object",)

    def __call__(self, request):
        """Answer nothing."""


@pytest.mark.parametrize(
    ("view", "keys", "name"),
    [
        (site.Method.as_view(), ["hero-banner", "promo-strip"], "tests.site.Method.get"),
        (site.ClassBased.as_view(), ["hero-banner", "promo-strip"], "tests.site.ClassBased"),
        (Callable(), ["from-object"], "tests.test_doctor.Callable"),
    ],
    ids=["method", "class", "object"],
)
def test_views_of_all_kinds_declare_keys(settings, view, keys, name):
    """A decorated method, a class with the mixin and an object name keys as a function does."""
    settings.ROOT_URLCONF = types.ModuleType("urls")
    settings.ROOT_URLCONF.urlpatterns = [path("page/", view)]
    assert report.find_keys(get_settings(), report.Templates()) == dict.fromkeys(keys, f"the view {name}")


def test_a_site_that_does_not_load(settings):
    """Django's own checks say so; here it is no reason to end."""
    settings.ROOT_URLCONF = "tests.nowhere"
    settings.TEMPLATES = [{"BACKEND": "nowhere"}]
    assert {state for state, _ in diagnose()} <= {"ok", "warning"}


def test_keys_against_the_metadata():
    """Unknown ones are a problem, with the nearest name; those that nobody gets now are a warning."""
    rows = {"hero": "active", "strip": "paused", "later": "scheduled"}
    experiences = tuple(ExperienceMeta(key, key, ExperienceStatus(status)) for key, status in rows.items())
    metadata = ExperiencesMetadata("network", experiences)
    keys = {"hero": "here", "herro": "there", "zzz": "there", "strip": "there", "later": "there"}
    found = of(*compare_keys(keys, metadata))
    assert [state for state, _ in found] == ["problem", "problem", "warning", "warning", "ok"]
    assert "no experience 'herro', which there names. Did you mean 'hero'?" in found[0][1]
    assert "create it in the dashboard as 'zzz'" in found[1][1]
    assert "'strip', which there names, is paused" in found[2][1]
    assert "Of the 5 keys that settings, views and templates name, 1 are active." in found[4][1]
    assert [state for state, _ in of(*compare_keys({}, metadata))] == ["ok"]
    assert [state for state, _ in of(*compare_keys({"zzz": "there"}, metadata))] == ["problem"]


@pytest.mark.parametrize("mode", ["visible", "web_sdk"])
def test_script_that_no_template_has(mode):
    """Where the browser counts, it needs the script."""
    with override_personalize(IMPRESSIONS=mode):
        assert find("no template has {% personalize_scripts %}: nothing is counted")[0] == "warning"
        assert of(*report.examine_templates(get_settings(), report.Templates(have_scripts=True))) == []


# Secrets


def test_nothing_secret_is_said(shared, outbox, vendor):
    """Neither key nor customer nor content, whatever is asked and fails."""
    with override_personalize(API_KEY=KEY, DELIVERY=backend("database.DatabaseDelivery")):
        event = Event(Action.SHOWN, "canary-of-a-customer", {"cid": "canary-of-content"}, 1)
        get_delivery().record([event, replace(event, event_uuid=make_events(1)[0].event_uuid)])
        cache.set("canary", "canary")
        body = b'{"title": "canary", "description": "canary-of-a-customer"}'
        for status in (200, 400, 401, 500):
            vendor.fail(status, body)
            out = io.StringIO()
            with pytest.raises(CommandError) as raised:
                call_command("moe_doctor", stdout=out)
            assert "canary" not in out.getvalue() + str(raised.value)
            assert "problem" in out.getvalue()

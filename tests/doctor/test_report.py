"""``manage.py moe_doctor``: its output, the keys it finds in the site, and that it prints no secret."""

import io
import sys
import types

import pytest
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.test import override_settings
from django.urls import path

from django_moe_personalize.checks.experience_keys import find_keys
from django_moe_personalize.conf import get_settings
from django_moe_personalize.doctor import report
from django_moe_personalize.doctor.vendor import compare_keys
from django_moe_personalize.moengage.types import ExperienceMeta, ExperiencesMetadata, ExperienceStatus
from django_moe_personalize.testing import override_personalize
from tests import site
from tests.doctor.conftest import KEY, as_pairs, diagnose, find, record_events


def test_one_line_for_each_finding(settings):
    """On a site that works, every line is ok, without colors, and the exit code is 0."""
    settings.DEBUG = True
    settings.ROOT_URLCONF = "tests.site"
    out = io.StringIO()
    with override_personalize(SANDBOX=True):
        call_command("moe_doctor", stdout=out)
    *lines, last = out.getvalue().splitlines()
    assert {line.split()[0] for line in lines} == {"ok"}
    assert last == "Personalization works (problems: 0, warnings: 0)."
    assert "\x1b" not in out.getvalue()


def test_colors_on_a_terminal(monkeypatch):
    """The output has colors if it goes to a terminal itself, unless --no-color is given."""
    terminal, plain, captured = io.StringIO(), io.StringIO(), io.StringIO()
    terminal.isatty = plain.isatty = lambda: True
    call_command("moe_doctor", stdout=terminal, force_color=True)
    call_command("moe_doctor", stdout=plain, no_color=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    call_command("moe_doctor", stdout=captured)
    monkeypatch.undo()
    assert ["\x1b[" in out.getvalue() for out in (terminal, plain, captured)] == [True, False, False]


def test_problem_is_an_error(vendor):
    """With a problem the command prints all findings, and the exit code is 1."""
    vendor.fail(401)
    out = io.StringIO()
    with pytest.raises(CommandError, match="problems: 1, warnings: ") as raised:
        call_command("moe_doctor", stdout=out)
    assert raised.value.returncode == 1
    assert "problem  MoEngage refuses the credentials (401)" in out.getvalue()
    assert "ImmediateDelivery sends while the page waits" in out.getvalue()


def test_unreadable_settings():
    """With wrong settings, only the messages of the checks follow. The doctor calls nothing without credentials."""
    with override_settings(MOE_PERSONALIZE={"DEADLINE": -1, "DEADLIME": 1}):
        found = diagnose()
    assert {state for state, _ in found} == {"problem"}
    assert [text.split(":")[0] for _, text in found] == ["moe_personalize.E001", "moe_personalize.E002"]
    with override_personalize(SANDBOX=False):
        found = diagnose()
    assert find("E003", found)[0] == find("The doctor can't call MoEngage", found)[0] == "problem"


def test_site_that_is_off(settings):
    """With ENABLED False the doctor examines nothing else. It reports no check that the site has silenced."""
    settings.DEBUG = False
    assert find("W006")[0] == "warning"
    settings.SILENCED_SYSTEM_CHECKS = ["moe_personalize.W006"]
    assert not [text for _, text in diagnose() if "W006" in text]
    with override_personalize(ENABLED=False):
        assert find("Personalization is off")[0] == "warning"
        assert not [text for _, text in diagnose() if "sandbox" in text]


def test_keys_of_settings_views_and_templates(settings, tmp_path):
    """The doctor finds the declared keys, each with the place that names it first."""
    (tmp_path / "page.html").write_text(
        '{% load moe_personalize %}{% experience "from-template" as x %}{{ x.Html|experience_html }}{% endexperience %}'
        "{% experience_value 'hero-banner' 'Title' %}{% personalize_scripts %}"
    )
    (tmp_path / "broken.html").write_text('{% load moe_personalize %}{% experience "lost" %}')
    (tmp_path / "plain.html").write_text("no tag of this package")
    settings.TEMPLATES = [
        {"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [str(tmp_path)]},
        {"BACKEND": "django.template.backends.dummy.TemplateStrings"},
    ]
    settings.ROOT_URLCONF = "tests.site"
    with override_personalize(EXPERIENCES={"*": ["from-settings"]}):
        in_templates, used = report.read_templates()
        keys = in_templates | find_keys(get_settings())
    assert keys == {
        "from-settings": 'EXPERIENCES["*"]',
        "from-template": "the template page.html",
        "hero-banner": "the view tests.site.tags",
        "promo-strip": "the view tests.site.tags",
    }
    assert used == {"experience", "experience_value", "experience_html", "personalize_scripts"}


class CallableView:
    moe_experience_keys = ("from-object",)

    def __call__(self, request):
        """Return nothing."""


@pytest.mark.parametrize(
    ("view", "keys", "name"),
    [
        (site.Method.as_view(), ["hero-banner", "promo-strip"], "tests.site.Method.get"),
        (site.ClassBased.as_view(), ["hero-banner", "promo-strip"], "tests.site.ClassBased"),
        (CallableView(), ["from-object"], f"{__name__}.CallableView"),
    ],
)
def test_keys_of_views_of_all_kinds(settings, view, keys, name):
    """A decorated method, a class with the mixin and an object declare keys as a function does."""
    settings.ROOT_URLCONF = types.ModuleType("urls")
    settings.ROOT_URLCONF.urlpatterns = [path("page/", view)]
    assert find_keys(get_settings()) == dict.fromkeys(keys, f"the view {name}")


def test_site_that_does_not_load(settings):
    """Wrong URLs and TEMPLATES are left to Django's own checks."""
    settings.ROOT_URLCONF = "tests.nowhere"
    settings.TEMPLATES = [{"BACKEND": "nowhere"}]
    assert {state for state, _ in diagnose()} <= {"ok", "warning"}


def test_keys_that_the_workspace_does_not_have():
    """An unknown key is a problem, and the fix names the most similar key. An inactive key is a warning."""
    rows = {"hero": "active", "strip": "paused", "later": "scheduled"}
    experiences = tuple(ExperienceMeta(key, key, ExperienceStatus(status)) for key, status in rows.items())
    metadata = ExperiencesMetadata("network", experiences)
    keys = {"hero": "here", "herro": "there", "zzz": "there", "strip": "there", "later": "there"}
    found = as_pairs(compare_keys(keys, metadata))
    assert [state for state, _ in found] == ["problem", "problem", "warning", "warning", "ok"]
    assert found[0][1] == "The workspace has no experience 'herro', but there names it. Did you mean \"hero\"?"
    assert "create the experience in the dashboard" in found[1][1]
    assert "'strip', which there names, is paused, so visitors see the fallback." in found[2][1]
    assert found[4][1] == "Of the 5 keys in settings, views and templates, 1 are active."
    assert [state for state, _ in as_pairs(compare_keys({}, metadata))] == ["ok"]
    assert [state for state, _ in as_pairs(compare_keys({"zzz": "there"}, metadata))] == ["problem"]


@pytest.mark.parametrize("mode", ["visible", "web_sdk"])
def test_missing_script(mode):
    """If the browser counts, a template needs the script."""
    with override_personalize(IMPRESSIONS=mode):
        assert find("no template has {% personalize_scripts %}, so nothing is counted.")[0] == "warning"
        assert as_pairs(report.examine_scripts(get_settings(), {"personalize_scripts"})) == []


def test_output_contains_no_secret(shared_cache, outbox, vendor):
    """No line shows a key, a customer or content, even if calls fail."""
    with override_personalize(API_KEY=KEY):
        record_events(2)
        cache.set("canary", "canary")
        body = b'{"title": "canary", "description": "canary-of-a-customer"}'
        for status in (200, 400, 401, 500):
            vendor.fail(status, body)
            out = io.StringIO()
            with pytest.raises(CommandError) as raised:
                call_command("moe_doctor", stdout=out)
            assert "canary" not in out.getvalue() + str(raised.value)
            assert "problem" in out.getvalue()

"""The tests of a site that has no account at MoEngage, with Django's test runner and with pytest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import call_command

ROOT = Path(__file__).parent.parent
SETTINGS = """
INSTALLED_APPS += ["django_moe_personalize"]
place = MIDDLEWARE.index("django.contrib.auth.middleware.AuthenticationMiddleware") + 1
MIDDLEWARE.insert(place, "django_moe_personalize.middleware.PersonalizeMiddleware")
MOE_PERSONALIZE = {"IDENTIFY": "mysite.urls.identify"}
DATABASES["default"]["NAME"] = ":memory:"
"""
URLS = """
from django.http import HttpResponse
from django.urls import include

def identify(request):
    return None

def home(request):
    return HttpResponse(request.personalization["hero-banner"]["Title"])

urlpatterns += [path("", home), path("moe/", include("django_moe_personalize.urls"))]
"""
TESTS = """
from django.test import SimpleTestCase
from django_moe_personalize.testing import override_experiences

class HomeTests(SimpleTestCase):
    def test_sandbox(self):
        assert self.client.get("/").content

    @override_experiences({"hero-banner": {"Title": "Hello"}})
    def test_experience(self):
        assert self.client.get("/").text == "Hello"
"""
TEST = ["manage.py", "test"]
PYTEST = ["-m", "pytest", "-q", "--ds=mysite.settings", "--rootdir=.", "-p", "no:cacheprovider", "mysite/tests.py"]
NO_DEBUG = "DEBUG = False\nALLOWED_HOSTS = ['shop.example']"
# The sandbox doesn't have this id, and MoEngage would not answer.
CREDENTIALS = 'MOE_PERSONALIZE |= {"WORKSPACE_ID": "SHOP", "API_KEY": "0b4c7e5d", "DATA_CENTER": "03"}'


@pytest.mark.parametrize(
    ("command", "lines", "expected"),
    [
        (TEST, [], (0, "no issues", "OK")),
        (PYTEST, [], (0, "2 passed")),
        (TEST, [NO_DEBUG, CREDENTIALS], (0, "no issues", "OK")),
        (["manage.py", "check"], [NO_DEBUG], (1, "E003", "E004", "E005", '["SANDBOX"] = True')),
    ],
    ids=["manage.py test", "pytest", "with credentials", "on a server"],
)
def test_project_without_credentials(tmp_path, command, lines, expected):
    """Tests run on the sandbox, and their settings need no credentials. On a server the same settings are an error."""
    call_command("startproject", "mysite", tmp_path)
    for name, text in {"settings": "\n".join([SETTINGS, *lines]), "urls": URLS, "tests": TESTS}.items():
        with (tmp_path / "mysite" / f"{name}.py").open("a") as file:
            file.write(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "mysite.settings"}
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert (done.returncode, *(text for text in expected[1:] if text in output)) == expected, output


SUITE = """
import threading

import pytest
from django.test import TestCase

from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.testing import PersonalizeTestMixin

pytestmark = pytest.mark.moe_experiences({"hero-banner": {"Title": "Module"}}, DEADLINE=7)

def use_once():
    seen = get_runtime().__dict__.setdefault("seen", [])
    seen.append(1)
    assert seen == [1]

@pytest.mark.parametrize("number", range(3))
def test_marker_of_module(client, number):
    use_once()
    assert client.get("/").text == "Module"

@pytest.mark.moe_experiences({"hero-banner": {"Title": "Function"}})
def test_marker_of_function(client, moe_experiences, moe_events):
    use_once()
    assert client.get("/").text == "Function"
    assert get_runtime().settings.deadline == 7
    moe_experiences.give("hero-banner", {"Title": "Later"}, variation="B")
    assert client.get("/show/").text == "Later"
    moe_events.assert_shown("hero-banner", variation="B")

class HomeTests(PersonalizeTestMixin, TestCase):
    experiences = {"hero-banner": {"Title": "Class"}}
    moe_settings = {"DEADLINE": 8}

    def test_experience(self):
        use_once()
        self.assertEqual(self.client.get("/").text, "Class")
        self.assertEqual(get_runtime().settings.deadline, 8)
        self.moe_events.assert_not_shown()

    test_again = test_experience
"""
NETWORK = """
from django_moe_personalize.testing import override_personalize

@override_personalize(
    SANDBOX=False, WORKSPACE_ID="SHOP", API_KEY="0b4c7e5d", DATA_CENTER="03", BASE_URL="https://moengage.example/v1"
)
def test_network(client):
    assert client.get("/show/").text == "default"
"""


@pytest.fixture
def run_suite(tmp_path):
    """Return a function that runs a site's tests with the plugin, and returns the exit status and the output."""
    call_command("startproject", "mysite", tmp_path)
    show = """
def show(request):
    hero = request.personalization.get("hero-banner")
    if hero:
        request.personalization.track_impression("hero-banner")
    return HttpResponse(hero["Title"] if hero else "default")

urlpatterns += [path("show/", show)]
"""

    def run(tests, *options):
        for name, text in {"settings": SETTINGS, "urls": URLS + show}.items():
            with (tmp_path / "mysite" / f"{name}.py").open("a") as file:
                file.write(text)
        (tmp_path / "mysite" / "tests.py").write_text(tests)
        # Named here, because the environment of these tests may not have installed the entry point.
        plugin = ["-p", "no:moe_personalize", "-p", "django_moe_personalize.contrib.pytest"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "mysite.settings"}
        command = [sys.executable, *PYTEST, "--strict-markers", *plugin, *options]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.parametrize(
    "options", [["-p", "randomly", "-n", "2"], ["-p", "no:randomly"]], ids=["xdist", "one process"]
)
def test_plugin(run_suite, options):
    """Markers, fixtures and the mixin work under xdist and in random order. No test finds anything of another test."""
    status, output = run_suite(SUITE, *options)
    assert (status, "6 passed" in output) == (0, True), output


def test_network_is_closed(run_suite):
    """A test whose page tries to call a host outside shows the fallback and fails, with the fix."""
    status, output = run_suite(NETWORK)
    texts = ("1 passed, 1 error", "The package tried to call https://moengage.example/v1 in this test. Remove SANDBOX")
    assert (status, *(text for text in texts if text in output)) == (1, *texts), output


def test_plugin_outside_django(run_suite):
    """The plugin leaves tests alone whose settings don't install the package."""
    status, output = run_suite("def test(): pass", "--ds=django.conf.global_settings")
    assert (status, "1 passed" in output) == (0, True), output

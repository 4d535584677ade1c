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
# The plugin is named, because the environment of these tests may not have installed the entry point.
PLUGIN = ["-p", "no:moe_personalize", "-p", "django_moe_personalize.contrib.pytest", "--strict-markers"]
PYTEST = ["-m", "pytest", "-q", "--rootdir=.", "-p", "no:cacheprovider", *PLUGIN, "mysite/tests.py"]
NO_DEBUG = "DEBUG = False\nALLOWED_HOSTS = ['shop.example']"
# The sandbox doesn't have this id, and MoEngage would not answer.
CREDENTIALS = 'MOE_PERSONALIZE |= {"WORKSPACE_ID": "SHOP", "API_KEY": "0b4c7e5d", "DATA_CENTER": "03"}'


SHOW = """
def show(request):
    hero = request.personalization.get("hero-banner")
    if hero:
        request.personalization.track_impression("hero-banner")
    return HttpResponse(hero["Title"] if hero else "default")

urlpatterns += [path("show/", show)]
"""


def run(folder, command, **files):
    """Run a command in a new project with these lines. Return the exit status and the output."""
    call_command("startproject", "mysite", folder)
    for name, text in {"settings": SETTINGS, "urls": URLS, "tests": TESTS, **files}.items():
        with (folder / "mysite" / f"{name}.py").open("a") as file:
            file.write(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "mysite.settings"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


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
    status, output = run(tmp_path, command, settings="\n".join([SETTINGS, *lines]))
    assert (status, *(text for text in expected[1:] if text in output)) == expected, output


SUITE = """
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


def test_plugin(tmp_path):
    """Markers, fixtures and the mixin work under xdist and in random order. No test finds anything of another test.

    A test whose page tries to call a host outside shows the fallback and fails, with the fix.
    """
    command = [*PYTEST, "mysite/test_network.py", "-p", "randomly", "-n", "2"]
    status, output = run(tmp_path, command, urls=URLS + SHOW, tests=SUITE, test_network=NETWORK)
    texts = ("7 passed, 1 error", "The package tried to call https://moengage.example/v1 in this test. Remove SANDBOX")
    assert (status, *(text for text in texts if text in output)) == (1, *texts), output


def test_plugin_outside_django(tmp_path):
    """The plugin leaves tests alone whose settings don't install the package."""
    status, output = run(tmp_path, [*PYTEST, "--ds=django.conf.global_settings"], tests="def test(): pass")
    assert (status, "1 passed" in output) == (0, True), output

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

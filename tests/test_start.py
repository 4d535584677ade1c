"""The start of a process: a command loads almost nothing, and a server loads everything before its first page."""

import subprocess
import sys

from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.workspace import load_workspace
from tests.sandbox.ways import serving

SITE = """
import sys, threading
import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.test import RequestFactory
from tests import settings as tests

values = {name: value for name, value in vars(tests).items() if name.isupper()}
values["INSTALLED_APPS"] = ["django.contrib.admin", "django.contrib.messages", *tests.INSTALLED_APPS]
values["MOE_PERSONALIZE"] = {"SANDBOX": True, "BASE_URL": sys.argv[1], "DEADLINE": 10}
settings.configure(**values | {"ROOT_URLCONF": "tests.site"})

def list_loaded():
    return {name for name in sys.modules if name.startswith(("django_moe_personalize", "requests", "urllib3"))}

django.setup()
print(*sorted(list_loaded()))
application = get_wsgi_application()
print(threading.active_count())
from tests import site
loaded = list_loaded()
response = application(RequestFactory().get("/read/").environ, lambda status, headers: None)
print(response.content.decode())
print(*sorted(list_loaded() - loaded))
"""


def test_a_command_loads_little_and_a_page_loads_nothing():
    """After setup() a process has five modules of the package. The first page of a server imports no more modules."""
    with serving(Engine(load_workspace())) as server:
        command = [sys.executable, "-c", SITE, f"http://127.0.0.1:{server.server_port}/v1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    loaded, threads, title, late = done.stdout.split("\n")[:4]
    names = ["", ".admin", ".apps", ".models", ".receivers"]
    assert loaded.split() == [f"django_moe_personalize{name}" for name in names]
    assert threads == "1"
    assert title != "default"
    assert late == ""

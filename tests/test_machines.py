"""Machines without something that most machines have: each runs a page, a click and the outbox in its own process."""

import os
import subprocess
import sys

import pytest

FIPS = """
import hashlib

def refuse(*args, **kwargs):
    raise ValueError("disabled for FIPS")

weak = "blake2b", "blake2s", "md5", "sha1"
find = hashlib.new
hashlib.new = lambda name, *args, **kwargs: (refuse if name.lower() in weak else find)(name, *args, **kwargs)
for name in weak:
    setattr(hashlib, name, refuse)
"""

NO_TIME_ZONES = """
import sys, zoneinfo
sys.modules["tzdata"] = None
assert not zoneinfo.available_timezones()
"""

SITE = """
import django
from django.conf import settings
from tests import settings as tests

values = {name: value for name, value in vars(tests).items() if name.isupper()}
settings.configure(**values | {"TIME_ZONE": "UTC", "DEBUG": True, "ROOT_URLCONF": "tests.site"})
django.setup()

from django.core.checks import run_checks
from django.db import connection
from django.test import Client, override_settings
from django_moe_personalize.models import OutboxCounter, OutboxEvent

print([message.id for message in run_checks(tags=["moe_personalize"])])
with connection.schema_editor() as editor:
    editor.create_model(OutboxEvent)
    editor.create_model(OutboxCounter)
outbox = {"BACKEND": "django_moe_personalize.delivery.database.DatabaseDelivery"}
with override_settings(MOE_PERSONALIZE=settings.MOE_PERSONALIZE | {"DELIVERY": outbox}):
    client = Client()
    page = client.get("/tags/")
    link = page.content.decode().partition('href="')[2].partition('"')[0]
    print("moe_id" in page.cookies, client.get(link).status_code, OutboxEvent.objects.count())
with override_settings(MOE_PERSONALIZE={"TIME_ZONE": "Europe/Berlin"}):
    print([message.hint for message in run_checks(tags=["moe_personalize"])])
"""


@pytest.mark.parametrize(("lack", "hint"), [(FIPS, False), (NO_TIME_ZONES, True)], ids=["fips", "time zones"])
def test_page_on_a_machine_that_lacks_something(lack, hint):
    """A page shows its experiences and counts. A check says how to install the time zone that is missing."""
    environment = {**os.environ, **({"PYTHONTZPATH": ""} if hint else {})}
    command = [sys.executable, "-c", lack + SITE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    hints = done.stdout.splitlines()[2:]
    assert done.stdout.startswith("[]\nTrue 302 3\n"), done.stdout + done.stderr
    assert ("pip install tzdata" in "".join(hints)) is hint

"""Several tenants in one process: user 1 of one tenant is not user 1 of another."""

import json
import subprocess
import sys

import pytest

from tests.services.databases import start_postgresql, start_sqlite
from tests.services.serving import ROOT

SITE = "tests.sites.tenants.__main__"
APART = ["ale: 1", "books: 1"], ["W006"], {"default": 0, "ale": 2, "books": 2}
CASES = [
    ("sites", "", "", ["1"], ["W006", "W015"], 4),
    ("sites", f"{SITE}.identify_by_site", "", ["ale.example.com-1", "books.example.com-1"], ["W006"], 4),
    ("sites", "", f"{SITE}.choose_by_site", *APART),
    ("tenants", "", "", ["1"], ["W006", "W015"], 4),
    ("tenants", f"{SITE}.identify_by_schema", "", ["ale-1", "books-1"], ["W006"], 4),
    ("tenants", "", f"{SITE}.choose_by_schema", *APART),
]


@pytest.mark.parametrize(("framework", "identify", "workspace", "asked", "checks", "pending"), CASES)
def test_user_of_each_tenant(framework, identify, workspace, asked, checks, pending):
    """An IDENTIFY with the tenant's name makes user 1 of each tenant a customer with an answer of their own.

    Without IDENTIFY they are one customer with one cached answer, and the checks warn. The outbox gets the events of
    all tenants in either case. With a workspace for each tenant, its user 1 is a customer there, and its events are
    apart.
    """
    # Schemas need PostgreSQL.
    with start_postgresql() if framework == "tenants" else start_sqlite() as database:
        command = [sys.executable, "-m", "tests.sites.tenants", framework, json.dumps(database), identify, workspace]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"asked": asked, "checks": checks, "pending": pending}

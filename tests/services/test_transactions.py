"""The site's own writes survive each failure of the package in the same transaction."""

import json
import subprocess
import sys

from tests.services.databases import start_postgresql
from tests.services.serving import ROOT


def test_own_writes_survive_each_failure():
    """Under ATOMIC_REQUESTS, pages respond with 200 and store both rows of their view, and no row of a failed hook."""
    with start_postgresql() as database:
        command = [sys.executable, "-m", "tests.services.transactions_site", json.dumps(database)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    found = dict(json.loads(line) for line in done.stdout.splitlines())
    assert len(found) == 42, done.stderr
    assert {case: result for case, result in found.items() if result != [200, "before", "after"]} == {}

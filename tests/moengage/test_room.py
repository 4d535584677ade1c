"""The modules of ``moengage``, and what their import costs."""

import subprocess
import sys
from pathlib import Path

import pytest

from django_moe_personalize import moengage

MODULES = {path.stem for path in Path(moengage.__file__).parent.glob("*.py")} - {"__init__"}


def test_each_module_is_introduced():
    """The docstring names every module of the room."""
    assert {name for name in MODULES if f"``{name}``" not in moengage.__doc__} == set()


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("from django_moe_personalize.moengage.types import Event", "moengage.client"),
        ("from django_moe_personalize.moengage.client import PersonalizeClient", "requests"),
    ],
)
def test_importing_is_cheap(imported, absent):
    """The models need no client, and a client of the sandbox needs no requests."""
    program = f"import sys; {imported}; sys.exit(any(name.endswith({absent!r}) for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

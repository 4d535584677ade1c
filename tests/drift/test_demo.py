"""``moe_experiences --check`` on a copy of the example shop: nothing on the shop, and each mistake that is planted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT

PLANTED = {
    "shop/templates/shop/home.html": ('"hero-banner" as hero', '"hero-baner" as hero'),
    "shop/views.py": ('@personalize("cart-upsell")', '@personalize("cart-upsell", "spring-sale")'),
    "shop/experiences.py": ("    Title: str\n    Product", "    Headline: str\n    Product"),
}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Copy the example shop."""
    return shutil.copytree(
        ROOT / "example_project", tmp_path / "shop", ignore=shutil.ignore_patterns("*.sqlite3", ".env")
    )


def run(shop: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "settings"}
    command = [sys.executable, "manage.py", "moe_experiences", *args]
    return subprocess.run(command, cwd=shop, env=environment, capture_output=True, text=True, check=False)


def test_shop_and_workspace_agree(shop):
    """The example shop has no problem."""
    found = run(shop, "--check")
    assert (found.returncode, found.stderr) == (0, "")
    assert (
        found.stdout == "The site uses 4 experiences, and the sandbox's workspace file workspace.json has them all.\n"
    )


def test_three_planted_mistakes(shop):
    """The command reports exactly the three mistakes, with file and line, and its exit code is 1."""
    for name, (right, wrong) in PLANTED.items():
        text = (shop / name).read_text()
        assert right in text
        (shop / name).write_text(text.replace(right, wrong, 1))
    found = run(shop, "--check")
    assert found.returncode == 1
    assert (
        found.stderr == "CommandError: The site and the sandbox's workspace file workspace.json differ: 3 problems.\n"
    )
    views = (shop / "shop/views.py").read_text().splitlines()
    schema = (shop / "shop/experiences.py").read_text().splitlines()
    assert sorted(line.partition(" ")[0] for line in found.stdout.splitlines()) == [
        f"shop/experiences.py:{schema.index('    Headline: str') + 1}:",
        "shop/templates/shop/home.html:7:",
        f"shop/views.py:{next(i for i, line in enumerate(views, 1) if 'spring-sale' in line)}:",
    ]
    assert "'hero-baner', or it has ended. Did you mean \"hero-banner\"?" in found.stdout
    assert "'spring-sale' is paused" in found.stdout
    assert "The variable 'Headline' of experience 'cart-upsell' is missing in 2 of 2 payloads." in found.stdout
    problems = json.loads(run(shop, "--check", "--json").stdout)["problems"]
    assert [len(problem["used"]) for problem in problems] == [1, 1, 1]

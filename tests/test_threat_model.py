"""The threat model names tests, and each of them exists."""

import ast
import re

from tests.documents import ROOT, read, read_rows, read_words


def collect_tests():
    """Return the names of all tests of the repository."""
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_defense_has_a_test_that_exists():
    """Each threat names at least one test, and every test that it names exists."""
    rows = read_rows(read("threat-model.md"), "threat", "defense", "test")
    named = {threat: read_words(tests) for threat, _, tests in rows}
    assert len(named) > 20
    assert [threat for threat, tests in named.items() if not tests] == []
    assert {name for tests in named.values() for name in tests} - collect_tests() == set()


def test_links_of_the_security_policy_lead_somewhere():
    """Every relative link of the policy is a file of the repository."""
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "SECURITY.md").read_text())
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []

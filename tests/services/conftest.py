"""The sandbox's process, a stand-in for MoEngage, and the amount of work."""

from dataclasses import dataclass
from typing import Any

import pytest

from tests.delivery.vendor import Vendor
from tests.services.serving import SHORT_INTERVALS, start_sandbox


@dataclass(frozen=True)
class Extent:
    """The amount of work: a few pages and short intervals, or with ``--long`` many pages and a site's own intervals."""

    pages: int
    allowance: float
    intervals: dict[str, Any]


SHORT = Extent(pages=24, allowance=0.1, intervals=SHORT_INTERVALS)
LONG = Extent(pages=200, allowance=0.015, intervals={})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="200 pages a fault, a site's own intervals, 15 ms allowance")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures, also those of other processes of this run."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    lines = [f"{report.nodeid.rpartition('::')[2]}: {line}" for report in reports for _, line in report.user_properties]
    if lines:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(sorted(set(lines))))


@pytest.fixture
def tell(record_property):
    return lambda line: record_property("figures", line)


@pytest.fixture(scope="session")
def extent(pytestconfig):
    return LONG if pytestconfig.getoption("--long") else SHORT


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="session")
def sandbox(folder):
    with start_sandbox(folder) as port:
        yield port


@pytest.fixture
def own_sandbox(tmp_path):
    """Run a sandbox with a ledger and faults of this test's own, and give its port."""
    with start_sandbox(tmp_path) as port:
        yield port


@pytest.fixture
def vendor():
    with Vendor() as vendor:
        yield vendor

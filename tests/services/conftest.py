"""The sandbox's process, a proxy in front of it, and sites on gunicorn and uvicorn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.services.fault_proxy import FaultProxy
from tests.services.serving import SHORT_INTERVALS, Server, start_gunicorn, start_sandbox, start_uvicorn

DEADLINE = 0.25


@dataclass(frozen=True)
class Extent:
    """The amount of work: a few pages and short intervals, or with ``--long`` many pages and a site's own intervals."""

    pages: int
    allowance: float
    intervals: dict[str, Any]


SHORT = Extent(pages=24, allowance=0.1, intervals=SHORT_INTERVALS)
LONG = Extent(pages=200, allowance=0.015, intervals={})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for the long form."""
    parser.addoption("--long", action="store_true", help="200 pages a fault, a site's own intervals, 15 ms allowance")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures, also those of other processes of this run."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    lines = [f"{report.nodeid.rpartition('::')[2]}: {line}" for report in reports for _, line in report.user_properties]
    if lines:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(sorted(set(lines))))


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Give the function that prints a line of figures."""
    return lambda line: record_property("figures", line)


@pytest.fixture(scope="session")
def extent(pytestconfig: pytest.Config) -> Extent:
    """Give the amount of work."""
    return LONG if pytestconfig.getoption("--long") else SHORT


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder for the files of the processes."""
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="session")
def sandbox(folder: Path) -> Iterator[int]:
    """Run the sandbox and give its port."""
    with start_sandbox(folder) as port:
        yield port


@dataclass
class FaultySite:
    """A running site, and the proxy that it talks to."""

    server: Server
    proxy: FaultProxy


@pytest.fixture(scope="session")
def sites(folder: Path, sandbox: int, extent: Extent) -> Iterator[dict[str, FaultySite]]:
    """Give the sites of a session. Each starts when it is first used."""
    with ExitStack() as stack:
        yield _Sites(stack, folder, sandbox, extent)


class _Sites(dict[str, FaultySite]):
    def __init__(self, stack: ExitStack, folder: Path, sandbox: int, extent: Extent) -> None:
        super().__init__()
        self._stack = stack
        self._told = folder, sandbox, extent

    def __missing__(self, kind: str) -> FaultySite:
        folder, sandbox, extent = self._told
        start = {"gunicorn": start_gunicorn, "uvicorn": start_uvicorn}[kind]
        proxy = self._stack.enter_context(FaultProxy(sandbox))
        options = {"intervals": extent.intervals, "DEADLINE": DEADLINE}
        server = self._stack.enter_context(start(proxy.url, folder, **options))
        self[kind] = FaultySite(server, proxy)
        return self[kind]

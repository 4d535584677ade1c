"""Fixtures for sites of third-party packages; see serving.py."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.services.serving import find_free_port, start_redis, start_sandbox
from tests.sites.browsing import WORKSPACE
from tests.sites.serving import Site, run_site


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="5,000 pages a site instead of 300")


@pytest.fixture(scope="session")
def pages(pytestconfig: pytest.Config) -> int:
    return 5000 if pytestconfig.getoption("--long") else 300


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Run Redis and give its URL, without a database number: ``redis://127.0.0.1:PORT``."""
    port = find_free_port()
    with start_redis(port):
        yield f"redis://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with start_sandbox(tmp_path_factory.mktemp("sandbox"), WORKSPACE) as port:
        yield port


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """Run the test module as a site, and give its answers by page and visitor; see cached_sites.py."""
    command = [sys.executable, "-m", request.module.__name__]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def start_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Site]]:
    """Give the function that starts a site until the end of the test module; see run_site()."""
    with ExitStack() as stack:

        def start(module: str, **options: Any) -> Site:
            folder = tmp_path_factory.mktemp(module.rpartition(".")[2])
            return stack.enter_context(run_site(module, folder, **options))

        yield start

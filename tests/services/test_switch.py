"""An experience is switched off under load, in all processes of a site, and a restart keeps it off."""

import time
from contextlib import ExitStack, contextmanager

import pytest

from tests.services.load import connect, in_background, poll
from tests.services.serving import LOCAL_MEMORY, build_redis_cache, find_free_port, start_gunicorn, start_redis

WORKERS = 4
SOON = 60.0
RECENT = 20


@pytest.fixture(params=["database", "cache", "both"])
def site(request, tmp_path):
    """Give the options of a site with a database, with a shared cache, or with both."""
    if request.param != "database" and not request.config.getoption("--long"):
        pytest.skip("only with --long")
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "site.sqlite3")}
    with ExitStack() as stack:
        caches = LOCAL_MEMORY
        if request.param != "database":
            port = find_free_port()
            stack.enter_context(start_redis(port))
            caches = build_redis_cache(port)
        yield {"caches": caches, "databases": {} if request.param == "cache" else {"default": database}}


@contextmanager
def visited(server):
    """Let visitors open some hundred pages a second, and give the pages so far, by process."""
    with connect(server, 1) as lines, ExitStack() as stack:
        pages = {line.worker: [] for line in lines}

        def read(line, over):
            # With less, the processes would leave the command no time on two cores.
            while not over.wait(0.01):
                pages[line.worker].append(line.get("/page/", "ada"))

        for line in lines:
            stack.enter_context(in_background(lambda over, line=line: read(line, over)))
        yield pages


def wait_until_all(pages, text):
    """Wait until the last pages of all processes have the text. Return the end of the last page without it."""
    poll(
        lambda: [page.body for each in pages.values() for page in each[-RECENT:]],
        lambda bodies: len(bodies) == RECENT * WORKERS and all(text in body for body in bodies),
        SOON,
    )
    return max((page.end for each in pages.values() for page in each if text not in page.body), default=0.0)


def test_an_experience_is_off_in_all_processes_and_after_a_restart(site, sandbox, tmp_path, tell):
    """While visitors open pages, no page fails. The other experience stays. From the first page on after a restart."""
    base_url = f"http://127.0.0.1:{sandbox}/v1"

    def start():
        return start_gunicorn(base_url, tmp_path, workers=WORKERS, DEADLINE=10, **site)

    with start() as server:
        if site["databases"]:
            server.manage("migrate", "moe_personalize", "--verbosity=0", "--skip-checks")
        with visited(server) as pages:
            wait_until_all(pages, "From the sandbox")
            server.manage("moe_switch", "off", "hero", "--force")
            off_at = time.monotonic()
            seconds = wait_until_all(pages, "Welcome") - off_at
            time.sleep(1)
            found = [page for each in pages.values() for page in each]
            late = [page for page in found if page.due > off_at + max(seconds, 0.0) and "Welcome" not in page.body]
        said = server.read_log()
    tell(f"{len(found)} pages in {len(pages)} processes; the last shows the experience after {seconds:.1f} s")
    assert late == []
    assert {page.status for page in found} == {200}
    assert all("Sandbox delivers" in page.body for page in found)
    assert said.count("Experience 'hero' is switched off (by ") == WORKERS

    with start() as server, visited(server) as pages:
        wait_until_all(pages, "Welcome")
        assert all("Welcome" in page.body and page.status == 200 for each in pages.values() for page in each)
        server.manage("moe_switch", "on", "hero")
        wait_until_all(pages, "From the sandbox")
        assert all("From the sandbox" in each[-1].body for each in pages.values())

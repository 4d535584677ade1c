"""A connection that was opened before a fork serves only visitors of the process that opened it."""

from functools import partial

from tests.services.echo import Echo
from tests.services.load import Line, connect, visit
from tests.services.serving import start_gunicorn
from tests.services.site import WARMING_VISITOR

ANSWERS = 1200
WORKERS = 4
WARM = 8


def ask(prefix: str, line: Line, number: int) -> tuple[bool, bool, str]:
    """Return whether a page names another visitor, whether it names its own, and the process that answered."""
    visitor = f"{prefix}-{number}"
    page = line.get("/page/", visitor)
    named = page.body.count(f"<h1>{visitor}</h1>") + page.body.count(f"<p>{visitor}</p>")
    whole = page.status == 200 and named == 2
    crossed = not whole and ("customer-" in page.body or WARMING_VISITOR in page.body)
    return crossed, whole, page.worker


def test_sessions_warmed_before_the_fork_show_each_visitor_their_own_content(folder, tell):
    """1,200 visitors of 4 workers, forked from a master with 8 open connections, get pages with their own names."""
    with (
        Echo(jitter=0.01) as upstream,
        start_gunicorn(upstream.url, folder, workers=WORKERS, warm=WARM, DEADLINE=10) as server,
    ):
        warmed = upstream.connections
        with connect(server, 4) as lines:
            answers = visit(lines, ANSWERS, partial(ask, "customer"))
            masters = visit(lines, WARM, partial(ask, WARMING_VISITOR))
        opened = upstream.connections - warmed
        said = server.read_log()

    tell(f"{len(answers)} answers, {warmed} connections before the fork, {opened} after it")
    assert warmed > 1
    assert sum(crossed for crossed, _, _ in answers + masters) == 0
    assert all(whole for _, whole, _ in answers + masters)
    assert len({worker for _, _, worker in answers}) == WORKERS
    assert opened >= WORKERS
    assert said == ""

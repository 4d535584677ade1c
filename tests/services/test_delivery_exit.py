"""A process delivers its events before it ends: real servers, real queues, real signals."""

import http.client
import signal
from contextlib import closing

import pytest
from celery import Celery
from redis import Redis
from rq import Queue

from tests.delivery.vendor import SOON, run_script, start
from tests.services.brokers import redis
from tests.services.serving import find_free_port, wait_until

WSGI = "tests.delivery.site:application"
ASGI = "tests.delivery.site:asgi"

GUNICORN = "-m gunicorn --bind 127.0.0.1:{port} --no-control-socket --graceful-timeout 60"
# The workers install their signal handlers, then load the site, as with --workers and in gunicorn's workers.
UVICORN_SERVER = 'import uvicorn; uvicorn.Server(uvicorn.Config("tests.delivery.site:asgi", port={port})).run()'
UWSGI = "import sys, pyuwsgi; pyuwsgi.run(sys.argv[1:])"
PYWSGI = """
from gevent import monkey; monkey.patch_all()
from gevent.pywsgi import WSGIServer
from tests.delivery.site import application
WSGIServer(("127.0.0.1", {port}), application, log=None).serve_forever()
"""


def build_uwsgi(*options):
    http = ("--http-socket", "127.0.0.1:{port}", "--module", WSGI, "--need-app", "--master-fifo", "{fifo}")
    return ("-c", UWSGI, *http, "--disable-logging", "--master", *options)


SERVERS = {
    "gunicorn, sync, --preload": (*GUNICORN.split(), "--workers", "2", "--preload", "tests.delivery.site:preload()"),
    "gunicorn, gthread": (*GUNICORN.split(), "--threads", "4", WSGI),
    "gunicorn, gevent": (*GUNICORN.split(), "--worker-class", "gevent", WSGI),
    "uvicorn, command": ("-m", "uvicorn", "--port", "{port}", "--lifespan", "off", ASGI),
    "uvicorn, server": ("-c", UVICORN_SERVER),
    "waitress": ("-m", "waitress", "--listen", "127.0.0.1:{port}", WSGI),
    "granian, WSGI": ("-m", "granian", "--interface", "wsgi", "--port", "{port}", WSGI),
    "granian, ASGI": ("-m", "granian", "--interface", "asginl", "--port", "{port}", ASGI),
    "cheroot": ("-m", "cheroot", "--bind", "127.0.0.1:{port}", WSGI),
    "daphne": ("-m", "daphne", "--port", "{port}", ASGI),
    "hypercorn": ("-m", "hypercorn", "--bind", "127.0.0.1:{port}", ASGI),
    "gevent.pywsgi": ("-c", PYWSGI),
    "uWSGI": build_uwsgi("--enable-threads", "--processes", "2"),
    "uWSGI, --lazy-apps": build_uwsgi("--enable-threads", "--lazy-apps"),
    "uWSGI, --cheaper": build_uwsgi("--enable-threads", "--processes", "2", "--cheaper", "1", "--max-requests", "4"),
    "uWSGI, gevent": build_uwsgi("--gevent", "10"),
}
"""The options of Python for each server. The last options of uWSGI are those that users combine."""

DIE_BY_SIGNAL = {"uvicorn, command", "uvicorn, server", "waitress", "cheroot", "gevent.pywsgi"}
"""These servers end by SIGTERM, as without the package. The others return 0."""


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_delivers_everything_when_it_stops(name, vendor, tmp_path):
    """10 pages, then SIGTERM, or uWSGI's command to stop: 10 events arrive once, and the server ends as usual."""
    fifo, port = tmp_path / "fifo", find_free_port()
    command = [option.format(port=port, fifo=fifo) for option in SERVERS[name]]
    with start(vendor, *command, exit_timeout=SOON) as process:
        try:
            wait_until(process, lambda: read(port, "/none/"))
            paths = ["/", "/async/"] * 5 if "uvicorn" in name else ["/"] * 10
            recorded = [read(port, path) for path in paths]
            before = vendor.taken.total()
            if "uWSGI" in name:
                # At SIGTERM, uWSGI skips Python's exit if its worker is about to end a request.
                fifo.write_text("q")
            else:
                process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert before < 10
    assert set(recorded) <= set(vendor.taken), errors[-2000:]
    assert set(vendor.taken.values()) == {1}
    assert len(vendor.taken) == 10 + ("preload" in name)
    assert process.returncode == (-signal.SIGTERM if name in DIE_BY_SIGNAL else 0)


def read(port, path):
    # A server that starts on a busy machine may accept the connection and answer too late.
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read().decode()


def test_rq_delivers_the_events_of_each_job(vendor):
    """RQ runs each job in a child that ends with os._exit()."""
    with redis() as (url, _):
        queue = Queue(connection=Redis.from_url(url))
        for count in (4, 3, 3):
            queue.enqueue("tests.delivery.site.record", count)
        run = "import tests.delivery.site; from rq.cli import main; main()"
        with start(vendor, "-c", run, "worker", "--burst", "--quiet", "--url", url) as process:
            _, errors = process.communicate(timeout=SOON * 6)
    assert (vendor.taken.total(), len(vendor.taken)) == (10, 10), errors


def test_celery_delivers_before_its_children_end(vendor):
    """--max-tasks-per-child ends a child after two tasks. SIGTERM ends the child with the last events."""
    with redis() as (url, _):
        worker = ("-m", "celery", "--app", "tests.services.jobs", "worker", "--concurrency", "1")
        options = ("--max-tasks-per-child", "2", "--loglevel", "ERROR", "--without-gossip", "--without-mingle")
        with start(vendor, *worker, *options, environment={"BROKER": url}) as process:
            try:
                with Celery(broker=url) as app:
                    for _ in range(5):
                        app.send_task("record")
                for _ in range(5):
                    while process.stdout.readline() not in ("recorded\n", ""):
                        pass
                process.terminate()
                _, errors = process.communicate(timeout=60)
            finally:
                process.kill()
    assert (vendor.taken.total(), len(vendor.taken)) == (10, 10), errors


def test_exit_retries_within_its_time(vendor):
    """A short outage at the end costs nothing."""
    vendor.failures = [500, 503]
    assert run_script(vendor, "exit", 50)[0] == 0
    assert (vendor.taken.total(), len(vendor.taken)) == (50, 50)


@pytest.mark.parametrize("trouble", ["hangs", "fails", "refuses"])
def test_exit_takes_two_seconds_at_most_when_the_vendor_is_down(vendor, trouble):
    """The process ends soon and without an error. One log line counts the lost events."""
    if trouble == "hangs":
        vendor.hang.clear()
    elif trouble == "fails":
        vendor.status = 500
    else:
        vendor.url = "http://127.0.0.1:9/v1"
    code, errors, seconds = run_script(vendor, "exit", 250)
    assert code == 0
    # A call may take 10 s, and a busy machine needs some seconds for the rest.
    assert 1.0 < seconds < 8.0
    assert errors.count("Dropped 250 events: MoEngage didn't accept them before the process ended") == 1
    assert "Traceback" not in errors
    assert vendor.taken.total() == 0


def test_exit_takes_no_time_with_wrong_credentials(vendor):
    """Waiting can't help against a wrong key."""
    vendor.status = 401
    code, errors, _ = run_script(vendor, "exit", 5)
    assert code == 0
    assert len(vendor.calls) == 1
    assert errors.count("Check WORKSPACE_ID") == 1
    assert errors.count("Dropped 5 events") == 1

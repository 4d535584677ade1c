"""The example shop with OpenTelemetry: what a collector receives, and what Prometheus reads. See also the dashboard."""

import gzip
import http.server
import json
import os
import re
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from contextlib import contextmanager

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from tests.documents import DOCS, ROOT, read, read_blocks, read_rows, read_words
from tests.services.serving import build_gunicorn, listen, running, start_sandbox, wait_until
from tests.sites.serving import open_port

EXAMPLE = ROOT / "example_project"
WORKSPACE = json.loads((ROOT / "django_moe_personalize" / "sandbox" / "workspace.json").read_text())
ACCEPTED = "moe_personalize.events.accepted"
SERVER, CLIENT, PRODUCER = 2, 3, 4
PAGES = 4


class Collector(http.server.ThreadingHTTPServer):
    """A collector of OTLP over HTTP: ``spans``, and ``metrics`` with the last data points of each process by name."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans = []
        self.metrics = defaultdict(dict)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.server.spans += [span for scope in resource.scope_spans for span in scope.spans]
        else:
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                process = read_attributes(resource.resource)["service.instance.id"]
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        data = getattr(metric, metric.WhichOneof("data"))
                        self.server.metrics[metric.name][process] = data.data_points
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass


def read_attributes(owner):
    return {each.key: each.value.string_value or each.value.int_value for each in owner.attributes}


def wait(is_so):
    """Wait until the collector has something, which takes longer on a busy machine."""
    until = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


@contextmanager
def collect():
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield collector
        collector.shutdown()


@pytest.fixture(scope="module")
def collector():
    with collect() as collector:
        yield collector


@contextmanager
def serve(folder, collector, command, port=0, **options):
    """Run the example shop on a sandbox behind HTTP, and give the function that opens a page as a new visitor."""
    said = (folder / "shop.log").read_text
    with start_sandbox(folder, WORKSPACE) as sandbox, (folder / "shop.log").open("wb") as log:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "PYTHON"))},
            "DATABASE_URL": f"sqlite:///{folder / 'shop.sqlite3'}",
            "DJANGO_SETTINGS_MODULE": "settings",
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, EXAMPLE))),
            "MOE_PERSONALIZE_BASE_URL": f"http://127.0.0.1:{sandbox}/v1",
            "MOE_PERSONALIZE_DEADLINE": "20",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "200",
        }
        with running(command, env=environment, stdout=log, stderr=log, **options) as process:
            if not port:
                wait_until(process, lambda: "The shop is at" in said(), said)
                port = int(re.search(r"The shop is at http://127\.0\.0\.1:(\d+)", said())[1])
            wait_until(process, lambda: open_port(port), said)

            def visit(path="/", number=0):
                agent = f"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/{140 + number}.0"
                request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"User-Agent": agent})
                with urllib.request.urlopen(request, timeout=60) as response:
                    return response.read().decode()

            yield visit


@pytest.fixture(scope="module")
def demo(tmp_path_factory, collector):
    """Run the demo as its README says, open a few pages, and give the function that opens a page."""
    command = [sys.executable, EXAMPLE / "manage.py", "demo", "127.0.0.1:0"]
    with serve(tmp_path_factory.mktemp("demo"), collector, command) as visit:
        for number in range(PAGES):
            visit(number=number)
        yield visit


def read_metrics(visit):
    """Return the labels of each series that Prometheus reads, by name."""
    found = defaultdict(set)
    for family in text_string_to_metric_families(visit("/metrics")):
        for sample in family.samples:
            found[sample.name] |= sample.labels.keys()
    return found


def test_trace_of_a_page(demo, collector):
    """Each fetch is a span below its page, in the trace of the page. No span of the package is the root of a trace."""
    wait(lambda: sum(span.kind == SERVER and span.name == "GET home" for span in collector.spans) == PAGES)
    spans = {span.span_id: span for span in collector.spans}
    ours = [span for span in collector.spans if span.kind in (CLIENT, PRODUCER)]
    parents = {span.span_id: spans.get(span.parent_span_id) for span in ours}
    assert len({span.trace_id for span in ours}) >= PAGES
    assert {span.name for span in ours} == {"POST /experiences/fetch", "moe_personalize.deliver"}
    assert all(parent is not None and parent.kind == SERVER for parent in parents.values())
    assert all(parents[span.span_id].trace_id == span.trace_id for span in ours)
    fetch = next(span for span in ours if span.kind == CLIENT)
    attributes = read_attributes(fetch)
    assert attributes.pop("url.full").endswith("/v1/experiences/fetch")
    assert attributes == {"http.request.method": "POST", "http.response.status_code": 200}
    assert [span.name for span in collector.spans if not span.parent_span_id and span.kind != SERVER] == []


def test_metrics_that_prometheus_reads(demo):
    """Each exported metric is documented, with its labels. Prometheus changes their names as the reference says."""
    wait(lambda: "moe_personalize_events_delivered_total" in demo("/metrics"))
    found = {name: labels for name, labels in read_metrics(demo).items() if name.startswith("moe_personalize_")}
    rows = read_rows(read("reference/metrics.md"), "metric", "kind", "unit", "attributes", "counts")
    documented = {}
    for metric, kind, unit, attributes, _ in rows:
        name = read_words(metric)[0].replace(".", "_") + ("_seconds" if read_words(unit) == ["s"] else "")
        labels = {label.replace(".", "_") for label in read_words(attributes)}
        if kind == "histogram":
            documented |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            documented[name + "_total" * (kind == "counter")] = labels
    # A request that worked has no error.
    assert documented.keys() == found.keys()
    own = {"otel_scope_name", "otel_scope_version", "otel_scope_schema_url"}
    assert {name: labels - own for name, labels in found.items()} == {
        name: labels - {"error_type"} for name, labels in documented.items() if name in found
    }


def read_queries():
    """Return each query of the dashboard, and of the alerts in the documents."""
    dashboard = json.loads((DOCS / "_static" / "grafana.json").read_text())
    (alerts,) = [b.code for b in read_blocks(DOCS / "howto" / "prometheus.md") if b.code.startswith("groups:")]
    variables = [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    return [
        *(target["expr"] for panel in dashboard["panels"] for target in panel["targets"]),
        *(re.fullmatch(r"label_values\((\w+), (\w+)\)", query).expand(r"sum by (\2) (\1)") for query in variables),
        *re.findall(r"expr: (?:>-\n)?((?:.|\n)+?)\n {8}[a-z]", alerts),
    ]


KEYWORDS = {"and", "or", "unless", "by", "on", "ignoring", "without", "bool", "group_left", "group_right", "offset"}


def parse_query(query):
    """Return the metrics of a PromQL query and its labels."""
    query = re.sub(r'"[^"]*"|\[[^\]]*\]', "", query)
    matched = re.findall(r"\{([^}]*)\}", query)
    grouped = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", query)
    rest = re.sub(r"\{[^}]*\}|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", query)
    metrics = set(re.findall(r"(?<![\w.])[a-zA-Z_:][\w:]*(?!\w|\s*\()", rest)) - KEYWORDS
    return metrics, {label for part in (*matched, *grouped) for label in re.findall(r"[a-zA-Z_]\w*", part)}


def test_queries_name_metrics_that_exist(demo):
    """Each query of the dashboard and of the alerts names metrics of the demo, and labels that one of them has."""
    found = read_metrics(demo)
    # No request of the demo fails.
    found["moe_personalize_request_duration_seconds_count"].add("error_type")
    queries = read_queries()
    assert len(queries) > 15
    used = set()
    for query in queries:
        metrics, labels = parse_query(query)
        assert metrics, query
        assert metrics <= found.keys(), query
        assert labels <= set().union(*(found[name] for name in metrics)), query
        used |= metrics
    assert used >= {name for name in found if re.match(r"moe_personalize_\w+(?<!_created)$", name)}


def test_dashboard_is_valid():
    """The dashboard has what Grafana's JSON model asks for, on a grid without gaps or overlaps."""
    dashboard = json.loads((DOCS / "_static" / "grafana.json").read_text())
    assert {
        "title",
        "uid",
        "schemaVersion",
        "version",
        "panels",
        "templating",
        "time",
        "annotations",
    } <= dashboard.keys()
    assert (dashboard["templating"]["list"][0]["type"], dashboard["templating"]["list"][0]["name"]) == (
        "datasource",
    ) * 2
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert sorted(cells) == [(x, y) for x in range(24) for y in range(28)]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        assert {"type", "title", "datasource", "fieldConfig", "options", "targets", "description"} <= panel.keys()
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


FORKED = """from telemetry import instrument, start

preload_app = True
instrument()


def post_fork(server, worker):
    start()
"""


@pytest.mark.parametrize("is_forked", [False, True], ids=["loaded by each worker", "loaded before the fork"])
def test_metrics_of_several_processes(tmp_path, is_forked):
    """Under gunicorn, the collector gets the metrics and traces of each worker, which count each event once."""
    options = ["--worker-class=gthread", "--threads=2"]
    if is_forked:
        (tmp_path / "gunicorn.conf.py").write_text(FORKED)
        options += ["--config", str(tmp_path / "gunicorn.conf.py")]
    with collect() as collector, listen() as listener:
        port = listener.getsockname()[1]
        application = "django.core.wsgi:get_wsgi_application()" if is_forked else "wsgi:application"
        command = build_gunicorn(application, listener, 2, *options)
        with serve(tmp_path, collector, command, port=port, pass_fds=[listener.fileno()]) as visit:
            for number in range(12):
                visit("/category/packs/", number)

            def count():
                points = [each for process in collector.metrics[ACCEPTED].values() for each in process]
                return sum(point.as_int for point in points)

            wait(lambda: count() == 12)
            assert len(collector.metrics[ACCEPTED]) == 2
            wait(lambda: sum(span.kind == SERVER and "category" in span.name for span in collector.spans) == 12)
        pages = {span.span_id for span in collector.spans if span.kind == SERVER}
        assert pages >= {span.parent_span_id for span in collector.spans if span.kind in (CLIENT, PRODUCER)}

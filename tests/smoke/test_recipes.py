"""The recipes of exposures.md on the site of the quickstart: a table, and two services on a local HTTP server."""

import json
import re

from tests.documents import DOCS
from tests.smoke.test_docs_typed import quickstart, run, site, type_page  # noqa: F401 - fixtures among them

VISIT = """
import json, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import django
django.setup()
from django.test import Client
from django_moe_personalize.testing import override_experiences
from shop import analytics, segment
from shop.models import Exposure

calls = []

class Service(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        calls.append({"path": self.path, "key": self.headers.get("Authorization", ""), "body": body})
        self.send_response(200 if len(calls) > 1 else 500)
        self.end_headers()

    def log_message(self, *args):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
threading.Thread(target=server.serve_forever, daemon=True).start()
base = f"http://127.0.0.1:{server.server_port}"
analytics.GA4_URL, segment.SEGMENT_URL = base + "/mp/collect", base + "/v1/track"
client = Client(HTTP_HOST="localhost")
client.cookies.load({"_ga": "GA1.1.123.456", "ajs_anonymous_id": '"anon"'})
with override_experiences({"hero-banner": {"Title": "Hello", "CtaUrl": "/"}}) as shown:
    page = client.get("/")
    assert page.status_code == 200
    told = [entry.event_uuid for entry in shown.engine.ledger.entries()]
rows = [str(pk) for pk in Exposure.objects.filter(kind="shown", variation_id="1").values_list("pk", flat=True)]
server.shutdown()
print(json.dumps({"told": told, "rows": rows, "calls": calls}))
"""


def test_exposures(site):  # noqa: F811
    """The table and both services get the UUID that MoEngage got. A service that fails doesn't affect the page."""
    type_page(site, DOCS / "howto/exposures.md")
    apps = site / "shop/apps.py"
    apps.write_text(apps.read_text().replace("import receivers", "import analytics, receivers, segment"))
    result = json.loads(re.search(r"^\{.*\}$", run(site, "-c", VISIT), re.MULTILINE)[0])
    assert result["rows"] == result["told"]
    ga4, to_segment = result["calls"]
    assert ga4["path"] == "/mp/collect?measurement_id=G-XXXXXXXXXX&api_secret=secret"
    assert ga4["body"]["client_id"] == "123.456"
    ((event),) = ga4["body"]["events"]
    assert (event["name"], [event["params"]["event_uuid"]]) == ("experience_shown", result["told"])
    assert to_segment["key"].startswith("Basic ")
    message = to_segment["body"]
    assert (message["event"], message["anonymousId"]) == ("Experience Viewed", "anon")
    assert [message["messageId"]] == result["told"]

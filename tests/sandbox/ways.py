"""Build requests and engines, run a server, send requests over HTTP, and read the responses."""

import base64
import contextlib
import http.client
import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from django_moe_personalize.moengage.http1 import Request, Response
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.faults import Faults
from django_moe_personalize.sandbox.server import SandboxServer
from django_moe_personalize.sandbox.workspace import Workspace, parse_workspace
from tests.sandbox import schema

Way = Callable[[Request], Response]
NOW = 1_790_000_000.0
WORKSPACE_ID, API_KEY = "SANDBOX_DEBUG", "sandbox-key"
PHONE = "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 Chrome/140.0 Mobile Safari/537.36"
FETCH, METADATA, EVENTS = "/experiences/fetch", "/experiences/metadata", "/experiences/events"
CONTEXT = {
    "cid": "65ea_F_T_WP_AB_2_P_0_AU_42D",
    "experience": "Hero banner",
    "moe_locale_id": "0",
    "moe_variation_id": "2",
    "audience_name": "All users",
    "audience_id": "42D",
}


def basic(user: str = WORKSPACE_ID, password: str = API_KEY) -> str:
    """Return an Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def credentials() -> dict[str, str]:
    """Return the headers of a valid call."""
    return {"Authorization": basic(), "MOE-APPKEY": WORKSPACE_ID, "Content-Type": "application/json"}


def post(path: str, data: object, **headers: str) -> Request:
    """Build a POST with ``data`` as JSON, or as it is if it is bytes."""
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return Request("POST", path, headers={**credentials(), **headers}, body=body)


def get_metadata(query: str = "") -> Request:
    """Build a metadata call."""
    return Request("GET", METADATA, query, headers=credentials())


def action(**changes: Any) -> dict[str, Any]:
    """Build a valid action with ``changes``; the value ``...`` removes a field."""
    fields = {
        "action": "MOE_PERSONALIZATION_MESSAGE_SHOWN",
        "moe_event_uuid": str(uuid.uuid4()),
        "event_time": int(NOW) - 5,
        "platform": "web",
        "attributes": dict(CONTEXT),
    }
    return {name: value for name, value in {**fields, **changes}.items() if value is not ...}


def element(*actions: Any, **changes: Any) -> dict[str, Any]:
    """Build a valid element with ``changes`` as in action()."""
    fields = {"customer_id": "42", "user_timezone_offset": 3600, "actions": list(actions) or [action()]}
    return {name: value for name, value in {**fields, **changes}.items() if value is not ...}


def batch(*elements: Any) -> dict[str, Any]:
    """Build the body of an events call."""
    return {"elements": list(elements)}


def build_workspace(*experiences: Mapping[str, Any], **fields: Any) -> Workspace:
    """Build a workspace with the credentials of the shipped one."""
    data = {"workspace_id": WORKSPACE_ID, "api_key": API_KEY, "experiences": list(experiences), **fields}
    return parse_workspace(data)


def build_engine(*experiences: Mapping[str, Any], **fields: Any) -> Engine:
    """Build an engine for such a workspace, at NOW."""
    return Engine(build_workspace(*experiences, **fields), clock=lambda: NOW)


def fetch(engine: Engine, data: object) -> dict[str, Any]:
    """Return the experiences of a fetch, by key."""
    response = engine.handle(post(FETCH, data))
    assert response.status == 200, response.body
    return json.loads(response.body)["experiences"]


def read(response: Response) -> Any:
    """Return the JSON of a response that says it has JSON."""
    assert response.headers["content-type"].startswith("application/json")
    return json.loads(response.body)


def assert_refused(response: Response, status: int, title: str) -> None:
    """Assert that a response is the vendor's error envelope with a status and a title."""
    envelope = read(response)
    schema.assert_valid(envelope, schema.ERROR)
    assert (response.status, envelope["title"]) == (status, title)


def count(engine: Engine, key: str) -> tuple[int, int]:
    """Return the impressions and clicks of an experience."""
    counts = engine.ledger.counts()[key]
    return counts.impressions, counts.clicks


@contextlib.contextmanager
def serving(engine: Engine, *, faults: Faults | None = None) -> Iterator[SandboxServer]:
    """Run a server on a free port of the loopback interface."""
    with SandboxServer(engine, faults=faults) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class HttpWay:
    """Send requests over one keep-alive connection, which the ``with`` block closes."""

    def __init__(self, server: SandboxServer, *, base: str = "/v1") -> None:
        self._base = base
        self.connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.connection.close()

    def __call__(self, request: Request) -> Response:
        """Return the response."""
        target = self._base + request.path + (f"?{request.query}" if request.query else "")
        self.connection.request(request.method, target, request.body or None, dict(request.headers))
        answer = self.connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Response(answer.status, headers, answer.read())

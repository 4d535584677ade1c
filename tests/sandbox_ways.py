"""Requests for the sandbox, and the two ways in: in-process and over HTTP."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import threading
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from django_moe_personalize.moengage.messages import Request, Response
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.faults import Faults
from django_moe_personalize.sandbox.server import SandboxServer, build_server
from django_moe_personalize.sandbox.workspace import Workspace, parse_workspace

NOW = 1_790_000_000.0
WORKSPACE_ID, API_KEY = "SANDBOX_DEBUG", "sandbox-key"
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
    """Return the headers of a good call."""
    return {"Authorization": basic(), "MOE-APPKEY": WORKSPACE_ID, "Content-Type": "application/json"}


def post(path: str, data: object, **headers: str) -> Request:
    """Build a POST; ``data`` is sent as it is when it is bytes, else as JSON."""
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return Request("POST", path, headers={**credentials(), **headers}, body=body)


def get_metadata(query: str = "") -> Request:
    """Build a metadata call."""
    return Request("GET", METADATA, query, headers=credentials())


def action(**changes: Any) -> dict[str, Any]:
    """Build a valid action, with changes; a change to ``...`` removes the field."""
    fields = {
        "action": "MOE_PERSONALIZATION_MESSAGE_SHOWN",
        "moe_event_uuid": str(uuid.uuid4()),
        "event_time": int(NOW) - 5,
        "platform": "web",
        "attributes": dict(CONTEXT),
    }
    return {name: value for name, value in {**fields, **changes}.items() if value is not ...}


def element(*actions: Any, **changes: Any) -> dict[str, Any]:
    """Build a valid element, with changes as in action()."""
    fields = {"customer_id": "42", "user_timezone_offset": 3600, "actions": list(actions) or [action()]}
    return {name: value for name, value in {**fields, **changes}.items() if value is not ...}


def batch(*elements: Any) -> dict[str, Any]:
    """Build the body of an events call."""
    return {"elements": list(elements)}


def build_workspace(*experiences: Mapping[str, Any], **fields: Any) -> Workspace:
    """Build a small workspace with the shipped credentials."""
    data = {"workspace_id": WORKSPACE_ID, "api_key": API_KEY, "experiences": list(experiences), **fields}
    return parse_workspace(data)


def build_engine(*experiences: Mapping[str, Any], **fields: Any) -> Engine:
    """Build an engine of a small workspace, at NOW."""
    return Engine(build_workspace(*experiences, **fields), clock=lambda: NOW)


def fetch(engine: Engine, data: object) -> dict[str, Any]:
    """Return the experiences an engine answers, by key."""
    response = engine.handle(post(FETCH, data))
    assert response.status == 200, response.body
    return json.loads(response.body)["experiences"]


@contextlib.contextmanager
def serving(engine: Engine, *, faults: Faults | None = None) -> Iterator[SandboxServer]:
    """Run a server on a free port of the loopback."""
    with build_server(engine, faults=faults) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class HttpWay:
    """Send requests over one keep-alive connection."""

    def __init__(self, server: SandboxServer, *, base: str = "/v1") -> None:
        self._base = base
        self.connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)

    def __call__(self, request: Request) -> Response:
        """Return the answer."""
        target = self._base + request.path + (f"?{request.query}" if request.query else "")
        self.connection.request(request.method, target, request.body or None, dict(request.headers))
        answer = self.connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Response(answer.status, headers, answer.read())

"""Ask the sandbox why a visitor got a variation, and which events it counted.

The sandbox runs in this process, or it is the server of ``manage.py moe_sandbox`` that ``BASE_URL`` names.
MoEngage itself answers neither question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import requests

from django_moe_personalize.client import get_engine
from django_moe_personalize.conf import get_settings
from django_moe_personalize.moengage.http1 import Request
from django_moe_personalize.sandbox.control import CONTROL_PATH, Control
from django_moe_personalize.sandbox.faults import FaultInjector

TIMEOUT = 2.0


class SandboxUnreachableError(Exception):
    """There is no sandbox, or the sandbox of another process didn't answer."""


def describe() -> str:
    """Return where the experiences come from, in words."""
    if get_engine() is not None:
        return "the sandbox in this process"
    origin = find_control_origin()
    return f"the sandbox at {origin}" if origin else "MoEngage"


def explain(body: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the sandbox's decisions on the body of a fetch, by key; raises SandboxUnreachableError."""
    return {each["experience_key"]: each for each in call_control("POST", "explain", body)["decisions"]}


def read_events() -> Sequence[Mapping[str, Any]]:
    """Return the entries of the ledger, oldest first; raises SandboxUnreachableError."""
    entries: list[dict[str, Any]] = call_control("GET", "ledger")["entries"]
    return entries


def clear_events() -> None:
    """Clear the ledger; raises SandboxUnreachableError."""
    call_control("DELETE", "ledger")


def find_control_origin() -> str:
    """Return scheme, host and port of ``BASE_URL`` if it is on this machine, else ``""``."""
    parts = urlsplit(get_settings().base_url)
    return f"{parts.scheme}://{parts.netloc}" if parts.hostname in ("127.0.0.1", "localhost", "::1") else ""


def call_control(method: str, name: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Call a control path of the sandbox and return its JSON; raises SandboxUnreachableError."""
    path, engine, origin = f"{CONTROL_PATH}/{name}", get_engine(), find_control_origin()
    answer: dict[str, Any]
    if engine is not None:
        request = Request(method, path, body=json.dumps(body).encode())
        answer = json.loads(Control(engine, FaultInjector()).handle(request).body)
        return answer
    if not origin:
        raise SandboxUnreachableError("The shop uses MoEngage, which doesn't answer this. Run it with a sandbox.")
    try:
        response = requests.request(method, f"{origin}{path}", json=body, timeout=TIMEOUT)
        response.raise_for_status()
        answer = response.json()
    except requests.RequestException as error:
        raise SandboxUnreachableError(f"The sandbox at {origin} doesn't answer. Start it again.") from error
    return answer

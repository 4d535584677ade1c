"""Ask the sandbox why a visitor got a variation, and which events it counted.

The sandbox runs in this process, or it is the server of ``manage.py moe_sandbox`` that ``BASE_URL`` names.
MoEngage itself answers neither question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import requests

from django_moe_personalize.client import get_engine
from django_moe_personalize.conf import get_settings
from django_moe_personalize.moengage.types import FailureReason
from django_moe_personalize.sandbox.control import CONTROL_PATH
from django_moe_personalize.sandbox.decisions import Decision
from django_moe_personalize.sandbox.ledger import LedgerEntry

TIMEOUT = 2.0


class SandboxUnreachableError(Exception):
    """There is no sandbox, or the sandbox of another process didn't answer."""


def describe() -> str:
    """Return where the experiences come from, in words."""
    if get_engine() is not None:
        return "the sandbox in this process"
    origin = find_control_origin()
    return f"the sandbox at {origin}" if origin else "MoEngage"


def explain(body: Mapping[str, Any]) -> Sequence[Decision]:
    """Return the sandbox's decisions on the body of a fetch; raises SandboxUnreachableError."""
    if (engine := get_engine()) is not None:
        return engine.explain(body)
    decisions = call_control("POST", "explain", body)["decisions"]
    return [read_decision(**decision) for decision in decisions]


def read_decision(*, served: bool, reason: str | None, checks: list[str], **fields: Any) -> Decision:
    """Return a decision from the JSON of another process."""
    return Decision(**fields, reason=None if reason is None else FailureReason(reason), checks=tuple(checks))


def read_events() -> Sequence[LedgerEntry]:
    """Return the entries of the ledger, oldest first; raises SandboxUnreachableError."""
    if (engine := get_engine()) is not None:
        return engine.ledger.entries()
    return [LedgerEntry(**entry) for entry in call_control("GET", "ledger")["entries"]]


def clear_events() -> None:
    """Clear the ledger; raises SandboxUnreachableError."""
    if (engine := get_engine()) is not None:
        engine.ledger.clear()
    else:
        call_control("DELETE", "ledger")


def find_control_origin() -> str:
    """Return scheme, host and port of ``BASE_URL`` if it is on this machine, else ``""``."""
    parts = urlsplit(get_settings().base_url)
    return f"{parts.scheme}://{parts.netloc}" if parts.hostname in ("127.0.0.1", "localhost", "::1") else ""


def call_control(method: str, name: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Call a control path of another process's sandbox and return its JSON; raises SandboxUnreachableError."""
    origin = find_control_origin()
    if not origin:
        raise SandboxUnreachableError("The shop uses MoEngage, which doesn't answer this. Run it with a sandbox.")
    try:
        response = requests.request(method, f"{origin}{CONTROL_PATH}/{name}", json=body, timeout=TIMEOUT)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
    except requests.RequestException as error:
        raise SandboxUnreachableError(f"The sandbox at {origin} doesn't answer. Start it again.") from error
    return answer

"""What only the sandbox can tell: why a visitor got a variation, and which events it has counted.

The sandbox is either embedded in this process or, with ``BASE_URL`` on this machine, the one that
``manage.py moe_sandbox`` serves. MoEngage itself tells neither: then there is nothing to show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests

from django_moe_personalize.conf import get_settings
from django_moe_personalize.client import get_engine

TIMEOUT = 2.0


class SandboxUnreachableError(Exception):
    """The sandbox of another process did not answer, or there is none."""


@dataclass(frozen=True, slots=True)
class Why:
    """Why one experience was served or not, in the sandbox's words."""

    experience_key: str
    served: bool
    sentence: str
    checks: tuple[str, ...]


def describe() -> str:
    """Say where experiences come from."""
    if get_engine() is not None:
        return "the sandbox embedded in this process"
    origin = find_control_origin()
    return f"the sandbox at {origin}" if origin else "MoEngage"


def explain(body: Mapping[str, Any]) -> dict[str, Why]:
    """Return the reasons by experience key for the body of a fetch; raises SandboxUnreachableError."""
    engine = get_engine()
    if engine is not None:
        decisions = [Why(each.experience_key, each.served, each.sentence, each.checks) for each in engine.explain(body)]
    else:
        decisions = [
            Why(each["experience_key"], each["served"], each["sentence"], tuple(each["checks"]))
            for each in call_control("POST", "explain", body)["decisions"]
        ]
    return {decision.experience_key: decision for decision in decisions}


def read_events() -> Sequence[Mapping[str, Any]]:
    """Return the events in the ledger, oldest first; raises SandboxUnreachableError."""
    engine = get_engine()
    if engine is not None:
        return [dataclasses.asdict(entry) for entry in engine.ledger.entries()]
    entries: list[dict[str, Any]] = call_control("GET", "ledger")["entries"]
    return entries


def clear_events() -> None:
    """Empty the ledger; raises SandboxUnreachableError."""
    engine = get_engine()
    if engine is not None:
        engine.ledger.clear()
    else:
        call_control("DELETE", "ledger")


def find_control_origin() -> str:
    """Return scheme, host and port of a sandbox on this machine, ``""`` when BASE_URL names none."""
    parts = urlsplit(get_settings().base_url)
    return f"{parts.scheme}://{parts.netloc}" if parts.hostname in ("127.0.0.1", "localhost", "::1") else ""


def call_control(method: str, name: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Ask a control path of the sandbox's server; raises SandboxUnreachableError."""
    origin = find_control_origin()
    if not origin:
        raise SandboxUnreachableError("There is no sandbox: MoEngage itself does not tell.")
    try:
        response = requests.request(method, f"{origin}/_sandbox/{name}", json=body, timeout=TIMEOUT)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
    except requests.RequestException as error:
        raise SandboxUnreachableError(f"The sandbox at {origin} does not answer.") from error
    return answer

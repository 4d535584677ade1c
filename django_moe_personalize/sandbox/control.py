"""The sandbox's control paths: its ledger, its decisions and its faults. MoEngage's API has no such paths."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import Any

from django_moe_personalize.moengage.http1 import Request, Response
from django_moe_personalize.sandbox.decisions import Decision
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.faults import FaultInjector, parse_faults
from django_moe_personalize.sandbox.responses import Actions, build_invalid_field, build_json_response, route
from django_moe_personalize.sandbox.validation import read_body

CONTROL_PATH = "/_sandbox"


def is_loopback(host: str) -> bool:
    """Whether ``host`` is localhost or a loopback address. ``host`` has no port."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_control_allowed(client_host: str, host_header: str) -> bool:
    """Whether a control request comes from this machine and names this machine in its Host header.

    The Host header stops DNS rebinding: the name of a hostile web page may resolve to 127.0.0.1, but the
    browser then sends that name as Host.
    """
    name, colon, port = host_header.rpartition(":")
    host = name if colon and port.isdigit() else host_header
    return is_loopback(client_host) and is_loopback(host)


class Control:
    """Answer control requests.

    The requests are ``GET`` and ``DELETE /_sandbox/ledger``, ``POST /_sandbox/explain`` with the body of a fetch, and
    ``GET`` and ``PUT /_sandbox/faults`` with the fields of Faults as body.
    """

    def __init__(self, engine: Engine, injector: FaultInjector) -> None:
        self._engine = engine
        self._injector = injector
        self._actions: Actions = {
            f"{CONTROL_PATH}/ledger": {"GET": self._read_ledger, "DELETE": self._clear_ledger},
            f"{CONTROL_PATH}/explain": {"POST": self._explain},
            f"{CONTROL_PATH}/faults": {"GET": self._read_faults, "PUT": self._set_faults},
        }

    def handle(self, request: Request) -> Response:
        """Return the response to a control request. Never raises."""
        return route(request, self._actions)

    def _read_ledger(self, request: Request) -> Response:
        counts = {key: dataclasses.asdict(each) for key, each in self._engine.ledger.counts().items()}
        entries = [dataclasses.asdict(entry) for entry in self._engine.ledger.entries()]
        return build_json_response({"counts": counts, "entries": entries, "repeats": self._engine.ledger.repeats})

    def _clear_ledger(self, request: Request) -> Response:
        self._engine.ledger.clear()
        return build_json_response({"counts": {}, "entries": [], "repeats": 0})

    def _explain(self, request: Request) -> Response:
        decisions = self._engine.explain(read_body(request.body))
        return build_json_response({"decisions": [_as_json(decision) for decision in decisions]})

    def _read_faults(self, request: Request) -> Response:
        return build_json_response(dataclasses.asdict(self._injector.faults))

    def _set_faults(self, request: Request) -> Response:
        data = read_body(request.body)
        try:
            self._injector.faults = parse_faults(data)
        except ValueError as error:
            raise build_invalid_field(str(error)) from error
        return self._read_faults(request)


def _as_json(decision: Decision) -> dict[str, Any]:
    reason = None if decision.reason is None else decision.reason.value
    return {**dataclasses.asdict(decision), "served": decision.served, "reason": reason}

"""Answer requests to MoEngage Personalize and to the Data API from one workspace (contract §2–§4, §8)."""

from __future__ import annotations

import dataclasses
import secrets
import string
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, quote

from django_moe_personalize.moengage.http1 import Request, Response
from django_moe_personalize.moengage.types import MAX_KEYS, FailureReason
from django_moe_personalize.sandbox.audiences import Visitor
from django_moe_personalize.sandbox.conversions import read_conversions
from django_moe_personalize.sandbox.decisions import Decision, campaign_id, decide
from django_moe_personalize.sandbox.ledger import UNKNOWN_EXPERIENCE, Ledger
from django_moe_personalize.sandbox.profiles import Profiles
from django_moe_personalize.sandbox.responses import Actions, build_json_response, route
from django_moe_personalize.sandbox.validation import (
    FetchQuery,
    check_credentials,
    check_key,
    read_body,
    read_events,
    read_fetch,
    read_profiles,
)
from django_moe_personalize.sandbox.workspace import State, Workspace, WorkspaceFile

_ALPHABET = string.ascii_letters + string.digits
_ACCEPTED = "Your request has been accepted and will be processed soon."


class Engine:
    """Answer requests from a workspace, or from a file whose changes count from the next request on.

    Threads may share an engine. ``clock`` returns Unix time in seconds, for schedules and for the age of events.
    """

    def __init__(self, source: Workspace | WorkspaceFile, *, clock: Callable[[], float] = time.time) -> None:
        self._file = source if isinstance(source, WorkspaceFile) else None
        self.ledger = Ledger()
        self.clock = clock
        self.replace(source if isinstance(source, Workspace) else source.workspace)
        self._endpoints: Actions = {
            "/experiences/fetch": {"POST": self._fetch},
            "/experiences/metadata": {"GET": self._metadata},
            "/experiences/events": {"POST": self._events},
            f"/event/{quote(self.workspace.workspace_id, safe='')}": {"POST": self._convert},
        }

    def replace(self, workspace: Workspace) -> None:
        """Answer from another workspace from the next request on. The ledger stays."""
        self.workspace = workspace
        self.profiles = Profiles(workspace)
        self._campaigns = {campaign_id(workspace, key): key for key in workspace.definitions}
        self._names = {definition.name: key for key, definition in workspace.definitions.items()}

    def refresh(self) -> float:
        """Use the workspace file as it is now. Return the Unix time of its last change, or 0.0 without a file."""
        if self._file is None:
            return 0.0
        if (workspace := self._file.refresh()) is not self.workspace:
            self.replace(workspace)
        return self._file.changed_at

    def handle(self, request: Request) -> Response:
        """Return the response to a request. Never raises. ``validation`` has the order of the checks."""
        self.refresh()
        return route(request, self._endpoints)

    def explain(self, body: Mapping[str, Any], *, now: float | None = None) -> list[Decision]:
        """Return the decision on each key in the body of a fetch, at Unix time ``now`` (default: by the clock).

        Raises RefusedError if a fetch would be refused. After the first 25 keys, each key gets the reason
        MAX_LIMIT_BREACHED.
        """
        self.refresh()
        query = read_fetch(body)
        breached = FailureReason.MAX_LIMIT_BREACHED
        late = [
            Decision(key, f"A fetch answers only its first {MAX_KEYS} keys.", breached)
            for key in (query.keys or ())[MAX_KEYS:]
        ]
        return self._decide(query, self.clock() if now is None else now) + late

    def _decide(self, query: FetchQuery, now: float) -> list[Decision]:
        customer_id = self.profiles.resolve(query.customer_id, query.identifiers)
        visitor = Visitor(self.profiles.attributes(customer_id), query.session, customer_id)
        keys = tuple(self.workspace.definitions) if query.keys is None else query.keys[:MAX_KEYS]
        everyone_only = query.keys is None and customer_id is None
        return [decide(self.workspace, key, visitor, now=now, everyone_only=everyone_only) for key in keys]

    def _fetch(self, request: Request) -> Response:
        check_credentials(request, self.workspace)
        decisions = self._decide(read_fetch(read_body(request.body)), self.clock())
        return build_json_response(
            {"experiences": {each.experience_key: each.entry for each in decisions if each.served}}
        )

    def _metadata(self, request: Request) -> Response:
        check_credentials(request, self.workspace)
        asked = parse_qs(request.query).get("status")
        wanted = None if asked is None else ",".join(asked).split(",")
        now = self.clock()
        rows = []
        for key, definition in self.workspace.definitions.items():
            state = definition.state(now)
            # The contract has no status for an experience that has ended, so the response omits such experiences.
            if state is not State.EXPIRED and (wanted is None or state.value in wanted):
                rows.append({"experience_name": definition.name, "experience_key": key, "status": state.value})
        return build_json_response({"metadata": {"count": len(rows), "experiences": rows}})

    def _events(self, request: Request) -> Response:
        check_credentials(request, self.workspace)
        data = read_body(request.body)
        now = self.clock()
        entries = list(read_events(data, now=now, offering_actions=self.workspace.offering_actions))
        self.ledger.record(
            dataclasses.replace(entry, experience_key=self._find_experience_key(entry.attributes)) for entry in entries
        )
        for customer_id, attributes in read_profiles(data):
            self.profiles.update(customer_id, attributes)
        req_id = "".join(secrets.choice(_ALPHABET) for _ in range(8))
        return build_json_response({"status": "success", "message": _ACCEPTED, "req_id": req_id})

    def _convert(self, request: Request) -> Response:
        check_key(request, self.workspace.workspace_id, self.workspace.data_api_key)
        entries = list(read_conversions(read_body(request.body), now=self.clock()))
        self.ledger.record(entries)
        # An event of an unknown customer makes a profile.
        self.profiles.update(entries[0].customer_id, {})
        return build_json_response({"status": "success", "message": _ACCEPTED})

    def _find_experience_key(self, attributes: Mapping[str, Any]) -> str:
        """Return the key of the experience that a context names: by ``cid``, or by the experience's name or key."""
        name = str(attributes.get("experience", ""))
        if name in self.workspace.definitions:
            name = self.workspace.definitions[name].name
        campaign = str(attributes.get("cid", "")).partition("_")[0]
        return self._campaigns.get(campaign) or self._names.get(name, UNKNOWN_EXPERIENCE)

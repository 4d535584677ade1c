"""A workbench for a workspace file, without a server."""

import json
import os
import re
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from django_moe_personalize.moengage.http1 import Request, Response
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.faults import FaultInjector
from django_moe_personalize.sandbox.workspace import WorkspaceFile
from django_moe_personalize.workbench import Workbench
from tests.sandbox.ways import API_KEY, NOW, WORKSPACE_ID

WORKSPACE = {
    "workspace_id": WORKSPACE_ID,
    "api_key": API_KEY,
    "customers": {"1": {"name": "Ada", "u_em": "ada@example.com", "loyalty": "gold"}},
    "audiences": {"Gold": {"customer.loyalty": "gold"}, "Unused": {"utm_medium": "email"}},
    "experiences": [
        {
            "key": "hero-banner",
            "name": "Hero banner",
            "content": [
                {"audience": "Gold", "payload": {"Title": "Welcome back"}},
                {
                    "audience": {"device": "Mobile"},
                    "variations": [
                        {"name": "Left", "weight": 3, "payload": {"Title": "<b>Left</b>"}},
                        {"payload": {"Price": 3}},
                    ],
                },
            ],
        },
        {"key": "promo-strip", "control_group": 100, "payload": {"Text": "Free returns"}},
        {"key": "old-sale", "end": "2020-01-01T00:00:00+00:00", "payload": {}},
        {"key": "new-sale", "start": "2026-12-01T00:00:00+00:00", "payload": {"Text": "Snow"}},
    ],
}


class Bench:
    """A workbench, and the requests of a browser."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.save(WORKSPACE)
        self.file = WorkspaceFile(path)
        self.engine = Engine(self.file, clock=lambda: NOW)
        self.injector = FaultInjector()
        self.workbench = Workbench(self.engine, self.injector, self.file)

    def save(self, data: object) -> None:
        """Write the file as another program does, a second after the last time."""
        text = data if isinstance(data, str) else json.dumps(data, indent=2)
        self.path.write_bytes(text.encode())
        self.time = getattr(self, "time", NOW) + 1
        os.utime(self.path, (self.time, self.time))

    def send(self, method: str, path: str, query: str = "", body: str = "", **headers: str) -> Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.workbench.handle(Request(method, path, query, {"host": "localhost:8899", **names}, body.encode()))

    def get(self, path: str = "/", **query: str) -> str:
        """Return the page as a reader sees it: without tags, and with one space between words."""
        response = self.send("GET", path, urlencode(query))
        assert response.status == 200
        return read_words(response)

    def post(self, path: str, fields: Mapping[str, Any] | None = None, **headers: str) -> Response:
        """Send a form of the page."""
        page = self.send("GET", path).body.decode()
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)[1]
        body = urlencode({"csrfmiddlewaretoken": token, **(fields or {})})
        return self.send("POST", path, body=body, **headers)


def read_words(response: Response) -> str:
    html = re.sub(r"(?s)<(head|header)\b.*?</\1>", "", response.body.decode())
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "moe.json")

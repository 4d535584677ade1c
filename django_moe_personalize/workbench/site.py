"""Answer the requests for the workbench's pages. They are only for the person at this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from django.http import QueryDict
from django.template import Engine as TemplateEngine
from django.template.context import Context
from django.utils import translation

from django_moe_personalize.moengage.http1 import Request, Response
from django_moe_personalize.moengage.types import MAX_KEYS
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.faults import FaultInjector, Faults
from django_moe_personalize.sandbox.responses import RefusedError
from django_moe_personalize.sandbox.server import MAX_READ
from django_moe_personalize.sandbox.workspace import WorkspaceFile
from django_moe_personalize.workbench.answers import Answer, build_answer
from django_moe_personalize.workbench.editor import Draft, Editor
from django_moe_personalize.workbench.experiences import list_audiences, list_experiences
from django_moe_personalize.workbench.faults import PRESETS, FaultForm, describe_faults
from django_moe_personalize.workbench.ledger import build_ledger
from django_moe_personalize.workbench.visitor import USER_AGENTS, VisitorForm

PACKAGE: Final = Path(__file__).resolve().parent.parent
POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    # With "no-referrer" a browser would hide the origin of a form.
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}
HTML: Final = {"content-type": "text/html; charset=utf-8"}
FILES: Final = {"workbench.css": "text/css; charset=utf-8", "workbench.js": "text/javascript; charset=utf-8"}

Action = Callable[[Request], Response]


class Workbench:
    """Answer the requests for the pages of one sandbox. Threads may share a workbench.

    A form has a token of this process: another site can't read the page, so it can't send the form. The server answers
    only requests from this machine with its name in the Host header. A cookie wouldn't protect the forms as well:
    browsers send it to all ports of a host.
    """

    def __init__(self, engine: Engine, injector: FaultInjector, file: WorkspaceFile) -> None:
        self._engine = engine
        self._injector = injector
        self._file = file
        self._editor = Editor(file)
        self._token = secrets.token_urlsafe()
        self._templates = TemplateEngine(dirs=[str(PACKAGE / "templates")])
        self._actions: Mapping[str, Mapping[str, Action]] = {
            "/": {"GET": self._show_experiences},
            "/visitor/": {"GET": self._show_visitor},
            "/ledger/": {"GET": self._show_ledger, "POST": self._clear_ledger},
            "/faults/": {"GET": self._show_faults, "POST": self._set_faults},
            "/workspace/": {"GET": self._show_workspace, "POST": self._save_workspace},
            **{f"/static/{name}": {"GET": self._read_static} for name in FILES},
        }

    def handle(self, request: Request) -> Response:
        """Return the response to a request."""
        self._engine.refresh()
        with translation.override("en"):
            response = self._answer(request)
        return Response(response.status, {**HEADERS, **response.headers}, response.body)

    def _answer(self, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        actions = self._actions.get(request.path, {})
        if not actions:
            return self._refuse(404, "No such page", "The workbench has nothing at this address.")
        if method not in actions:
            response = self._refuse(405, "Method not allowed", "This page doesn't take that method.")
            return Response(405, {**response.headers, "allow": ", ".join(actions)}, response.body)
        if method == "POST":
            return self._check_form(request) or actions[method](request)
        etag = self._build_etag()
        if request.headers.get("if-none-match") == etag:
            return Response(304, {"etag": etag})
        response = actions[method](request)
        return Response(response.status, {**response.headers, "etag": etag}, response.body)

    def _build_etag(self) -> str:
        """Return the version of all that pages show. The time counts because schedules begin and end."""
        faults, now = self._injector.faults, int(self._engine.clock()) // 10
        parts = (self._token, self._engine.ledger.revision, self._file.changed_at, self._editor.stamp, faults, now)
        return f'"{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}"'

    def _check_form(self, request: Request) -> Response | None:
        """Return why a form isn't accepted, or ``None``."""
        origin = request.headers.get("origin")
        is_own = origin is None or urlsplit(origin).netloc == request.headers.get("host")
        if len(request.body) >= MAX_READ:
            return self._refuse(413, "Too long", "The form is longer than 1 MiB. Edit the file with another program.")
        token = QueryDict(request.body).get("csrfmiddlewaretoken", "")
        if not is_own or not hmac.compare_digest(token.encode(), self._token.encode()):
            text = "The form isn't of this sandbox, or the sandbox has started again. Load the page again, and repeat."
            return self._refuse(403, "Not accepted", text)
        return None

    def _refuse(self, status: int, title: str, text: str) -> Response:
        return self._render("message.html", {"title": title, "text": text}, status=status)

    def _render(self, name: str, context: Mapping[str, Any], *, status: int = 200) -> Response:
        workspace = self._engine.workspace
        shared = {
            "csrf_token": self._token,
            "file": self._file,
            "changed": datetime.fromtimestamp(self._file.changed_at, UTC),
            "workspace": workspace,
            "faults": describe_faults(self._injector.faults),
            "page": name.removesuffix(".html"),
        }
        template = self._templates.get_template(f"moe_personalize/workbench/{name}")
        # Times stay in their own zone, and numbers have no separators, whatever the site's settings say.
        html = template.render(Context({**shared, **context}, use_tz=False, use_l10n=False))
        # A JSON text may have half of a character (\ud800).
        return Response(status, HTML, html.encode(errors="xmlcharrefreplace"))

    def _redirect(self, url: str) -> Response:
        return Response(303, {"location": url, **HTML})

    def _read_static(self, request: Request) -> Response:
        name = request.path.rpartition("/")[2]
        body = (PACKAGE / "static" / "moe_personalize" / name).read_bytes()
        return Response(200, {"content-type": FILES[name]}, body)

    def _show_experiences(self, request: Request) -> Response:
        workspace = self._engine.workspace
        experiences = list_experiences(workspace, self._engine.clock())
        return self._render("experiences.html", {"experiences": experiences, "audiences": list_audiences(workspace)})

    def _show_visitor(self, request: Request) -> Response:
        form = VisitorForm(QueryDict(request.query), label_suffix="")
        body: dict[str, Any] = {}
        answers: list[Answer] = []
        trouble = ""
        if form.is_valid():
            body, now = form.build_fetch(self._engine.clock())
            try:
                answers = self._ask(body, now)
            except RefusedError as refused:
                trouble = refused.description
        return self._render(
            "visitor.html",
            {
                "form": form,
                "answers": answers,
                "trouble": trouble,
                "fetch": json.dumps(body, indent=2, ensure_ascii=False),
                "agents": USER_AGENTS,
                "served": sum(answer.decision.served for answer in answers),
            },
        )

    def _ask(self, body: Mapping[str, Any], now: float) -> list[Answer]:
        """Return the answers on all experiences. A fetch takes 25 keys."""
        definitions = self._engine.workspace.definitions
        keys = list(definitions)
        decisions = [
            decision
            for start in range(0, len(keys), MAX_KEYS)
            for decision in self._engine.explain({**body, "experience_key": keys[start : start + MAX_KEYS]}, now=now)
        ]
        return [build_answer(decision, definitions.get(decision.experience_key)) for decision in decisions]

    def _show_ledger(self, request: Request) -> Response:
        return self._render("ledger.html", {"view": build_ledger(self._engine.ledger.entries())})

    def _clear_ledger(self, request: Request) -> Response:
        self._engine.ledger.clear()
        return self._redirect("/ledger/")

    def _show_faults(self, request: Request, form: FaultForm | None = None) -> Response:
        current = self._injector.faults
        initial = {name: value for name, value in dataclasses.asdict(current).items() if value is not None}
        form = form or FaultForm(initial={name: f"{value:g}" for name, value in initial.items()}, label_suffix="")
        return self._render("faults.html", {"form": form, "presets": PRESETS, "current": current})

    def _set_faults(self, request: Request) -> Response:
        data = QueryDict(request.body)
        if (preset := PRESETS.get(data.get("preset", ""))) is not None:
            self._injector.faults = preset.faults
            return self._redirect("/faults/")
        form = FaultForm(data, label_suffix="")
        if not form.is_valid():
            return self._show_faults(request, form)
        self._injector.faults = Faults(**form.cleaned_data)
        return self._redirect("/faults/")

    def _show_workspace(self, request: Request, draft: Draft | None = None) -> Response:
        context = {
            "draft": draft or self._editor.open(),
            "editor": self._editor,
            "is_saved": "saved" in QueryDict(request.query) and draft is None,
        }
        return self._render("workspace.html", context)

    def _save_workspace(self, request: Request) -> Response:
        data = QueryDict(request.body)
        draft = Draft(data.get("text", ""), data.get("stamp", ""))
        if self._editor.is_read_only:
            return self._show_workspace(request)
        refused = self._editor.save(draft, anyway="anyway" in data)
        return self._redirect("/workspace/?saved") if refused is None else self._show_workspace(request, refused)

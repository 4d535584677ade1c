"""``manage.py moe_experiences``: list the experiences of the workspace and their places in the site's code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from django.core.management.base import CommandError, CommandParser

from django_moe_personalize.checks.usages import Usage, find_usages
from django_moe_personalize.client import get_client, is_embedded, open_workspace_file
from django_moe_personalize.conf import list_workspaces
from django_moe_personalize.doctor.asking import SECONDS, explain_failures
from django_moe_personalize.doctor.drift import Payloads, Problem, Row, collect_payloads, find_problems, list_rows
from django_moe_personalize.management import WorkspaceCommand
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import get_runtime

HEADER = ("KEY", "STATUS", "NAME", "USED IN")


class Command(WorkspaceCommand):
    """List the experiences, or with ``--check`` the differences between the site and the workspace."""

    help = "Lists the experiences of the workspace, and where templates, views, settings and schemas use them."
    # A system check would report some of the mistakes twice.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """See BaseCommand.add_arguments()."""
        super().add_arguments(parser)
        check = "report keys that don't exist or have ended or are paused, and payloads that break their schema"
        customer = "with --check: also compare the payloads that this customer gets; may be repeated"
        parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
        parser.add_argument("--check", action="store_true", help=f"{check}; with a problem the exit code is 1")
        parser.add_argument("--customer", action="append", default=[], metavar="ID", help=customer)

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the table or the problems. Raises CommandError for problems, and if MoEngage doesn't answer."""
        rows, payloads = explain_failures(lambda: _collect(options["customer"], with_payloads=options["check"]))
        problems = list(find_problems(rows, payloads)) if options["check"] else []
        if options["json"]:
            self.stdout.write(json.dumps(_as_json(rows, problems, is_check=options["check"]), indent=2))
        elif options["check"]:
            self._print_problems(problems)
        else:
            self._print_table(rows)
        if problems:
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            raise CommandError(f"The site and {_describe_workspace()} differ: {count}.")
        if options["check"] and not options["json"]:
            used = sum(bool(row.usages) for row in rows)
            count = "1 experience" if used == 1 else f"{used} experiences"
            self.stdout.write(f"The site uses {count}, and {_describe_workspace()} has them all.")

    def _print_problems(self, problems: Sequence[Problem]) -> None:
        for problem in problems:
            place, *more = [usage.place for usage in problem.usages]
            others = f" (also {', '.join(more)})" if more else ""
            self.stdout.write(f"{place}: {problem.message} {problem.fix}{others}")

    def _print_table(self, rows: Sequence[Row]) -> None:
        lines = [HEADER]
        for row in rows:
            places = [usage.place for usage in row.usages] or ["-"]
            lines.append((row.experience_key, row.status, row.name, places[0]))
            lines += [("", "", "", place) for place in places[1:]]
        widths = [max(len(line[column]) for line in lines) for column in range(3)]
        for line in lines:
            cells = [cell.ljust(width) for cell, width in zip(line[:3], widths, strict=True)]
            self.stdout.write("  ".join([*cells, line[3]]).rstrip())


def _collect(customers: Sequence[str], *, with_payloads: bool) -> tuple[list[Row], Payloads]:
    metadata = get_client().fetch_metadata(deadline=Deadline(SECONDS))
    others = _find_other_keys() - {meta.experience_key for meta in metadata.experiences}
    rows = list_rows(metadata, [usage for usage in find_usages() if usage.experience_key not in others])
    return rows, collect_payloads(rows, customers) if with_payloads else {}


def _find_other_keys() -> set[str]:
    """Return the keys of the site's other workspaces: which pages are for which workspace, only the site knows."""
    own, found = get_runtime().name, set[str]()
    for name in list_workspaces():
        if name != own:
            metadata = get_client(get_runtime(name)).fetch_metadata(deadline=Deadline(SECONDS))
            found |= {meta.experience_key for meta in metadata.experiences}
    return found


def _describe_workspace() -> str:
    settings = get_runtime().settings
    if is_embedded(settings):
        return f"the sandbox's workspace file {open_workspace_file(settings).path.name}"
    return f"the workspace {settings.workspace_id or 'in BASE_URL'}"


def _as_json(rows: Sequence[Row], problems: Sequence[Problem], *, is_check: bool) -> dict[str, Any]:
    experiences = [
        {"key": row.experience_key, "status": row.status, "name": row.name, "used": list(map(_place, row.usages))}
        for row in rows
    ]
    found = [
        {"key": each.experience_key, "message": each.message, "fix": each.fix, "used": list(map(_place, each.usages))}
        for each in problems
    ]
    return {"experiences": experiences, **({"problems": found} if is_check else {})}


def _place(usage: Usage) -> dict[str, Any]:
    return {"kind": usage.kind, "file": usage.file, "line": usage.line}

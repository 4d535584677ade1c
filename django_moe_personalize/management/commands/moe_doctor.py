"""``manage.py moe_doctor``: check whether personalization works on this site, and say how to fix each problem."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from django.core.management.base import CommandError, CommandParser

from django_moe_personalize.conf import list_workspaces
from django_moe_personalize.doctor.report import diagnose
from django_moe_personalize.doctor.site import Finding
from django_moe_personalize.management import WorkspaceCommand
from django_moe_personalize.runtime import use_workspace


class Command(WorkspaceCommand):
    """Print each finding on one line, as soon as the doctor has found it. If one is a problem, the exit code is 1."""

    without = "all of them"
    help = "Reports whether personalization works on this site, and how to fix each problem."
    # Django would stop before the doctor if a check finds an error. The doctor runs the checks itself.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """See BaseCommand.add_arguments()."""
        super().add_arguments(parser)
        parser.add_argument("--json", action="store_true", help="Print one JSON object, for programs.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the findings. Raises CommandError if one is a problem."""
        styles = {"ok": self.style.SUCCESS, "warning": self.style.WARNING, "problem": self.style.ERROR}
        states: Counter[str] = Counter()
        found: list[dict[str, str]] = []
        names = self.list_chosen(options["workspace"])
        for name, finding in itertools.chain.from_iterable(map(_diagnose, names)):
            states[finding.state] += 1
            place = {"workspace": name} if len(list_workspaces()) > 1 else {}
            told = {"id": finding.id, "level": finding.state, "message": finding.what, "fix": finding.fix}
            found.append({**place, **told})
            if options["json"]:
                continue
            label = f"{finding.state:<8}"
            # Django looks only at the output of the process. The caller may have passed another output.
            if self.stdout.isatty() or options["force_color"]:
                label = styles[finding.state](label)
            # The message of a system check may have several lines.
            text = " ".join(f"{finding.what} {finding.fix}".split())
            text = f"{name}: {text}" if len(names) > 1 else text
            self.stdout.write(f"{label} {text}")
            self.stdout.flush()
        if options["json"]:
            counts = {"problems": states["problem"], "warnings": states["warning"]}
            self.stdout.write(json.dumps({**counts, "findings": found}, indent=2))
        summary = f"problems: {states['problem']}, warnings: {states['warning']}"
        if states["problem"]:
            raise CommandError(f"Personalization doesn't work as it should ({summary}).")
        if not options["json"]:
            self.stdout.write(f"Personalization works ({summary}).")


def _diagnose(workspace: str) -> Iterator[tuple[str, Finding]]:
    """Yield the findings about a workspace, with its name."""
    with use_workspace(workspace):
        yield from ((workspace, finding) for finding in diagnose())

"""``manage.py moe_doctor``: check whether personalization works on this site, and say how to fix each problem."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_moe_personalize.doctor.report import diagnose


class Command(BaseCommand):
    """Print each finding on one line, as soon as the doctor has found it. If one is a problem, the exit code is 1."""

    help = "Reports whether personalization works on this site, and how to fix each problem."
    # Django would stop before the doctor if a check finds an error. The doctor runs the checks itself.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """See BaseCommand.add_arguments()."""
        parser.add_argument("--json", action="store_true", help="Print one JSON object, for programs.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the findings. Raises CommandError if one is a problem."""
        styles = {"ok": self.style.SUCCESS, "warning": self.style.WARNING, "problem": self.style.ERROR}
        states: Counter[str] = Counter()
        found: list[dict[str, str]] = []
        for finding in diagnose():
            states[finding.state] += 1
            found.append({"id": finding.id, "level": finding.state, "message": finding.what, "fix": finding.fix})
            if options["json"]:
                continue
            label = f"{finding.state:<8}"
            # Django looks only at the output of the process. The caller may have passed another output.
            if self.stdout.isatty() or options["force_color"]:
                label = styles[finding.state](label)
            # The message of a system check may have several lines.
            text = " ".join(f"{finding.what} {finding.fix}".split())
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

"""``manage.py moe_doctor``: report whether personalization works on this site, and how to fix each problem."""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from django_moe_personalize.doctor import diagnose


class Command(BaseCommand):
    """Print each finding on one line as soon as it is known. With a problem the exit code is 1."""

    help = "Reports whether personalization works on this site, and how to fix each problem."
    # The doctor reports the checks itself, and goes on after an error.
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the findings. Raises CommandError if one is a problem."""
        styles = {"ok": self.style.SUCCESS, "warning": self.style.WARNING, "problem": self.style.ERROR}
        states: Counter[str] = Counter()
        for finding in diagnose():
            states[finding.state] += 1
            label = f"{finding.state:<8}"
            # Django decides on colors by the process's own output, but this output may go elsewhere.
            if self.stdout.isatty() or options["force_color"]:
                label = styles[finding.state](label)
            # A message of a check may have several lines.
            text = " ".join(f"{finding.what} {finding.fix}".split())
            self.stdout.write(f"{label} {text}")
            self.stdout.flush()
        summary = f"problems: {states['problem']}, warnings: {states['warning']}"
        if states["problem"]:
            raise CommandError(f"Personalization doesn't work as it should ({summary}).")
        self.stdout.write(f"Personalization works ({summary}).")

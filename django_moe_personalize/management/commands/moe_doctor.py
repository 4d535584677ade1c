"""``manage.py moe_doctor``: whether personalization works here and, if not, what to mend."""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from django_moe_personalize.doctor.report import diagnose


class Command(BaseCommand):
    """Print a line for each finding as it is found; exit code 1 when one of them is a problem."""

    help = "Says whether personalization works on this site and, if not, what to mend."
    # It reports them itself, and goes on.
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        """Examine. Raises CommandError when there is a problem."""
        styles = {"ok": self.style.SUCCESS, "warning": self.style.WARNING, "problem": self.style.ERROR}
        states: Counter[str] = Counter()
        for finding in diagnose():
            states[finding.state] += 1
            label = f"{finding.state:<8}"
            # Django looks at the process's own output alone, which may not be where this goes.
            if self.stdout.isatty() or options["force_color"]:
                label = styles[finding.state](label)
            # A message may have several lines, a finding has one.
            text = " ".join(f"{finding.what} {finding.mend}".split())
            self.stdout.write(f"{label} {text}")
            self.stdout.flush()
        if states["problem"]:
            raise CommandError(f"{states['problem']} to mend, {states['warning']} to look at.")
        self.stdout.write(f"Nothing to mend, {states['warning']} to look at.")

#!/usr/bin/env python
"""Run a management command of the example shop; start with ``manage.py demo``."""

import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
    if "django_moe_personalize.contrib.otel" in settings.INSTALLED_APPS:
        import telemetry

        telemetry.instrument()
        telemetry.start()
    execute_from_command_line(sys.argv)

"""The shop for a WSGI server, such as ``gunicorn --chdir example_project wsgi``."""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
if "django_moe_personalize.contrib.otel" in settings.INSTALLED_APPS:
    import telemetry

    telemetry.instrument()
    telemetry.start()
application = get_wsgi_application()

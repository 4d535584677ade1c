"""The Django app, which starts the instrumentation."""

from functools import cache

from django.apps import AppConfig


class OpenTelemetryConfig(AppConfig):
    """Measure and trace this process. The app has no models and no templates."""

    name = "django_moe_personalize.contrib.otel"
    label = "moe_personalize_otel"

    def ready(self) -> None:
        """Start once, even if Django builds its apps again, as tests do."""
        _start()


@cache
def _start() -> None:
    from django_moe_personalize.contrib.otel import metrics, spans

    metrics.start()
    spans.start()

"""Metrics and spans for OpenTelemetry. The app needs only its API: the site chooses the SDK and the exporters."""

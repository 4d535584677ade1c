"""Metrics for Prometheus at /metrics. With a collector, also traces and metrics for it.

OpenTelemetry's variables name the collector: ``OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318``.
"""

import os
from uuid import uuid4

from django.http import HttpRequest, HttpResponse
from opentelemetry import metrics, trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def instrument() -> None:
    """Make a span for each page, if there is a collector. Call it before Django loads the middleware."""
    if ENDPOINT in os.environ:
        from opentelemetry.instrumentation.django import DjangoInstrumentor

        DjangoInstrumentor().instrument()


def start() -> None:
    """Start the exporters of this process. Call it in each process after a fork."""
    resource = Resource.create({"service.name": "shop", "service.instance.id": str(uuid4())})
    readers: list[MetricReader] = [PrometheusMetricReader()]
    if ENDPOINT in os.environ:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
        tracers = TracerProvider(resource=resource)
        tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(MeterProvider(readers, resource))


def show_metrics(request: HttpRequest) -> HttpResponse:
    """Show the metrics of this process as Prometheus reads them."""
    return HttpResponse(generate_latest(), content_type=CONTENT_TYPE_LATEST)

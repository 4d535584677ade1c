"""Fixtures for the tests of delivery."""

import contextlib
from datetime import timedelta
from functools import partial

import pytest
from django.db import connection
from django.utils import timezone

from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.delivery.outbox import State
from django_moe_personalize.delivery.thread import ThreadDelivery
from django_moe_personalize.models import OutboxEvent
from django_moe_personalize.runtime import reset_runtimes
from django_moe_personalize.signals import events_delivered, events_dropped
from tests.delivery.events import backend
from tests.delivery.vendor import Vendor


@pytest.fixture
def vendor(settings):
    """Run a MoEngage on loopback and let the site use it."""
    with Vendor() as vendor:
        settings.MOE_PERSONALIZE = vendor.settings()
        yield vendor
        # Let pending events leave before the server stops.
        vendor.recover()
        reset_runtimes()


@pytest.fixture
def build(vendor):
    """Build ThreadDeliveries that retry quickly and send only when full or flushed. Close them after the test."""
    built = []

    def build(**options):
        delivery = ThreadDelivery(**{"interval": 600.0, "backoff": 0.01, "pause": 600.0, **options})
        built.append(delivery)
        return delivery

    yield build
    vendor.recover()
    for delivery in built:
        delivery.close()


@pytest.fixture
def configure(vendor, settings):
    def configure(name, **options):
        settings.MOE_PERSONALIZE = vendor.settings(DELIVERY=backend(name, **options))
        return get_delivery()

    return configure


@pytest.fixture
def build_outbox(configure):
    return partial(configure, "database.DatabaseDelivery", backoff=0.001, max_backoff=0.01)


@pytest.fixture
def delivery(build_outbox):
    return build_outbox()


def make_due():
    """Let time pass for every pending row, and let every lease run out."""
    OutboxEvent.objects.filter(state=State.PENDING).update(due_at=timezone.now() - timedelta(seconds=1))


@contextlib.contextmanager
def without_table(model=OutboxEvent):
    """Take the table of the outbox away while the context lasts."""
    table = model._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO away")
        yield
        cursor.execute(f"ALTER TABLE away RENAME TO {table}")


@contextlib.contextmanager
def connected(receiver, *signals):
    """Connect a receiver to signals while the context lasts."""
    for signal in signals:
        signal.connect(receiver)
    yield
    for signal in signals:
        signal.disconnect(receiver)


@pytest.fixture
def heard():
    """Collect the signals of delivery: ("delivered", count) or (reason, count)."""
    found = []

    def receive(count, reason="delivered", **kwargs):
        found.append((reason, count))

    with connected(receive, events_delivered, events_dropped):
        yield found

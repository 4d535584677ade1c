"""Fixtures for requests that are handled by the sync or by the async twin of a function."""

from datetime import UTC, datetime
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncRequestFactory, RequestFactory

from django_moe_personalize.visitor.attributes import acollect_attributes, collect_attributes
from django_moe_personalize.visitor.identity import GRANTED

FUNCTIONS = "tests.visitor.functions"
NOW = datetime(2026, 11, 22, 23, 30, tzinfo=UTC)
"""A Sunday, before midnight."""


class Twin:
    """Builds WSGI requests and calls sync functions, or builds ASGI requests and calls their async twins."""

    def __init__(self, mode: str) -> None:
        self.is_async = mode == "async"

    def build_request(self, path: str = "/", *, meta: Any = (), headers: Any = None, secure=False, **attributes: Any):
        """Return a request with these headers, values in META, and attributes."""
        factory = AsyncRequestFactory() if self.is_async else RequestFactory()
        request = factory.get(path, headers=headers, secure=secure)
        request.META.update(meta)
        for name, value in attributes.items():
            setattr(request, name, value)
        return request

    def call(self, function: Any, afunction: Any, *args: Any, **kwargs: Any) -> Any:
        """Call one of the two functions and return its result."""
        return (async_to_sync(afunction) if self.is_async else function)(*args, **kwargs)


@pytest.fixture(params=["sync", "async"])
def twin(request):
    """Run the test with WSGI and with ASGI."""
    return Twin(request.param)


@pytest.fixture
def collect(twin):
    """Return a function that builds a request and returns its attributes."""

    def collect(path="/", *, consent=GRANTED, **options):
        request = twin.build_request(path, **options)
        return twin.call(collect_attributes, acollect_attributes, request, now=NOW, consent=consent)

    return collect


@pytest.fixture
def configure(settings):
    """Return a function that changes options of MOE_PERSONALIZE."""

    def change(**options):
        settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | options

    return change

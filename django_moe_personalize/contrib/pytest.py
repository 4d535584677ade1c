"""The pytest plugin ``moe_personalize``: fixtures and markers for a site's own tests.

pytest loads this module before Django has its settings, so only the fixtures import other modules of the package.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from django_moe_personalize.testing import Events, override_experiences

MARKERS = (
    "moe_experiences(experiences, **settings): give every visitor these experiences, payloads by key, and change "
    "settings of MOE_PERSONALIZE.",
    "moe_network: let this test call MoEngage, or another host that the settings name.",
)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers."""
    for line in MARKERS:
        config.addinivalue_line("markers", line)


@pytest.fixture(autouse=True)
def _moe_isolation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let a test find nothing of the tests before it, and fail a test that tries to call a host outside."""
    if not _has_package():
        yield
        return
    from django_moe_personalize.testing import isolate

    with isolate(network=request.node.get_closest_marker("moe_network") is not None):
        yield


@pytest.fixture(autouse=True)
def _moe_marked(request: pytest.FixtureRequest, _moe_isolation: None) -> None:
    """Give the experiences of the marker also to a test that doesn't name the fixture."""
    if request.node.get_closest_marker("moe_experiences") is not None:
        request.getfixturevalue("moe_experiences")


def _has_package() -> bool:
    """Return whether this test run has Django settings that install the package."""
    from django.apps import apps

    return apps.ready and apps.is_installed("django_moe_personalize")


@pytest.fixture
def moe_experiences(request: pytest.FixtureRequest, _moe_isolation: None) -> Iterator[override_experiences]:
    """The experiences of all visitors of this test: those of the marker, and those that the test gives."""
    from django_moe_personalize.testing import override_experiences

    experiences: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    # The marker of the function comes last, so it wins over the markers of its class and its module.
    for marker in reversed(list(request.node.iter_markers("moe_experiences"))):
        experiences |= marker.args[0] if marker.args else {}
        settings |= marker.kwargs
    with override_experiences(experiences, **settings) as given:
        yield given


@pytest.fixture
def moe_events(moe_experiences: override_experiences) -> Events:
    """The events of this test, with assertions that explain themselves."""
    return moe_experiences.events

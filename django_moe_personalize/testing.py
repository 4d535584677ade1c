"""For a site's tests: choose the experiences of visitors, and count the events that the site reports.

The package runs as in production, except that a sandbox replaces MoEngage.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from django.conf import settings as django_settings
from django.test import override_settings
from django.test.utils import TestContextDecorator

from django_moe_personalize.client import get_engine
from django_moe_personalize.conf import SETTING
from django_moe_personalize.moengage.types import Action
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.workspace import load_workspace, parse_workspace


class override_personalize(override_settings):
    """Context manager and decorator: change some settings in ``MOE_PERSONALIZE``, and keep the other settings."""

    def __init__(self, **changes: Any) -> None:
        # Skip override_settings.__init__(), which would set ``options``.
        TestContextDecorator.__init__(self)
        self._changes = changes

    @property
    def options(self) -> dict[str, Any]:  # type: ignore[override]
        """The current settings, with the changes."""
        return {SETTING: {**getattr(django_settings, SETTING, {}), **self._changes}}


class override_experiences(TestContextDecorator):
    """Give every visitor these experiences: ``{"hero-banner": {"Title": "Hello"}}``, payloads by key.

    In place of payloads, the path of a workspace file, such as one of ``manage.py moe_record``, gives its experiences.

    Other keys have no experience. The package caches nothing and sends events immediately: ``impressions`` and
    ``clicks`` count the events by key. This is a context manager, and a decorator for test case classes and for sync
    and async test functions. With ``kwarg_name``, the decorated function gets the object as this argument; with
    ``attr_name``, the test case gets this attribute. ``settings`` are more changes to ``MOE_PERSONALIZE``.
    """

    def __init__(
        self,
        experiences: Mapping[str, Mapping[str, Any]] | str | Path,
        *,
        attr_name: str | None = None,
        kwarg_name: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(attr_name=attr_name, kwarg_name=kwarg_name)
        if isinstance(experiences, str | Path):
            self._workspace = load_workspace(experiences)
        else:
            definitions = [{"key": key, "payload": dict(payload)} for key, payload in experiences.items()]
            workspace = {"workspace_id": "TESTS_DEBUG", "api_key": "tests", "experiences": definitions}
            self._workspace = parse_workspace(workspace, name="override_experiences")
        self._settings = {
            "ENABLED": True,
            "SANDBOX": True,
            "CACHE_TTL": 0,
            "CACHE_STALE_TTL": 0,
            "DEADLINE": 5.0,
            "DELIVERY": {"BACKEND": "django_moe_personalize.delivery.immediate.ImmediateDelivery"},
            **settings,
        }
        self._stack = ExitStack()

    # django-stubs allows no other result than Apps.
    def __enter__(self) -> Self:  # type: ignore[override]
        return self.enable()

    def enable(self) -> Self:
        """Apply the experiences and set all counts to 0."""
        self.engine = Engine(self._workspace)
        # A live server may answer a page after the settings have changed and before the sandbox has changed, and while
        # disable() runs. Such pages have a workspace of their own.
        for override in (self._override_settings(), get_engine.override(self.engine), self._override_settings()):
            self._stack.enter_context(override)
        return self

    def _override_settings(self) -> override_personalize:
        # The id is a part of all cache keys. Earlier test runs, and other processes of this test run, may have left
        # entries in the cache, so no id is used twice.
        return override_personalize(**{"WORKSPACE_ID": f"TESTS_{uuid.uuid4().hex}_DEBUG", **self._settings})

    def disable(self) -> None:
        """Restore the settings and the client."""
        self._stack.close()

    @property
    def impressions(self) -> dict[str, int]:
        """How often each experience was shown, by key."""
        return self._count(Action.SHOWN)

    @property
    def clicks(self) -> dict[str, int]:
        """How often each experience was clicked, by key."""
        return self._count(Action.CLICKED)

    def _count(self, action: Action) -> dict[str, int]:
        entries = self.engine.ledger.entries()
        return dict(Counter(entry.experience_key for entry in entries if entry.action == action.value))

"""For the tests of a site: choose what visitors get, and see what was reported.

The real request path runs, down to the wire format; the other end is a sandbox made for the test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ContextDecorator, ExitStack
from types import TracebackType
from typing import Any

from django.conf import settings as django_settings
from django.test import override_settings

from django_moe_personalize.conf import SETTING
from django_moe_personalize.connection import override_client
from django_moe_personalize.moengage.client import PersonalizeClient
from django_moe_personalize.moengage.types import Action
from django_moe_personalize.planning import route_memory
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.transport import SandboxTransport
from django_moe_personalize.sandbox.workspace import parse_workspace


class override_personalize(override_settings):
    """Change some settings in ``MOE_PERSONALIZE`` and keep the others: context manager and decorator."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(**{SETTING: changes})
        self._changes = changes

    def _merge(self) -> None:
        self.options = {SETTING: {**getattr(django_settings, SETTING, {}), **self._changes}}

    def enable(self) -> None:
        """Merge with the settings as they are now, and put them in force."""
        self._merge()
        super().enable()

    def decorate_class(self, cls: type) -> type:
        """Decorate a test case class."""
        self._merge()
        return super().decorate_class(cls)


class override_experiences(ContextDecorator):
    """Give every visitor these experiences: ``{"hero-banner": {"Title": "Hello"}}``, key → payload.

    All other keys are absent. Nothing is cached, and events arrive at once: ``impressions`` and
    ``clicks`` count them by key. Context manager and decorator; ``settings`` are those of
    ``MOE_PERSONALIZE`` to change besides.
    """

    def __init__(self, experiences: Mapping[str, Mapping[str, Any]], **settings: Any) -> None:
        definitions = [{"key": key, "payload": dict(payload)} for key, payload in experiences.items()]
        workspace = {"workspace_id": "TESTS_DEBUG", "api_key": "tests", "experiences": definitions}
        self.engine = Engine(parse_workspace(workspace, name="override_experiences"))
        self._settings = {
            "SANDBOX": True,
            "CACHE_TTL": 0,
            "CACHE_STALE_TTL": 0,
            "DEADLINE": 5.0,
            "DELIVERY": {"BACKEND": "django_moe_personalize.delivery.immediate.ImmediateDelivery"},
            **settings,
        }
        self._stack = ExitStack()

    def __enter__(self) -> override_experiences:
        self._stack.enter_context(override_personalize(**self._settings))
        workspace = self.engine.workspace
        client = PersonalizeClient(
            workspace_id=workspace.workspace_id, api_key=workspace.api_key, transport=SandboxTransport(self.engine)
        )
        self._stack.enter_context(override_client(client))
        # What other tests' pages read is no plan for this one's.
        route_memory.forget()
        self._stack.callback(route_memory.forget)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def impressions(self) -> dict[str, int]:
        """How often each experience was shown so far, by key."""
        return self._count(Action.SHOWN)

    @property
    def clicks(self) -> dict[str, int]:
        """How often each experience was clicked so far, by key."""
        return self._count(Action.CLICKED)

    def _count(self, action: Action) -> dict[str, int]:
        entries = self.engine.ledger.entries()
        return dict(Counter(entry.experience_key for entry in entries if entry.action == action.value))

"""For a site's tests: choose the experiences of visitors, and count the events that the site reports.

The package runs as in production, except that a sandbox replaces MoEngage.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self
from unittest import TestCase, mock
from urllib.parse import urlsplit

from django.conf import settings as django_settings
from django.test import override_settings
from django.test.utils import TestContextDecorator

from django_moe_personalize import client
from django_moe_personalize.client import get_engine
from django_moe_personalize.conf import SETTING, Settings
from django_moe_personalize.conf.settings import COMMON
from django_moe_personalize.exceptions import TransportError
from django_moe_personalize.moengage.client import Transport
from django_moe_personalize.moengage.http1 import Request, Response
from django_moe_personalize.moengage.types import UUID_ATTRIBUTE, Action
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import get_runtime, reset_runtimes
from django_moe_personalize.sandbox.control import is_loopback
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.ledger import LedgerEntry
from django_moe_personalize.sandbox.workspace import Definition, Workspace, load_workspace, parse_workspace


class override_personalize(override_settings):
    """Context manager and decorator: change some settings in ``MOE_PERSONALIZE``, and keep the other settings.

    On a site with several workspaces, they change in all of them, or only in ``workspace``.
    """

    def __init__(self, *, workspace: str | None = None, **changes: Any) -> None:
        # Skip override_settings.__init__(), which would set ``options``.
        TestContextDecorator.__init__(self)
        self._changes = changes
        self._workspace = workspace

    @property
    def options(self) -> dict[str, Any]:  # type: ignore[override]
        """The current settings, with the changes. Raises ConfigurationError for an unknown workspace."""
        given, changes = getattr(django_settings, SETTING, {}), self._changes
        workspaces = given.get("WORKSPACES") or {}
        if self._workspace is not None:
            get_runtime(self._workspace)
        if self._workspace is None or not workspaces:
            given = {**given, **changes}
            workspaces = given.get("WORKSPACES") or {}
        own = {name: value for name, value in changes.items() if name not in COMMON}
        changed = {
            name: {**settings, **own} if self._workspace in (None, name) else settings
            for name, settings in workspaces.items()
        }
        return {SETTING: {**given, "WORKSPACES": changed} if changed else given}


class override_experiences(TestContextDecorator):
    """Give every visitor these experiences: ``{"hero-banner": {"Title": "Hello"}}``, payloads by key.

    In place of payloads, the path of a workspace file, such as one of ``manage.py moe_record``, gives its experiences.

    Other keys have no experience. The package caches nothing and sends events immediately: ``impressions`` and
    ``clicks`` count the events by key. This is a context manager, and a decorator for test case classes and for sync
    and async test functions. With ``kwarg_name``, the decorated function gets the object as this argument; with
    ``attr_name``, the test case gets this attribute. ``settings`` are more changes to ``MOE_PERSONALIZE``.

    On a site with several workspaces, the visitors of all of them get these experiences. With ``workspace``, only its
    visitors get them, and only its events count.
    """

    def __init__(
        self,
        experiences: Mapping[str, Mapping[str, Any]] | str | Path,
        *,
        attr_name: str | None = None,
        kwarg_name: str | None = None,
        workspace: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(attr_name=attr_name, kwarg_name=kwarg_name)
        # A mistake in a payload is an error of the line that has the payload.
        self._workspace = (
            load_workspace(experiences) if isinstance(experiences, str | Path) else _build_workspace(experiences)
        )
        self._name = workspace
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
        override_engine = get_engine.override(self.engine, self._name)
        for override in (self._override_settings(), override_engine, self._override_settings()):
            self._stack.enter_context(override)
        return self

    def _override_settings(self) -> override_personalize:
        # The id is a part of all cache keys. Earlier test runs, and other processes of this test run, may have left
        # entries in the cache, so no id is used twice.
        workspace_id = f"TESTS_{uuid.uuid4().hex}_DEBUG"
        return override_personalize(workspace=self._name, **{"WORKSPACE_ID": workspace_id, **self._settings})

    def disable(self) -> None:
        """Restore the settings and the client."""
        self._stack.close()

    def give(self, experience_key: str, payload: Mapping[str, Any], *, variation: str = "") -> None:
        """Give every visitor this experience from the next page on. ``variation`` is the name of its variation."""
        given = _build_workspace({experience_key: payload}, variation)
        self._change({**self.engine.workspace.definitions, **given.definitions})

    def remove(self, experience_key: str) -> None:
        """Let no visitor have this experience from the next page on."""
        definitions = self.engine.workspace.definitions
        self._change({key: definition for key, definition in definitions.items() if key != experience_key})

    def _change(self, definitions: Mapping[str, Definition]) -> None:
        self.engine.replace(replace(self._workspace, definitions=definitions))

    @property
    def events(self) -> Events:
        """The events so far, with assertions."""
        return Events(self.engine)

    @property
    def impressions(self) -> dict[str, int]:
        """How often each experience was shown, by key."""
        return self.events.impressions

    @property
    def clicks(self) -> dict[str, int]:
        """How often each experience was clicked, by key."""
        return self.events.clicks


def _build_workspace(experiences: Mapping[str, Mapping[str, Any]], variation: str = "") -> Workspace:
    """Return the workspace whose visitors all get the experiences: payloads by key, in a variation of this name."""
    name = {"name": variation} if variation else {}
    for key, payload in experiences.items():
        try:
            json.dumps(dict(payload))
        except TypeError as error:
            message = f"The payload of {key!r} can't be JSON: {error}. Write texts, numbers, booleans, lists and dicts."
            raise TypeError(message) from None
    definitions = [
        {"key": key, "variations": [{"payload": dict(payload), **name}]} for key, payload in experiences.items()
    ]
    workspace = {"workspace_id": "TESTS_DEBUG", "api_key": "tests", "experiences": definitions}
    return parse_workspace(workspace, name="override_experiences")


class Events:
    """The events that the sandbox of a test got. A failed assertion says what happened instead."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def impressions(self) -> dict[str, int]:
        """How often each experience was shown, by key."""
        return dict(Counter(entry.experience_key for entry in self._find(Action.SHOWN)))

    @property
    def clicks(self) -> dict[str, int]:
        """How often each experience was clicked, by key."""
        return dict(Counter(entry.experience_key for entry in self._find(Action.CLICKED)))

    @property
    def tracked(self) -> dict[str, int]:
        """How often each event of track_event() was reported, by name."""
        return dict(Counter(entry.action for entry in self._find(Action.TRACKED)))

    def clear(self) -> None:
        """Forget the events so far."""
        self._engine.ledger.clear()

    def assert_shown(self, experience_key: str, *, variation: str | None = None, times: int | None = None) -> None:
        """Assert that pages showed the experience: with this variation, and so often, if given."""
        self._check(Action.SHOWN, experience_key, "variation", variation, times)

    def assert_clicked(self, experience_key: str, *, element: str | None = None, times: int | None = None) -> None:
        """Assert that visitors clicked the experience: on this element, and so often, if given."""
        self._check(Action.CLICKED, experience_key, "element", element, times)

    def assert_not_shown(self, *experience_keys: str) -> None:
        """Assert that no page showed one of the experiences, or any experience if you name none."""
        self._check_none(self.impressions, experience_keys, "shown")

    def assert_not_clicked(self, *experience_keys: str) -> None:
        """Assert that no visitor clicked one of the experiences, or any experience if you name none."""
        self._check_none(self.clicks, experience_keys, "clicked")

    def assert_tracked(
        self,
        name: str,
        *,
        customer_id: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        times: int | None = None,
    ) -> None:
        """Assert that track_event() reported this event: for this customer, with these attributes, so often, if given.

        The event may have more attributes.
        """
        found = [entry for entry in self._find(Action.TRACKED) if entry.action == name]
        if not found:
            others = f"These were tracked: {_list(self.tracked)}." if self.tracked else "No event was tracked."
            raise AssertionError(f"{name!r} was not tracked. {others} {_HINTS[Action.TRACKED]}")
        fitting = [
            entry
            for entry in found
            if customer_id in (None, entry.customer_id)
            and {**entry.attributes, **(attributes or {})} == entry.attributes
        ]
        if not fitting:
            instead = ", ".join(f"{entry.customer_id!r} {_hide_uuid(entry.attributes)}" for entry in found)
            raise AssertionError(f"{name!r} was not tracked like this. It was tracked for: {instead}.")
        if times is not None and len(fitting) != times:
            raise AssertionError(f"{name!r} was tracked {len(fitting)} times, not {times} times.")

    def assert_not_tracked(self, *names: str) -> None:
        """Assert that track_event() reported none of these events, or no event at all if you name none."""
        if wrong := {name: count for name, count in self.tracked.items() if not names or name in names}:
            raise AssertionError(f"Events were tracked that should not be: {_list(wrong)}.")

    def _check_none(self, counts: Mapping[str, int], keys: tuple[str, ...], verb: str) -> None:
        if wrong := {key: count for key, count in counts.items() if not keys or key in keys}:
            raise AssertionError(f"Experiences were {verb} that should not be: {_list(wrong)}.")

    def _check(self, action: Action, key: str, name: str, value: str | None, times: int | None) -> None:
        verb = "shown" if action is Action.SHOWN else "clicked"
        found = Counter(self._read(entry, name) for entry in self._find(action) if entry.experience_key == key)
        if not found:
            raise AssertionError(f"{key!r} was not {verb}. {self._explain(action, key, verb)}")
        if value is not None and not found[value]:
            instead = f"It was {verb} with: {_list(found)}."
            raise AssertionError(f"{key!r} was not {verb} with the {name} {value!r}. {instead}")
        count = found.total() if value is None else found[value]
        if times is not None and count != times:
            raise AssertionError(f"{key!r} was {verb} {count} times, not {times} times.")

    def _explain(self, action: Action, key: str, verb: str) -> str:
        others = _list(Counter(entry.experience_key for entry in self._find(action)))
        others = f"These were {verb}: {others}." if others else f"No experience was {verb}."
        known = list(self._engine.workspace.definitions)
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            return f"{others} The test doesn't give this experience. It gives: {known}.{hint}"
        return f"{others} {_HINTS[action]}"

    def _find(self, action: Action) -> list[LedgerEntry]:
        if action is Action.TRACKED:
            return [entry for entry in self._engine.ledger.entries() if entry.is_conversion]
        return [entry for entry in self._engine.ledger.entries() if entry.action == action.value]

    def _read(self, entry: LedgerEntry, name: str) -> str:
        """Return the name of the variation in an event, its id if it has no name, or the clicked element."""
        if name == "element":
            return entry.element
        number = str(entry.attributes.get("moe_variation_id", ""))
        definition = self._engine.workspace.definitions.get(entry.experience_key)
        contents = definition.contents if definition else ()
        names = {each.variation_id: each.name for content in contents for each in content.variations}
        return names.get(number) or number


_HINTS = {
    Action.SHOWN: (
        "An impression counts if a GET request renders {% experience %} into a page with status 200. Reading an "
        'experience in a view counts nothing. With IMPRESSIONS = "visible" the browser counts, not the page.'
    ),
    Action.CLICKED: (
        "A click counts if the test opens the link of {% click_url %}, or if a view calls track_click(). "
        "Include django_moe_personalize.urls in your URLs."
    ),
    Action.TRACKED: (
        "request.personalization.track_event() reports nothing for a robot, in a preview, for a visitor without "
        "consent to track, and for an id that MoEngage forbids, such as a single digit."
    ),
}


def _hide_uuid(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name != UUID_ATTRIBUTE}


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name!r} ({count}×)" for name, count in counts.items())


class _NoNetwork:
    """A transport for tests: it makes no call, and notes that the package tried to call ``base_url``."""

    def __init__(self, base_url: str, attempts: list[str]) -> None:
        self._base_url = base_url
        self._attempts = attempts

    def send(self, request: Request, *, deadline: Deadline) -> Response:
        """See Transport.send()."""
        self._attempts.append(self._base_url)
        raise TransportError("a test may not use the network")

    def close(self) -> None:
        """See Transport.close()."""


@contextmanager
def isolate(*, network: bool = False) -> Iterator[None]:
    """Run a test that finds nothing of other tests: no cached answer, no open breaker, no learned route.

    The package calls only hosts on this machine. If it tries to call another host, the page shows its fallbacks, and
    this context raises AssertionError at the end. ``network=True`` allows all calls.
    """
    attempts: list[str] = []

    def build(settings: Settings) -> Transport:
        base_url = client.read_base_url(settings)
        if network or is_loopback(urlsplit(base_url).hostname or ""):
            return build_transport(settings)
        return _NoNetwork(base_url, attempts)

    build_transport = client.build_transport
    reset_runtimes()
    with mock.patch.object(client, "build_transport", build):
        try:
            yield
        finally:
            reset_runtimes()
    if attempts:
        raise AssertionError(
            f"The package tried to call {attempts[0]} in this test. Remove SANDBOX from the settings of your tests, or "
            "mark the test with @pytest.mark.moe_network."
        )


class PersonalizeTestMixin(TestCase):
    """For Django's test cases: the same tools as the fixtures of pytest. Put this class before Django's class.

    ``self.moe_experiences`` and ``self.moe_events`` work as the fixtures do.
    """

    experiences: Mapping[str, Mapping[str, Any]] = {}
    """The experiences that every visitor gets, payloads by key."""

    moe_settings: Mapping[str, Any] = {}
    """Changes to ``MOE_PERSONALIZE``."""

    moe_experiences: override_experiences
    moe_events: Events

    def setUp(self) -> None:
        """Give the visitors their experiences."""
        self.enterContext(isolate())
        self.moe_experiences = self.enterContext(override_experiences(self.experiences, **self.moe_settings))
        self.moe_events = self.moe_experiences.events
        super().setUp()

"""Everything a process holds for one workspace, in one object: ``get_runtime()``.

A package declares each object that lives as long as the process with ``@part``. The object is built when
it is first asked for, from the settings of that moment. A fork or a change of settings drops the whole
runtime, so that no lock, thread, connection or cached answer outlives the process or the settings that it
belongs to.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar

from django.core.signals import setting_changed
from django.dispatch import receiver

from django_moe_personalize.conf import SETTING, ConfigurationError, Settings, get_settings
from django_moe_personalize.log import logger

T = TypeVar("T")

DEFAULT: Final = "default"
"""The name of the workspace that the settings describe."""

MAX_LOGGED: Final = 1024
"""Keys that log_once() remembers. Beyond this bound it forgets all keys and may log each message once more."""

_SETTINGS_READ: Final = frozenset({SETTING, "CACHES", "DEBUG", "SECRET_KEY", "STORAGES", "TEMPLATES"})
"""Settings that parts of a runtime are built from."""


class Runtime:
    """What this process holds for the workspace ``name``. Get it with get_runtime()."""

    __slots__ = ("_lock", "_logged", "_parts", "_settings", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._settings: Settings | None = None
        self._parts: dict[part[Any], Any] = {}
        # Reentrant, because building one part may build another.
        self._lock = threading.RLock()
        self._logged: dict[Hashable, object] = {}

    def __repr__(self) -> str:
        return f"<Runtime {self.name}>"

    @property
    def settings(self) -> Settings:
        """The settings this runtime was built from. Raises ConfigurationError if they can't be used."""
        if self._settings is None:
            self._settings = get_settings()
        return self._settings

    def log_once(self, key: Hashable, message: str, *args: object, level: int = logging.WARNING) -> None:
        """Log ``message % args`` unless this runtime has logged ``key`` before.

        Make the key and the arguments from code and settings, never from what a visitor sent: a visitor
        could fill the log, and personal data doesn't belong there.
        """
        mine = object()
        # setdefault() is atomic: of many threads that fail together, one logs.
        if self._logged.setdefault(key, mine) is mine:
            logger.log(level, message, *args)
            if len(self._logged) > MAX_LOGGED:
                self._logged.clear()

    def close(self) -> None:
        """Close the parts that can be closed, the newest first."""
        with self._lock:
            parts = list(self._parts.values())
        for built in reversed(parts):
            if (close := getattr(built, "close", None)) is not None:
                close()


class part(Generic[T]):
    """Declare an object that a runtime holds: ``@part`` above the function that builds it from the runtime.

    Calling the declared name returns the object, built on the first call; without an argument, the one of
    the default workspace. A built object that has ``close()`` is closed with its runtime.
    """

    def __init__(self, build: Callable[[Runtime], T]) -> None:
        functools.update_wrapper(self, build)
        self._build = build
        self._overrides: list[T] = []

    def __call__(self, runtime: Runtime | None = None) -> T:
        runtime = runtime or get_runtime()
        try:
            built: T = runtime._parts[self]
        except KeyError:
            with runtime._lock:
                if self not in runtime._parts:
                    runtime._parts[self] = self._overrides[-1] if self._overrides else self._build(runtime)
                built = runtime._parts[self]
        return built

    def find(self, runtime: Runtime | None = None) -> T | None:
        """Return the object if it is built already, else None."""
        found: T | None = (runtime or get_runtime())._parts.get(self)
        return found

    @contextmanager
    def override(self, value: T) -> Iterator[T]:
        """Use ``value`` in every runtime of this process while the context lasts; for tests. May be nested."""
        self._overrides.append(value)
        self._drop()
        try:
            yield value
        finally:
            # The innermost equal one: contexts of several threads may end in any order.
            del self._overrides[max(place for place, other in enumerate(self._overrides) if other is value)]
            self._drop()

    def _drop(self) -> None:
        for runtime in list(_process.runtimes.values()):
            runtime._parts.pop(self, None)


class _Process:
    """The runtimes of this process by name."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runtimes: dict[str, Runtime] = {}


_process = _Process()
_inherited: list[_Process] = []
"""Runtimes of parent processes. Never closed or collected here: closing a connection that the parent still
uses would end it for the parent too."""


def get_runtime(name: str = DEFAULT) -> Runtime:
    """Return what this process holds for the workspace ``name``.

    Raises ConfigurationError for a workspace that the settings don't describe.
    """
    runtime = _process.runtimes.get(name)
    if runtime is None:
        if name != DEFAULT:
            raise ConfigurationError(f"There is no workspace {name!r}.", hint=f"Use {DEFAULT!r}.")
        with _process.lock:
            runtime = _process.runtimes.setdefault(name, Runtime(name))
    return runtime


def log_once(key: Hashable, message: str, *args: object, level: int = logging.WARNING) -> None:
    """See Runtime.log_once(); for the default workspace."""
    get_runtime().log_once(key, message, *args, level=level)


def reset_runtimes() -> None:
    """Close every runtime of this process and forget it; the next use builds another."""
    with _process.lock:
        dropped, _process.runtimes = _process.runtimes, {}
    for runtime in dropped.values():
        runtime.close()


@receiver(setting_changed, dispatch_uid=__name__)
def _on_setting_changed(*, setting: str, **kwargs: object) -> None:
    if setting in _SETTINGS_READ:
        get_settings.cache_clear()
        reset_runtimes()


def _start_in_child() -> None:
    global _process
    _inherited.append(_process)
    _process = _Process()


os.register_at_fork(after_in_child=_start_in_child)
atexit.register(reset_runtimes)

"""Everything a process holds for one workspace, in one object: ``get_runtime()``.

A package declares an object that lives as long as the process with ``@part``. The runtime builds the object on its
first use, from the settings. A fork or a change of settings drops the whole runtime, so that no lock, thread,
connection or cached answer outlives its process or its settings.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Generic, TypeVar

from django.core.signals import setting_changed
from django.dispatch import receiver

from django_moe_personalize.conf import SETTING, ConfigurationError, Settings, get_settings
from django_moe_personalize.log import logger

T = TypeVar("T")

DEFAULT: Final = "default"
"""The name of the workspace that the settings describe."""

MAX_LOGGED: Final = 1024
"""How many keys log_once() remembers. One more key makes it forget them all, and log each message again."""

_SETTINGS_READ: Final = frozenset({SETTING, "CACHES", "DEBUG", "SECRET_KEY", "STORAGES", "TEMPLATES"})
"""The settings that parts of a runtime are built from."""


class Runtime:
    """Everything this process holds for the workspace ``name``. Get it with get_runtime()."""

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
        """The settings that the parts are built from. Raises ConfigurationError for wrong settings."""
        # Kept, so that a runtime that is being closed never acts on the settings of its successor.
        if self._settings is None:
            self._settings = get_settings()
        return self._settings

    def log_once(self, key: Hashable, message: str, *args: object, level: int = logging.WARNING) -> None:
        """Log ``message % args``, unless this runtime has logged ``key`` before.

        Make the key and the arguments from code and settings, never from a visitor's data: a visitor could fill the
        log, and personal data doesn't belong there.
        """
        mine = object()
        # setdefault() is atomic: if several threads fail together, one of them logs.
        if self._logged.setdefault(key, mine) is mine:
            logger.log(level, message, *args)
            if len(self._logged) > MAX_LOGGED:
                self._logged.clear()

    def close(self) -> None:
        """Close the parts that have ``close()``, newest first. If one raises, the others are closed all the same."""
        with self._lock:
            parts = list(self._parts.values())
        # Without the lock: a part may wait for its thread, which may need another part.
        with ExitStack() as stack:
            for built in parts:
                if hasattr(built, "close"):
                    stack.callback(built.close)


class part(Generic[T]):
    """Declare an object that a runtime holds: put ``@part`` above the function that builds it from the runtime.

    Call the declared name to get the object; without an argument it is the default workspace's. The first call
    builds it. If the object has ``close()``, the runtime calls it at its own end.
    """

    def __init__(self, build: Callable[[Runtime], T]) -> None:
        functools.update_wrapper(self, build)
        self._build = build
        self._overrides: list[T] = []

    def __call__(self, runtime: Runtime | None = None) -> T:
        if self._overrides:
            return self._overrides[-1]
        runtime = runtime or get_runtime()
        try:
            built: T = runtime._parts[self]
        except KeyError:
            with runtime._lock:
                if self not in runtime._parts:
                    runtime._parts[self] = self._build(runtime)
                built = runtime._parts[self]
        return built

    def find(self, runtime: Runtime | None = None) -> T | None:
        """Return the object if it is built already, else ``None``."""
        if self._overrides:
            return self._overrides[-1]
        found: T | None = (runtime or get_runtime())._parts.get(self)
        return found

    @contextmanager
    def override(self, value: T) -> Iterator[T]:
        """Return ``value`` from every call in this process while the context lasts; for tests.

        Contexts may be nested: the innermost wins. Every runtime starts again at both ends, because other parts may
        have taken something from this one.
        """
        self._overrides.append(value)
        reset_runtimes()
        try:
            yield value
        finally:
            # The last equal entry: contexts in several threads may end in any order.
            del self._overrides[max(index for index, other in enumerate(self._overrides) if other is value)]
            reset_runtimes()


class _Process:
    """The runtimes of one process by name."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runtimes: dict[str, Runtime] = {}


_process = _Process()

_inherited: list[_Process] = []
"""The runtimes of the parent processes. Nothing here may close or collect them: closing a connection that the parent
still uses would end it for the parent too."""


def get_runtime(name: str = DEFAULT) -> Runtime:
    """Return everything this process holds for the workspace ``name``.

    Raises ConfigurationError for a workspace that isn't in the settings.
    """
    runtime = _process.runtimes.get(name)
    if runtime is None:
        if name != DEFAULT:
            raise ConfigurationError(f"The settings have no workspace {name!r}.", hint=f"Use {DEFAULT!r}.")
        with _process.lock:
            runtime = _process.runtimes.setdefault(name, Runtime(name))
    return runtime


def log_once(key: Hashable, message: str, *args: object, level: int = logging.WARNING) -> None:
    """See Runtime.log_once(). It logs for the default workspace."""
    get_runtime().log_once(key, message, *args, level=level)


def reset_runtimes() -> None:
    """Close and drop every runtime of this process. The next call of a part builds it again."""
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


# Windows has no fork.
getattr(os, "register_at_fork", dict)(after_in_child=_start_in_child)
atexit.register(reset_runtimes)

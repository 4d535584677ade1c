"""The runtime: one object with everything that a process holds for one workspace.

``@part`` above a function declares an object of the runtime, for example a cache or a client. The runtime builds the
object on the first use, from the settings. A fork or a change of settings drops the whole runtime. So no lock,
thread, connection or cached answer outlives its process or its settings.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ContextDecorator, ExitStack, contextmanager, nullcontext, suppress
from contextvars import Context, copy_context
from importlib import import_module
from itertools import repeat
from typing import Any, Final, Generic, TypeVar

from django.conf import settings as django_settings
from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_moe_personalize.conf import DEFAULT, ConfigurationError, Settings, get_settings_of, list_workspaces
from django_moe_personalize.conf.readers import suggest
from django_moe_personalize.conf.settings import NO_WORKSPACE, SETTING, used_runtime
from django_moe_personalize.log import logger

T = TypeVar("T")

ALWAYS: Final[Iterator[bool]] = repeat(True)
"""The leak detector looks at each page: in strict mode, of a route that had a leak, and if the page has no route."""

MAX_LOGGED: Final = 1024
"""How many keys log_once() remembers. After one more key, log_once() forgets all keys and logs each message again."""


class Runtime:
    """Everything that this process holds for the workspace ``name``. Call get_runtime() to get the runtime."""

    def __init__(self, name: str) -> None:
        self.name = name
        # An override that starts or ends later never changes this runtime, whose threads may still be running.
        self._overridden: dict[part[Any], Any] = {key: value for key, value, of in _overrides if of in (name, None)}
        self._parts: dict[part[Any], Any] = dict(self._overridden)
        # Reentrant, because the function that builds a part may need another part.
        self._lock = threading.RLock()
        self._logged: dict[Hashable, object] = {}
        # Reentrant: a signal handler may interrupt a thread that counts.
        self._count_lock = threading.RLock()
        self.counts: Counter[tuple[str, ...]] = Counter()
        """How often something happened: see count()."""
        # For each route an endless iterator: True for a page at which the leak detector looks.
        self.samples: dict[str, Iterator[bool]] = {}
        # What pages of a route and a view need. A part would take 15 more bytecodes on each page.
        self.plans: dict[tuple[str, Any], Any] = {}
        self.is_debug = bool(django_settings.DEBUG)
        # Read now, because later the settings may be those of the next runtime. Wrong settings raise an error later.
        with suppress(ConfigurationError):
            self.settings = get_settings_of(name)

    def __repr__(self) -> str:
        return f"<Runtime {self.name}>"

    # As an attribute the settings save a page that reads nothing 6 bytecodes.
    @functools.cached_property
    def settings(self) -> Settings:
        """The settings of this runtime and its parts. Raises ConfigurationError for wrong settings."""
        return get_settings_of(self.name)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Let get_runtime() return this runtime during this context, also after a change of settings.

        Use this context for work that may outlive its settings, as threads in the background do. Otherwise such a
        thread would store the answers of the old workspace in the cache of the new workspace.
        """
        token = used_runtime.set(self)
        try:
            yield
        finally:
            used_runtime.reset(token)

    def copy_context(self) -> Context:
        """Return a copy of the caller's context, in which get_runtime() returns this runtime.

        For a thread that works for the caller's page, so that tracing tools find the page's span there.
        """
        context = copy_context()
        context.run(used_runtime.set, self)
        return context

    def log_once(self, key: Hashable, message: str, *args: object, level: int = logging.WARNING) -> None:
        """Log ``message % args``, unless this runtime has logged ``key`` before.

        Never put a visitor's data into the key or the arguments: a visitor could fill the log, and the log must not
        contain personal data.
        """
        mine = object()
        # setdefault() is atomic, so only one of several threads logs.
        if self._logged.setdefault(key, mine) is mine:
            logger.log(level, message, *args)
            if len(self._logged) > MAX_LOGGED:
                self._logged.clear()

    def count(self, *what: str) -> None:
        """Add 1 to a number in ``counts``, for metrics."""
        with self._count_lock:
            self.counts[what] += 1

    def close(self) -> None:
        """Close the parts that have ``close()``, the newest part first. An exception doesn't stop the other calls."""
        with self._lock:
            parts = [built for key, built in self._parts.items() if key not in self._overridden]
        # Close without the lock: a part may wait for a thread, and the thread may need another part.
        with ExitStack() as stack:
            for built in parts:
                if hasattr(built, "close"):
                    stack.callback(built.close)


class part(Generic[T]):
    """Declare an object that a runtime holds. Put ``@part`` above the function that builds the object.

    Call the declared name to get the object. The first call for a runtime builds the object. Without an argument,
    the call uses the current runtime. When a runtime ends, it calls ``close()`` of its objects.
    """

    def __init__(self, build: Callable[[Runtime], T]) -> None:
        functools.update_wrapper(self, build)
        self._build = build

    def __call__(self, runtime: Runtime | None = None) -> T:
        if runtime is None:
            runtime = get_runtime()
        try:
            return runtime._parts[self]  # type: ignore[no-any-return]
        except KeyError:
            with runtime._lock:
                if self not in runtime._parts:
                    runtime._parts[self] = self._build(runtime)
                return runtime._parts[self]  # type: ignore[no-any-return]

    def find(self, runtime: Runtime | None = None) -> T | None:
        """Return the object, or ``None`` if the runtime hasn't built the object yet."""
        found: T | None = (runtime or get_runtime())._parts.get(self)
        return found

    def extend(self, extension: Callable[[Callable[..., T], Runtime], T]) -> None:
        """Let ``extension(build, runtime)`` build the object from now on. ``build(runtime)`` builds it as before.

        For instrumentation. Drops all runtimes, because they may have the object already.
        """
        self._build = functools.partial(extension, self._build)
        reset_runtimes()

    @contextmanager
    def override(self, value: T, workspace: str | None = None) -> Iterator[T]:
        """Make every call in this process return ``value`` during this context: for one workspace, or all. For tests.

        The innermost of several contexts wins. The start and the end of a context drop all runtimes. Otherwise another
        part, built earlier, could still use the old value. Threads of a dropped runtime keep its parts.
        """
        entry = (self, value, workspace)
        _overrides.append(entry)
        reset_runtimes()
        try:
            yield value
        finally:
            # Delete the entry of this context: contexts in several threads may end in any order.
            del _overrides[next(index for index, other in enumerate(_overrides) if other is entry)]
            reset_runtimes()


_overrides: list[tuple[part[Any], Any, str | None]] = []
"""The parts with the values of part.override(), and their workspaces. The last value of a part wins."""


# The site's transactions.


class protect_transactions(ContextDecorator):
    """Keep the open transactions of this thread usable if a query in this context fails.

    After a failed query, PostgreSQL refuses all further queries of the transaction. So use this context wherever the
    package handles an error that may come from the database. The first query in the context makes a savepoint. After
    an exception, or after a failed query that the site's code has handled, the transaction returns to the savepoint.
    Without an open transaction or without a query, no savepoint is made.
    """

    _stack: ExitStack | None = None

    def _recreate_cm(self) -> protect_transactions:
        # Each call of a decorated function has its own context.
        return protect_transactions()

    def __enter__(self) -> None:
        # Most pages have no open transaction. A generator and an ExitStack would take 130 bytecodes more.
        for connection in connections.all(initialized_only=True):
            # Also without atomic(): a site may turn autocommit off. Then the first query opens a transaction.
            is_open = connection.connection is not None
            if not (connection.autocommit if is_open else connection.settings_dict["AUTOCOMMIT"]):
                self._stack = self._stack or ExitStack()
                self._stack.enter_context(_protect(connection))

    def __exit__(self, *error: Any) -> bool | None:
        return None if self._stack is None else self._stack.__exit__(*error)


@contextmanager
def _protect(connection: BaseDatabaseWrapper) -> Iterator[None]:
    savepoints: list[Any] = []
    on_commit = len(connection.run_on_commit)

    def execute(run: Callable[..., Any], *query: Any) -> Any:
        if not savepoints:
            # Without wrappers, because an inner context must make its savepoint after this one.
            wrappers, connection.execute_wrappers = connection.execute_wrappers, []
            try:
                savepoints.append(connection.savepoint())
            finally:
                connection.execute_wrappers = wrappers
        return run(*query)

    is_usable = False
    try:
        with connection.execute_wrapper(execute):
            yield
        is_usable = not connection.needs_rollback
    finally:
        for savepoint in savepoints:
            _leave(connection, savepoint, on_commit, is_usable=is_usable)


def _leave(connection: BaseDatabaseWrapper, savepoint: str, on_commit: int, *, is_usable: bool) -> None:
    try:
        if is_usable:
            connection.savepoint_commit(savepoint)
            return
    except Error:
        # A query has failed, and the site's code has handled the error.
        pass
    connection.needs_rollback = False
    # Functions that wait for the commit of rows that are gone.
    del connection.run_on_commit[on_commit:]
    try:
        connection.savepoint_rollback(savepoint)
        connection.savepoint_commit(savepoint)
    except Error:
        # The database has lost the transaction, for example because of a deadlock or a closed connection.
        connection.needs_rollback = connection.in_atomic_block


class _Process:
    """The runtimes of one process, by workspace."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runtimes: dict[str, Runtime] = {}
        self.ended: Sequence[Runtime] = ()
        self.default: Runtime | None = None
        self.is_ending = False


_process = _Process()

# Saves 3 bytecodes on every page.
_get_used = used_runtime.get

_inherited: list[_Process] = []
"""The runtimes of the parent processes. This list keeps their connections open, because a child that closes an
inherited connection closes it for the parent too."""


def get_runtime(name: str = "") -> Runtime:
    """Return the runtime of the workspace ``name``. Raises ConfigurationError for an unknown workspace.

    Without a name, return the runtime for which this thread works: that of the innermost Runtime.use(), so that of the
    request's workspace during a request. Everywhere else it's the runtime of the workspace DEFAULT.
    """
    return _find(name) if name else _get_used(_process.default) or _find(DEFAULT)


def use_workspace(name: str | None) -> AbstractContextManager[None]:
    """Return a context in which get_runtime() returns the runtime of ``name``. With ``None`` it changes nothing."""
    return nullcontext() if name is None else _find(name).use()


def _find(name: str) -> Runtime:
    if (found := _process.runtimes.get(name)) is not None:
        return found
    names = list_workspaces()
    if name not in (*names, NO_WORKSPACE):
        hint = suggest(name, names, f"Use {' or '.join(map(repr, names))}.")
        raise ConfigurationError(f'{SETTING}["WORKSPACES"] has no workspace {name!r}.', hint=hint)
    with _process.lock:
        found = _process.runtimes.setdefault(name, Runtime(name))
        _process.default = _process.runtimes.get(DEFAULT)
    return found


def list_runtimes() -> Sequence[Runtime]:
    """Return the runtimes that this process uses at the moment, and at its end those that it has used."""
    return [*_process.ended, *_process.runtimes.values()]


def log_once(key: Hashable, message: str, *args: object, level: int = logging.WARNING) -> None:
    """See Runtime.log_once(). This function uses the current runtime."""
    get_runtime().log_once(key, message, *args, level=level)


def reset_runtimes() -> None:
    """Close and drop all runtimes of this process. The next call of a part builds a new object."""
    with _process.lock:
        dropped, _process.runtimes, _process.default = _process.runtimes, {}, None
    for runtime in dropped.values():
        runtime.close()


def _start_in_child() -> None:
    global _process
    _inherited.append(_process)
    _process = _Process()
    # The view of a page may fork: its child works for the same workspace, but not with the connections of its parent.
    if (used := _get_used(None)) is not None:
        with suppress(ConfigurationError):
            used_runtime.set(_find(used.name))


def is_ending() -> bool:
    """Return whether Python is ending. Then no thread can start, and new runtimes aren't closed."""
    return _process.is_ending


def start_ending() -> None:
    """Let is_ending() return True from now on."""
    _process.is_ending = True


def _end() -> None:
    start_ending()
    # OpenTelemetry exports the counts of the last deliveries after this function.
    _process.ended = list_runtimes()
    reset_runtimes()


def call_in_children(call: Callable[[], None]) -> None:
    """Call ``call()`` in each child of this process after a fork."""
    parent = os.getpid()

    def call_in_worker() -> None:
        # uWSGI also calls this hook in a process that didn't fork.
        if os.getpid() != parent:
            call()

    # Windows has no fork.
    getattr(os, "register_at_fork", dict)(after_in_child=call)
    # By default, uWSGI forks without Python's hooks.
    chain_uwsgi_hook("post_fork_hook", call_in_worker)


def chain_uwsgi_hook(name: str, call: Callable[[], None]) -> None:
    """Let uWSGI call ``call()`` after the function that the hook ``name`` already has. Elsewhere, do nothing."""
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is None:
        return
    # This module replaces the hook when the site imports it. Without uWSGI's master process it raises an Exception.
    with suppress(Exception):
        import_module("uwsgidecorators")
    before = getattr(uwsgi, name, None)

    def call_both() -> None:
        if before is not None:
            before()
        call()

    setattr(uwsgi, name, call_both)


def _add_fields(record: logging.LogRecord) -> bool:
    """Add the fields that each line of the log has, and put the workspace before a line if the site has several."""
    runtime = _get_used(_process.default)
    record.moe_workspace = DEFAULT if runtime is None else runtime.name
    record.__dict__.setdefault("moe_event", "notice")
    # Without settings, as in a sandbox of its own, there are no workspaces.
    if runtime is not None and django_settings.configured and len(list_workspaces()) > 1:
        record.msg = f"Workspace {runtime.name}: {record.msg}"
    return True


logger.addFilter(_add_fields)
call_in_children(_start_in_child)
atexit.register(_end)

"""The kill switch: experiences that an operator has switched off, with ``manage.py moe_switch`` or in the admin.

A thread of each process that shows experiences reads the state every POLL_SECONDS. No page waits for this, except the
first fetch of a process: until the state is known, no page shows an experience. If the state can't be read, the last
state stays in force.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final, Protocol

from django.db import connections

from django_moe_personalize.conf import list_workspaces
from django_moe_personalize.conf.settings import is_test_run
from django_moe_personalize.fetching.cache import get_cache
from django_moe_personalize.fetching.shared import has_room
from django_moe_personalize.fetching.switch_store import ALL, Entry, Store
from django_moe_personalize.log import Outage, logger
from django_moe_personalize.resilience import Deadline, monotonic, start_thread
from django_moe_personalize.runtime import Runtime, part

POLL_SECONDS: Final = 2.0
"""How often a process reads the state."""

IDLE_SECONDS: Final = 60.0
"""How long after its last fetch, and after the end of its last cached answer, a process still reads the state."""


class Flights(Protocol):
    """What the switch needs of the flights of this process."""

    landed: int

    def start_over(self, *, may_start_in_page: bool) -> None:
        """Let no later page join the flights of now."""


class Switch:
    """The experiences of one workspace that are off, as this process knows them. Thread-safe."""

    def __init__(self, runtime: Runtime) -> None:
        self.store = Store(runtime)
        self._runtime = runtime
        self._off: Mapping[str, Entry] = {}
        self._entries: tuple[Entry, ...] = ()
        self._flights: Flights | None = None
        self._known = threading.Event()
        self._ended = threading.Event()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._landed, self._used_at = 0, monotonic()
        read = "The state of the kill switch can"
        self._outage = Outage(f"{read}'t be read", f"{read} be read again", part="switch")

    # What the fetch asks.

    def is_off(self, experience_key: str) -> bool:
        """Return whether no visitor gets this experience. ``ALL`` stands for all experiences."""
        return ALL in self._off or experience_key in self._off

    def find(self, experience_key: str) -> Entry | None:
        """Return the reason why no visitor gets this experience, or ``None``."""
        return self._off.get(ALL) or self._off.get(experience_key)

    def leave_out(self, experience_keys: Sequence[str]) -> tuple[str, ...]:
        """Return the keys that aren't off."""
        return tuple([key for key in experience_keys if not self.is_off(key)])

    @property
    def entries(self) -> list[Entry]:
        """The entries in force, by key."""
        return [self._off[key] for key in sorted(self._off)]

    def write_command(self, experience_key: str) -> str:
        """Return the command that switches a key on again."""
        key = f" {shlex.quote(experience_key)}" if experience_key else ""
        workspace = f" --workspace {self._runtime.name}" if len(list_workspaces()) > 1 else ""
        return f"manage.py moe_switch on{key}{workspace}"

    def list_off(self) -> list[str]:
        """Return the keys that are off. ``ALL`` stands for all experiences."""
        return sorted(self._off)

    @property
    def is_known(self) -> bool:
        """Whether this process has read the state."""
        return self._known.is_set()

    def wait(self, deadline: Deadline) -> bool:
        """Wait until the state is known, and return whether it is. Don't wait if reading it has failed."""
        self._used_at = monotonic()
        if not self._known.is_set():
            self._start()
        return self._known.wait(0.0 if self._outage.is_on else deadline.remaining())

    # Following the state.

    def watch(self, flights: Flights) -> None:
        """Follow the state from now on, and let flights start over after each change."""
        self._flights = flights
        self._start_over()
        self._start()

    def _start_over(self) -> None:
        if self._flights is not None:
            self._flights.start_over(may_start_in_page=self.is_known and not has_room(self._runtime))

    def change(self, entries: tuple[Entry, ...]) -> None:
        """Obey ``entries`` in this process now."""
        with self._lock:
            now, before = time.time(), self._off
            is_new, self._entries = not self._known.is_set(), entries
            self._off = {entry.experience_key: entry for entry in entries if entry.is_in_force(now)}
            if is_new or self._off.keys() != before.keys():
                if self._off or before:
                    get_cache(self._runtime).switch_off(self.is_off if self._off else None)
                self._known.set()
                self._start_over()
            # A command only changes the state, and prints what it has done.
            if self._flights is not None:
                with self._runtime.use():
                    self._log(before)

    def turn(self, experience_keys: Iterable[str], *, is_off: bool, until: datetime | None = None, by: str) -> None:
        """Switch keys off, or on again, in all processes. Raises NoStoreError, and the errors of the database."""
        self.change(self.store.change(experience_keys, is_off=is_off, until=until, by=by))

    def close(self) -> None:
        """End the thread."""
        self._ended.set()

    def _start(self) -> None:
        with self._lock:
            # A test run may neither use the database nor keep a connection that hinders the end of its database.
            if is_test_run() or not self.store.is_possible():
                self.change(self._entries)
            elif self._thread is None and not self._ended.is_set():
                # The system may have no thread left. Then the next fetch tries again.
                with suppress(RuntimeError):
                    self._thread = start_thread(self._run, "moe-personalize-switch")

    def _run(self) -> None:
        with self._runtime.use():
            while not self._ended.is_set() and not self._rest():
                self._refresh()
                # Pages have connections of their own. This thread must not keep one of a server that allows few.
                with suppress(Exception):
                    connections.close_all()
                self._ended.wait(POLL_SECONDS)

    def _refresh(self) -> None:
        try:
            self.change(self.store.read())
        except Exception as error:
            pages = "obey its last state" if self.is_known else "show their defaults"
            self._outage.fail(type(error).__name__, f"Until it can, pages {pages}. Check the database and the cache.")
            if self.is_known:
                # The time of a switch may be over.
                self.change(self._entries)
        else:
            self._outage.end()

    def _rest(self) -> bool:
        """End the thread if no page has asked for a long time. The next fetch starts the thread again, and waits."""
        landed = 0 if self._flights is None else self._flights.landed
        if landed != self._landed:
            self._landed, self._used_at = landed, monotonic()
        settings = self._runtime.settings
        lifetime = max(settings.cache_ttl, settings.cache_stale_ttl)
        with self._lock:
            # If a key is off, pages may show it without a fetch as soon as it is on again.
            if self._off or monotonic() - self._used_at < lifetime + IDLE_SECONDS:
                return False
            self._known.clear()
            self._start_over()
            self._thread = None
            return True

    def _log(self, before: Mapping[str, Entry]) -> None:
        for key, entry in self._off.items():
            if entry != before.get(key):
                message = "%s Pages show the default. Run `%s` to switch on again."
                fields = {"moe_event": "switch_off", "moe_experience_key": key, "moe_by": entry.changed_by}
                logger.warning(message, entry.describe(), self.write_command(key), extra=fields)
        entries = {entry.experience_key: entry for entry in self._entries}
        for key in before.keys() - self._off.keys():
            entry = entries.get(key, before[key])
            why = "the time is over" if entry.is_off else entry.change
            by = "" if entry.is_off else entry.changed_by
            fields = {"moe_event": "switch_on", "moe_experience_key": key, "moe_by": by}
            logger.warning("%s switched on again (%s).", entry.name, why, extra=fields)


@part
def get_switch(runtime: Runtime) -> Switch:
    """Return the kill switch of the workspace."""
    return Switch(runtime)

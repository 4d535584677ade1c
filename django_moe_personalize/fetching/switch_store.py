"""Where the state of the kill switch is kept: in the table ``Switch``, or without this table in the shared cache.

The table is the truth. With a shared cache, processes leave a note of the table there. So they ask the database only
once in FRESH_SECONDS together, and a process that starts during an outage of the database finds the last state.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, NamedTuple

from django.conf import settings as django_settings
from django.db import connections, router, transaction
from django.utils import timezone

from django_moe_personalize.conf import SETTING
from django_moe_personalize.fetching.shared import build_key, get_many, get_outage, has_shared_cache, set_many
from django_moe_personalize.runtime import Runtime, protect_transactions

FRESH_SECONDS: Final = 2.0
"""How old a note in the shared cache may be before a process reads the table."""

NOTE_SECONDS: Final = 24 * 60 * 60
"""How long the note stays in the cache, for an outage of the database."""

TABLE_SECONDS: Final = 5.0
"""How often a process looks for a table that the site hasn't made yet."""

ALL: Final = ""
"""In place of a key: all experiences."""


class NoStoreError(Exception):
    """The site can't keep the state of the kill switch. The message says how to fix this."""


class Entry(NamedTuple):
    """A key that an operator has switched off, or switched on again. Times are Unix seconds."""

    experience_key: str
    is_off: bool
    until: float | None
    changed_by: str
    changed_at: float

    def is_in_force(self, now: float) -> bool:
        """Return whether the experience is off now."""
        return self.is_off and (self.until is None or now < self.until)

    @property
    def name(self) -> str:
        """The subject of a sentence about this entry."""
        return f"Experience {self.experience_key!r} is" if self.experience_key else "All experiences are"

    @property
    def change(self) -> str:
        """Who changed the entry, and when."""
        by = f"by {self.changed_by} " if self.changed_by else ""
        return f"{by}at {format_time(self.changed_at)}"

    def describe(self) -> str:
        """Say that the experience is off, and for how long."""
        until = "" if self.until is None else f", until {format_time(self.until)}"
        return f"{self.name} switched off ({self.change}{until})."


def format_time(seconds: float) -> str:
    """Return a time in the site's time zone."""
    moment = datetime.fromtimestamp(seconds, timezone.get_default_timezone() if django_settings.USE_TZ else None)
    return moment.isoformat(" ", "seconds")


class Store:
    """The entries of one workspace, in the database or in the shared cache."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._looked_at: float | None = None
        self._has_table = False

    def has_table(self) -> bool:
        """Return whether the site's database has the table. Raises the errors of the database."""
        if not self._has_table and self._has_database() and self._is_look_due():
            self._has_table = _get_model()._meta.db_table in connections[_find_alias()].introspection.table_names()
            self._looked_at = time.monotonic()
        return self._has_table

    def is_possible(self) -> bool:
        """Return whether the site has a database or a shared cache, so that a key may be off. Does no I/O."""
        return self._has_database() or has_shared_cache(self._runtime)

    def can_change(self) -> bool:
        """Return whether the state can change. Raises the errors of the database."""
        return self.has_table() or has_shared_cache(self._runtime)

    def read(self) -> tuple[Entry, ...]:
        """Return the entries of the workspace. Raises the errors of the database and of the cache."""
        with self._runtime.use():
            return self._read()

    def change(
        self, experience_keys: Iterable[str], *, is_off: bool, until: datetime | None = None, by: str = ""
    ) -> tuple[Entry, ...]:
        """Switch keys off, or on again. Return all entries. Raises NoStoreError, and the errors of the database."""
        now = timezone.now()
        moment = None if until is None else until.timestamp()
        changed = {key: Entry(key, is_off, moment, by, now.timestamp()) for key in experience_keys}
        with self._runtime.use():
            self._looked_at = None
            if not self.has_table():
                entries = tuple({**{entry.experience_key: entry for entry in self._read()}, **changed}.values())
                if not has_shared_cache(self._runtime) or not self._note(entries, None):
                    raise NoStoreError(_NO_STORE)
                return entries
            name, alias, rows = self._runtime.name, _find_alias(), _get_model().objects
            with transaction.atomic(using=alias):
                for key in changed:
                    row = {"is_off": is_off, "until": until, "changed_by": by[:150], "changed_at": now}
                    found = {"workspace": name, "experience_key": key, **row}
                    rows.using(alias).update_or_create(pk=rows.model.build_id(name, key), defaults=found)
                entries = self._read_table()
            self._note(entries, NOTE_SECONDS)
            return entries

    def _has_database(self) -> bool:
        engine: str = connections[_find_alias()].settings_dict["ENGINE"]
        return engine != "django.db.backends.dummy"

    def _is_look_due(self) -> bool:
        return self._looked_at is None or time.monotonic() - self._looked_at > TABLE_SECONDS

    @protect_transactions()
    def _read(self) -> tuple[Entry, ...]:
        noted, at = self._find_note()
        # The clocks of two machines may differ. Then each of the two reads the table.
        if noted is not None and at is not None and abs(time.time() - at) < FRESH_SECONDS:
            return noted
        try:
            entries = self._read_table() if self.has_table() else None
        except Exception:
            if noted is None:
                raise
            return noted
        if entries is not None:
            self._note(entries, NOTE_SECONDS)
        elif noted is None and get_outage(self._runtime).is_on:
            raise ConnectionError("the site's cache fails, and the database has no table")
        return noted or () if entries is None else entries

    def _read_table(self) -> tuple[Entry, ...]:
        rows = _get_model().objects.using(_find_alias()).filter(workspace=self._runtime.name).order_by("experience_key")
        return tuple(
            Entry(row.experience_key, row.is_off, row.until and row.until.timestamp(), row.changed_by, at.timestamp())
            for row in rows
            for at in [row.changed_at]
        )

    def _find_note(self) -> tuple[tuple[Entry, ...] | None, float | None]:
        """Return the entries in the shared cache. The time of a note without a table is ``None``."""
        if not has_shared_cache(self._runtime):
            return None, None
        name = build_key("switch")
        try:
            at, rows = get_many([name])[name]
            return tuple(Entry(*row) for row in rows), at
        except (KeyError, TypeError, ValueError):
            return None, None

    def _note(self, entries: tuple[Entry, ...], timeout: float | None) -> bool:
        at = None if timeout is None else time.time()
        note = [at, [list(entry) for entry in entries]]
        return not has_shared_cache(self._runtime) or set_many({build_key("switch"): note}, timeout=timeout)


def _get_model() -> Any:
    # A process imports this module before Django has loaded the apps.
    from django_moe_personalize.models import Switch

    return Switch


def _find_alias() -> str:
    return router.db_for_write(_get_model())


_NO_STORE = (
    "The site has no table for the kill switch, and its processes share no cache, so no process would learn of the "
    f'change. Run `manage.py migrate`. Or set {SETTING}["ENABLED"] to False and restart the site.'
)

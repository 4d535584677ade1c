"""``manage.py moe_switch``: switch experiences off in all processes of the site, and on again."""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.fetching.metadata import get_metadata_store
from django_moe_personalize.fetching.switch import POLL_SECONDS, get_switch
from django_moe_personalize.fetching.switch_store import ALL, FRESH_SECONDS, Entry, NoStoreError, format_time
from django_moe_personalize.management import WorkspaceCommand
from django_moe_personalize.runtime import Runtime, get_runtime

UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

MAX_DAYS: Final = 3650

FOLLOW: Final = f"All processes of the site follow within {POLL_SECONDS + FRESH_SECONDS:g} seconds."

UNCHECKED: Final = (
    "The experiences of the workspace aren't known here, so no key was checked. Run `manage.py moe_experiences` to "
    "compare."
)


class Command(WorkspaceCommand):
    """Change or print the state of the kill switch. This never calls MoEngage, so it works in an outage too."""

    without = "the only one"
    help = "Switches experiences off in all processes of the site, and on again. Without KEY, all experiences."
    # A mistake in another app must not stop an operator in an emergency.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """See BaseCommand.add_arguments()."""
        super().add_arguments(parser)
        parser.add_argument("action", choices=["off", "on", "status"], help="what to do")
        parser.add_argument("key", nargs="*", metavar="KEY", help="an experience key (default: all experiences)")
        duration = "with off: switch on again after this time, such as 30m, 2h, 1d or 1h30m"
        parser.add_argument("--for", dest="duration", metavar="DURATION", help=duration)
        parser.add_argument("--force", action="store_true", help="with off: accept a key that the workspace lacks")
        parser.add_argument("--json", action="store_true", help="print the state as one JSON object, for programs")

    def handle(self, *args: Any, **options: Any) -> None:
        """Change the state, and print what is off. Raises CommandError if nothing was changed."""
        self.check_chosen(options["workspace"])
        action, keys, runtime = options["action"], list(dict.fromkeys(options["key"])), get_runtime()
        if action != "off" and (options["duration"] is not None or options["force"]):
            raise CommandError("Only `moe_switch off` takes --for and --force.")
        until = None if options["duration"] is None else timezone.now() + read_duration(options["duration"])
        try:
            told = self._change(runtime, action, keys, until, is_forced=options["force"])
        except (ConfigurationError, NoStoreError) as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps(describe_state(runtime), indent=2))
            return
        self.stdout.write("\n".join([*told, *_describe_entries(get_switch(runtime).entries)]))

    def _change(
        self, runtime: Runtime, action: str, keys: Sequence[str], until: datetime | None, *, is_forced: bool
    ) -> list[str]:
        """Do the action, and return lines about it. Raises CommandError for a wrong key."""
        switch = get_switch(runtime)
        try:
            if action == "off":
                store = get_metadata_store(runtime)
                if not is_forced and (unknown := store.find_unknown(keys)):
                    raise CommandError(f"{unknown} Nothing was changed. To switch the key off anyway, add --force.")
                switch.turn(keys or [ALL], is_off=True, until=until, by=_find_user())
                return [FOLLOW] if is_forced or not keys or store.find_known_keys() else [FOLLOW, UNCHECKED]
            switch.change(switch.store.read())
            if action == "status":
                return []
            off = switch.list_off()
            if wrong := [key for key in keys if key not in off]:
                which = f"These keys are off: {', '.join(filter(None, off))}." if any(off) else "No single key is off."
                raise CommandError(f"{', '.join(wrong)} is not off. {which} Nothing was changed.")
            switch.turn(keys or off, is_off=False, by=_find_user())
            return [FOLLOW]
        except (CommandError, ConfigurationError, NoStoreError):
            raise
        except Exception as error:
            message = f"The state can't be {'read' if action == 'status' else 'changed'} ({type(error).__name__})."
            raise CommandError(f"{message} Check the database and the cache.", returncode=2) from error


def read_duration(text: str) -> timedelta:
    """Return the duration of a text such as ``1h30m``. Raises CommandError for another text."""
    parts = {unit: int(number) for number, unit in re.findall(r"(\d{1,9})([smhd])", text)}
    found = timedelta(**{UNITS[unit]: number for unit, number in parts.items()})
    if not re.fullmatch(r"(\d{1,9}[smhd])+", text) or not timedelta(0) < found <= timedelta(days=MAX_DAYS):
        raise CommandError(f"--for {text} is not a duration. Write 90s, 30m, 2h, 1d or 1h30m.")
    return found


def describe_state(runtime: Runtime) -> dict[str, Any]:
    """Return the state as JSON values."""
    off = {
        entry.experience_key: {
            "until": None if entry.until is None else format_time(entry.until),
            "changed_by": entry.changed_by,
            "changed_at": format_time(entry.changed_at),
        }
        for entry in get_switch(runtime).entries
    }
    return {"workspace": runtime.name, "all": off.pop(ALL, None), "experiences": off}


def _describe_entries(entries: Sequence[Entry]) -> list[str]:
    return [entry.describe() for entry in entries] or ["Nothing is switched off."]


def _find_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # The user of a container may have no name.
        return ""

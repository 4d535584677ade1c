"""The commands of the package, and how signals stop them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_moe_personalize.conf import ConfigurationError, list_workspaces
from django_moe_personalize.runtime import use_workspace


class WorkspaceCommand(BaseCommand):
    """A command that works for one workspace: the one that ``--workspace`` names, or else the default one."""

    without = "default"
    """The workspaces for which the command works without ``--workspace``, in words."""

    def add_arguments(self, parser: CommandParser) -> None:
        """See BaseCommand.add_arguments()."""
        meaning = f"a workspace of the settings (default: {self.without})"
        parser.add_argument("--workspace", metavar="NAME", help=meaning)

    def execute(self, *args: Any, **options: Any) -> str | None:
        """See BaseCommand.execute(). Raises CommandError for an unknown workspace."""
        try:
            context = use_workspace(options.get("workspace"))
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        with context:
            return super().execute(*args, **options)

    def check_chosen(self, name: str | None) -> None:
        """Raise CommandError without ``--workspace``, if the site has several workspaces."""
        names = list_workspaces()
        if len(names) > 1 and name is None:
            raise CommandError(f"The site has several workspaces. Choose one: --workspace {' or '.join(names)}.")

    def list_chosen(self, name: str | None) -> tuple[str, ...]:
        """Return the workspace of ``--workspace``, or all workspaces."""
        return list_workspaces() if name is None else (name,)


@contextmanager
def stop_on_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` on SIGTERM and SIGINT inside the ``with`` block. Outside the main thread, do nothing."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {each: signal.signal(each, lambda number, frame: stop()) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""``manage.py moe_deliver``: send the events in the outbox."""

from __future__ import annotations

import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_moe_personalize.conf import SETTING, ConfigurationError, get_settings
from django_moe_personalize.delivery.base import describe, find_delivery
from django_moe_personalize.delivery.database import DatabaseDelivery, Deliverer
from django_moe_personalize.delivery.sending import Outcome

POLL_SECONDS = 1.0
BAR_WIDTH = 30


class Command(BaseCommand):
    """Send the due events and end, or watch the outbox until a signal comes. A started batch is always finished."""

    help = "Sends the events in the outbox of DatabaseDelivery to MoEngage."

    def add_arguments(self, parser: CommandParser) -> None:
        """See BaseCommand.add_arguments()."""
        parser.add_argument(
            "--watch",
            nargs="?",
            type=float,
            const=POLL_SECONDS,
            metavar="SECONDS",
            help="don't end, and look for new events every SECONDS (default: 1)",
        )
        parser.add_argument(
            "--replay",
            nargs="*",
            type=uuid.UUID,
            metavar="UUID",
            help="first make parked events due again: those with the given UUIDs, or all of them",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Deliver. Raises CommandError if the site has no outbox, or if due events couldn't be sent."""
        interval = options["watch"]
        if interval is not None and not interval > 0:
            raise CommandError("--watch must be a number of seconds above 0.")
        delivery = _find_delivery()
        if options["replay"] is not None:
            self.stdout.write(f"{delivery.outbox.replay(options['replay'] or None)} parked events are due again.")
        is_watching = interval is not None
        progress = _Progress(self, delivery.outbox.due.count() if options["verbosity"] and not is_watching else 0)
        deliverer = Deliverer(delivery, on_batch=progress.add)
        with _stopping_on_signals(deliverer):
            if is_watching:
                self.stdout.write("Watching the outbox. Ctrl-C ends it.")
                self.stdout.flush()
                deliverer.watch(interval)
                failed = None
            else:
                failed = deliverer.drain()
        progress.report(delivery)
        if failed is not None and failed.error is not None:
            raise CommandError(_explain(failed, failed.error))


def _find_delivery() -> DatabaseDelivery:
    """Return the delivery, if it has an outbox and the outbox has its tables. Raises CommandError."""
    try:
        delivery = find_delivery(DatabaseDelivery)
    except ConfigurationError as error:
        raise CommandError(str(error)) from error
    if delivery is None:
        name = f"{DatabaseDelivery.__module__}.{DatabaseDelivery.__qualname__}"
        backend = get_settings().delivery.backend
        raise CommandError(f'{SETTING}["DELIVERY"] is {backend}, which has no outbox. Set it to {name}.')
    if not delivery.outbox.is_migrated:
        alias = delivery.outbox.alias
        raise CommandError(f"The database {alias!r} has no outbox. Run `manage.py migrate --database {alias}`.")
    return delivery


def _explain(outcome: Outcome, error: Exception) -> str:
    if outcome.wrong_credentials:
        hint = "Check WORKSPACE_ID, API_KEY and DATA_CENTER."
        return f"The credentials don't work ({describe(error)}), so the events wait. {hint}"
    return f"MoEngage fails ({describe(error)}). The remaining events wait for the next run."


@contextmanager
def _stopping_on_signals(deliverer: Deliverer) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        deliverer.stop()

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Progress:
    """The number of events sent so far. On a terminal it draws a bar of ``total`` events."""

    def __init__(self, command: Command, total: int) -> None:
        self._command = command
        self._total = total if command.stderr.isatty() else 0
        self._delivered = self._refused = 0

    def add(self, outcome: Outcome) -> None:
        """Count a batch."""
        self._delivered += len(outcome.delivered)
        self._refused += len(outcome.refused)
        if self._total:
            done = min(1.0, (self._delivered + self._refused) / self._total)
            bar = ("#" * int(done * BAR_WIDTH)).ljust(BAR_WIDTH, ".")
            self._command.stderr.write(f"\r[{bar}] {done:4.0%}", style_func=str, ending="")
            self._command.stderr.flush()

    def report(self, delivery: DatabaseDelivery) -> None:
        """Print the totals."""
        if self._total:
            self._command.stderr.write("")
        pending = delivery.counts().pending
        done = f"{self._delivered} events delivered, {self._refused} refused and parked"
        self._command.stdout.write(f"{done}, {pending} pending.")

"""``manage.py moe_deliver``: send what is in the outbox."""

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
from django_moe_personalize.delivery.base import describe
from django_moe_personalize.delivery.database import DatabaseDelivery, find_outbox_delivery
from django_moe_personalize.delivery.deliverer import Deliverer
from django_moe_personalize.delivery.sending import Outcome

POLL_SECONDS = 1.0
BAR_WIDTH = 30


class Command(BaseCommand):
    """Send what is due and end, or go on until interrupted or terminated; the batch in hand is finished."""

    help = "Sends the events in the outbox of DatabaseDelivery to MoEngage."

    def add_arguments(self, parser: CommandParser) -> None:
        """See BaseCommand.add_arguments()."""
        parser.add_argument(
            "--watch",
            nargs="?",
            type=float,
            const=POLL_SECONDS,
            metavar="SECONDS",
            help="go on, and look for new events every so many seconds (default: 1)",
        )
        parser.add_argument(
            "--replay",
            nargs="*",
            type=uuid.UUID,
            metavar="UUID",
            help="first make parked events due again: those named, or all of them",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Deliver. Raises CommandError where there is no outbox, and when due events could not be sent."""
        interval = options["watch"]
        if interval is not None and not interval > 0:
            raise CommandError("--watch takes seconds, more than 0.")
        delivery = _find_delivery()
        if options["replay"] is not None:
            self.stdout.write(f"{delivery.outbox.replay(options['replay'] or None)} parked events are due again.")
        watching = interval is not None
        work = _Work(self, delivery.outbox.due.count() if options["verbosity"] and not watching else 0)
        deliverer = Deliverer(delivery, on_batch=work.add)
        with _stopping_on_signals(deliverer):
            if watching:
                self.stdout.write("The outbox is watched. Ctrl-C ends it.")
                self.stdout.flush()
                deliverer.watch(interval)
                failed = None
            else:
                failed = deliverer.drain()
        work.report(delivery)
        if failed is not None and failed.error is not None:
            raise CommandError(_say_why(failed, failed.error))


def _find_delivery() -> DatabaseDelivery:
    """Return the delivery if it has an outbox with its tables; raises CommandError."""
    try:
        delivery = find_outbox_delivery()
    except ConfigurationError as error:
        raise CommandError(str(error)) from error
    if delivery is None:
        name = f"{DatabaseDelivery.__module__}.{DatabaseDelivery.__qualname__}"
        message = f'{SETTING}["DELIVERY"] is {get_settings().delivery.backend}, which has no outbox: set it to {name}.'
        raise CommandError(message)
    if not delivery.outbox.is_migrated:
        alias = delivery.outbox.alias
        raise CommandError(f"The database {alias!r} has no outbox: run `manage.py migrate --database {alias}` first.")
    return delivery


def _say_why(outcome: Outcome, error: Exception) -> str:
    if outcome.needs_human:
        return f"MoEngage takes no events with these settings ({describe(error)}). They wait."
    return f"MoEngage fails ({describe(error)}). What could not be sent waits for the next time."


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


class _Work:
    """What was done so far; on a terminal also as a bar, of ``total`` events."""

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
        """Say what was done."""
        if self._total:
            self._command.stderr.write("")
        pending = delivery.counts().pending
        done = f"{self._delivered} events delivered, {self._refused} refused and parked"
        self._command.stdout.write(f"{done}, {pending} pending.")

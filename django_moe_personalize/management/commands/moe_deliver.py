"""``manage.py moe_deliver``: send the events in the outbox."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_moe_personalize.conf import SETTING, ConfigurationError, get_settings
from django_moe_personalize.delivery.base import describe, find_delivery
from django_moe_personalize.delivery.database import DatabaseDelivery, Deliverer
from django_moe_personalize.delivery.sending import Outcome
from django_moe_personalize.log import CREDENTIALS_FIX, DATA_CREDENTIALS_FIX
from django_moe_personalize.management import stop_on_signals

POLL_SECONDS = 1.0
BAR_WIDTH = 30


class Command(BaseCommand):
    """Send the due events and end, or watch the outbox until a signal stops the command after the current batch."""

    help = "Sends the events in the outbox of DatabaseDelivery to MoEngage."

    def add_arguments(self, parser: CommandParser) -> None:
        """See BaseCommand.add_arguments()."""
        watch = "don't end, and look for new events every SECONDS (default: 1)"
        replay = "first make parked events due again: those with the given UUIDs, or all of them"
        parser.add_argument("--watch", nargs="?", type=float, const=POLL_SECONDS, metavar="SECONDS", help=watch)
        parser.add_argument("--replay", nargs="*", type=uuid.UUID, metavar="UUID", help=replay)

    def handle(self, *args: Any, **options: Any) -> None:
        """Send the events. Raises CommandError if the site has no outbox, or if due events couldn't be sent."""
        interval = options["watch"]
        if interval is not None and not interval > 0:
            raise CommandError("--watch must be a number of seconds above 0.")
        delivery = _find_delivery()
        if options["replay"] is not None:
            outbox, uuids = delivery.outbox, options["replay"]
            replayed = outbox.replay(outbox.choose("event_uuid", uuids) if uuids else None)
            self.stdout.write(f"{replayed} parked events are due again.")
        shows_bar = options["verbosity"] and interval is None and self.stderr.isatty()
        total = delivery.outbox.due.count() if shows_bar else 0
        sent: Counter[str] = Counter()

        def count(outcome: Outcome) -> None:
            sent.update(delivered=len(outcome.delivered), refused=len(outcome.refused))
            if total:
                self._draw_bar(min(1.0, sent.total() / total))

        failed = self._deliver(Deliverer(delivery, on_batch=count), interval)
        if total:
            self.stderr.write("")
        done = f"{sent['delivered']} events delivered, {sent['refused']} refused and parked"
        self.stdout.write(f"{done}, {delivery.counts().pending} pending.")
        if failed is not None and failed.failure is not None:
            raise CommandError(_explain(failed, failed.failure))

    def _deliver(self, deliverer: Deliverer, interval: float | None) -> Outcome | None:
        with stop_on_signals(deliverer.stop):
            if interval is None:
                return deliverer.drain()
            self.stdout.write("Watching the outbox. Ctrl-C ends it.")
            self.stdout.flush()
            deliverer.watch(interval)
        return None

    def _draw_bar(self, done: float) -> None:
        bar = ("#" * int(done * BAR_WIDTH)).ljust(BAR_WIDTH, ".")
        self.stderr.write(f"\r[{bar}] {done:4.0%}", style_func=str, ending="")
        self.stderr.flush()


def _find_delivery() -> DatabaseDelivery:
    """Return the delivery with the outbox. Raises CommandError if the site has no outbox or lacks its tables."""
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
        fix = DATA_CREDENTIALS_FIX if outcome.error is None else CREDENTIALS_FIX
        return f"The credentials don't work ({describe(error)}), so the events wait. {fix}"
    return f"MoEngage fails ({describe(error)}). The remaining events wait for the next run."

"""``manage.py moe_deliver``: send the events in the outbox."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import connections

from django_moe_personalize.conf import SETTING, ConfigurationError
from django_moe_personalize.delivery.base import describe, find_delivery
from django_moe_personalize.delivery.database import DatabaseDelivery, Deliverer
from django_moe_personalize.delivery.sending import Outcome
from django_moe_personalize.log import CREDENTIALS_FIX, DATA_CREDENTIALS_FIX
from django_moe_personalize.management import WorkspaceCommand, stop_on_signals
from django_moe_personalize.runtime import Runtime, get_runtime

POLL_SECONDS = 1.0
BAR_WIDTH = 30


class Command(WorkspaceCommand):
    """Send the due events and end, or watch the outbox until a signal stops the command after the current batch.

    Each workspace has a thread of its own, so a workspace whose MoEngage hangs delays no other one.
    """

    without = "all of them that have an outbox"
    help = "Sends the events in the outbox of DatabaseDelivery to MoEngage."

    def add_arguments(self, parser: CommandParser) -> None:
        """See BaseCommand.add_arguments()."""
        super().add_arguments(parser)
        watch = "don't end, and look for new events every SECONDS (default: 1)"
        replay = "first make parked events due again: those with the given UUIDs, or all of them"
        parser.add_argument("--watch", nargs="?", type=float, const=POLL_SECONDS, metavar="SECONDS", help=watch)
        parser.add_argument("--replay", nargs="*", type=uuid.UUID, metavar="UUID", help=replay)

    def handle(self, *args: Any, **options: Any) -> None:
        """Send the events. Raises CommandError if the site has no outbox, or if due events couldn't be sent."""
        interval = options["watch"]
        if interval is not None and not interval > 0:
            raise CommandError("--watch must be a number of seconds above 0.")
        jobs = _find_jobs(self.list_chosen(options["workspace"]))
        if options["replay"] is not None:
            for job in jobs:
                outbox, uuids = job.delivery.outbox, options["replay"]
                replayed = outbox.replay(outbox.choose("event_uuid", uuids) if uuids else None)
                self.stdout.write(f"{job.label}{replayed} parked events are due again.")
        if options["verbosity"] and interval is None and self.stderr.isatty() and len(jobs) == 1:
            jobs[0].total = jobs[0].delivery.outbox.due.count()
            jobs[0].draw = self._draw_bar

        def stop() -> None:
            for job in jobs:
                job.deliverer.stop()

        with stop_on_signals(stop):
            if interval is not None:
                self.stdout.write("Watching the outbox. Ctrl-C ends it.")
                self.stdout.flush()
            failures = [text for text in _run(jobs, interval) if text]
        for job in jobs:
            if job.total:
                self.stderr.write("")
            done = f"{job.sent['delivered']} events delivered, {job.sent['refused']} refused and parked"
            self.stdout.write(f"{job.label}{done}, {job.delivery.counts().pending} pending.")
        if failures:
            raise CommandError("\n".join(failures))

    def _draw_bar(self, done: float) -> None:
        bar = ("#" * int(done * BAR_WIDTH)).ljust(BAR_WIDTH, ".")
        self.stderr.write(f"\r[{bar}] {done:4.0%}", style_func=str, ending="")
        self.stderr.flush()


class _Job:
    """The outbox of one workspace. ``label`` begins its lines, if there are several."""

    total = 0
    draw: Callable[[float], None]

    def __init__(self, runtime: Runtime, delivery: DatabaseDelivery, label: str) -> None:
        self.runtime = runtime
        self.delivery = delivery
        self.label = label
        self.deliverer = Deliverer(delivery, on_batch=self._count)
        self.sent: Counter[str] = Counter()

    def _count(self, outcome: Outcome) -> None:
        self.sent.update(delivered=len(outcome.delivered), refused=len(outcome.refused))
        if self.total:
            self.draw(min(1.0, self.sent.total() / self.total))

    def run(self, interval: float | None) -> str:
        """Send the events, and return why some of them couldn't be sent, or ""."""
        with self.runtime.use():
            if interval is not None:
                self.deliverer.watch(interval)
                return ""
            failed = self.deliverer.drain()
            return "" if failed is None or failed.failure is None else self.label + _explain(failed, failed.failure)


def _run(jobs: Sequence[_Job], interval: float | None) -> list[str]:
    """Run the jobs, several of them at the same time, and return their results."""

    def run_in_thread(job: _Job) -> str:
        try:
            return job.run(interval)
        finally:
            connections.close_all()

    if len(jobs) == 1:
        return [jobs[0].run(interval)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run_in_thread, jobs))


def _find_jobs(names: Sequence[str]) -> list[_Job]:
    """Return the outboxes of these workspaces. Raises CommandError if none has an outbox, or if one lacks its tables.

    Of several workspaces, leave out those without an outbox.
    """
    found = []
    for name in names:
        try:
            runtime = get_runtime(name)
            delivery = find_delivery(DatabaseDelivery, runtime)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        if delivery is not None:
            found.append(_Job(runtime, delivery, f"{name}: " if len(names) > 1 else ""))
    if not found:
        name = f"{DatabaseDelivery.__module__}.{DatabaseDelivery.__qualname__}"
        backend = runtime.settings.delivery.backend
        raise CommandError(f'{SETTING}["DELIVERY"] is {backend}, which has no outbox. Set it to {name}.')
    for alias in (job.delivery.outbox.alias for job in found if not job.delivery.outbox.is_migrated):
        raise CommandError(f"The database {alias!r} has no outbox. Run `manage.py migrate --database {alias}`.")
    return found


def _explain(outcome: Outcome, error: Exception) -> str:
    if outcome.wrong_credentials:
        fix = DATA_CREDENTIALS_FIX if outcome.error is None else CREDENTIALS_FIX
        return f"The credentials don't work ({describe(error)}), so the events wait. {fix}"
    return f"MoEngage fails ({describe(error)}). The remaining events wait for the next run."

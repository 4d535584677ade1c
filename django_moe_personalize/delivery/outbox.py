"""The tables of the outbox: who may take an event, and what became of it. Several processes use them at once.

A deliverer leases rows in one short transaction, sends outside of any, and settles in another.
Until a lease runs out nobody else takes its rows; afterwards anybody does, so that a deliverer
that was killed delays its events and loses none. What leaves the table is entered in the tallies
in the same transaction, so that the books are right whatever is killed when.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from django.db import OperationalError, connections, models, router, transaction
from django.utils import timezone

from django_moe_personalize.models import OutboxEvent, OutboxTally, hash_customer
from django_moe_personalize.moengage.types import Event

T = TypeVar("T")

State = OutboxEvent.State

DELIVERED = "delivered"
ERASED = "erased"

_RETRY_WAITS = (0.05, 0.2)
"""Seconds before a transaction that lost a deadlock, or waited too long for a lock, is tried again."""


@dataclass(frozen=True, slots=True)
class LeasedRow:
    """What a deliverer needs of a row; ``body`` holds the event. No instance of a model, which takes far longer."""

    pk: int
    body: str = field(repr=False)
    attempts: int


@dataclass(frozen=True, slots=True)
class Lease:
    """Rows that one deliverer may send, and the token that says so."""

    token: uuid.UUID
    rows: Sequence[LeasedRow] = ()


@dataclass(slots=True)
class Settlement:
    """What is to become of leased rows, by primary key: taken, parked for a reason, or due again after seconds."""

    delivered: list[int] = field(default_factory=list)
    parked: dict[int, tuple[OutboxEvent.State, str]] = field(default_factory=dict)
    released: dict[int, float] = field(default_factory=dict)
    counts_as_attempt: bool = True


class Outbox:
    """The outbox in the database ``using``, by default the one where the site's router writes it."""

    def __init__(self, using: str | None = None) -> None:
        self._using = using

    @property
    def alias(self) -> str:
        """The database, as ``DATABASES`` names it."""
        return self._using or router.db_for_write(OutboxEvent)

    @property
    def is_migrated(self) -> bool:
        """Whether the database has the outbox's table."""
        return OutboxEvent._meta.db_table in connections[self.alias].introspection.table_names()

    @property
    def rows(self) -> models.QuerySet[OutboxEvent]:
        """All rows."""
        return OutboxEvent.objects.using(self.alias)

    @property
    def parked(self) -> models.QuerySet[OutboxEvent]:
        """The rows that wait for somebody to look at them."""
        return self.rows.exclude(state=State.PENDING)

    @property
    def due(self) -> models.QuerySet[OutboxEvent]:
        """The rows that a deliverer may lease now."""
        # IN, because Django leaves out that a boolean "= 1", without which SQLite does not see the index.
        return self.rows.filter(is_pending__in=[True], due_at__lte=timezone.now())

    def insert(self, events: Iterable[Event]) -> None:
        """Add events that are due at once, in one INSERT; those it has already are not added again.

        In a transaction of the caller a failure undoes nothing but the INSERT itself.
        """
        now = timezone.now()
        rows = [OutboxEvent.build(event, now) for event in events]
        with transaction.atomic(using=self.alias):
            OutboxEvent.objects.using(self.alias).bulk_create(rows, ignore_conflicts=True)

    def lease(self, limit: int, seconds: float) -> Lease:
        """Take up to ``limit`` due rows for ``seconds``, the longest due first; nobody else has them until then.

        Raises RuntimeError inside a transaction of the caller, which would hide the lease from others.
        """
        token = uuid.uuid4()
        skip_locked = connections[self.alias].features.has_select_for_update_skip_locked
        with transaction.atomic(using=self.alias, durable=True):
            # SQLite has one writer, and only who writes first can be it: who has read may be too late.
            self.rows.filter(pk=0).update(attempts=0)
            due = self.due.select_for_update(skip_locked=skip_locked).order_by("due_at")
            rows = [LeasedRow(*row) for row in due.values_list("pk", "body", "attempts")[:limit]]
            until = timezone.now() + timedelta(seconds=seconds)
            self._only(row.pk for row in rows).update(lease=token, due_at=until)
        return Lease(token, rows)

    def settle(self, lease: Lease, settlement: Settlement) -> Counter[str]:
        """Enter what became of leased rows, and return how many were delivered, and parked in which state.

        Rows whose lease ran out, and that somebody else has leased since, are left to them.
        """
        return self._transact(lambda: self._settle(lease.token, settlement))

    def _settle(self, token: uuid.UUID, settlement: Settlement) -> Counter[str]:
        now = timezone.now()
        counts: Counter[str] = Counter()
        counts[DELIVERED], _ = self._only(settlement.delivered).filter(lease=token).delete()
        for pk, (state, reason) in settlement.parked.items():
            row = self._only([pk]).filter(lease=token)
            counts[state] += row.update(
                state=state, reason=_escape(reason), due_at=now, lease=None, attempts=models.F("attempts") + 1
            )
        if settlement.released:
            self._only(settlement.released).filter(lease=token).update(
                due_at=_choose_due(now, settlement.released),
                lease=None,
                attempts=models.F("attempts") + int(settlement.counts_as_attempt),
            )
        self._tally(DELIVERED, counts[DELIVERED])
        return +counts

    def replay(self, event_uuids: Collection[uuid.UUID] | None = None) -> int:
        """Make parked events due again, all of them or those given, and return how many."""
        rows = self.parked if event_uuids is None else self.parked.filter(event_uuid__in=event_uuids)
        return rows.update(state=State.PENDING, attempts=0, reason="", lease=None, due_at=timezone.now())

    def erase(self, customer_id: str) -> int:
        """Delete all events of a customer, parked ones too, and return how many."""
        rows = self.rows.filter(customer_hash=hash_customer(customer_id))
        return self._transact(lambda: self._delete(rows, ERASED))

    def purge(self, seconds: float) -> int:
        """Delete what was parked longer than ``seconds`` ago, which stays counted, and return how many."""
        before = timezone.now() - timedelta(seconds=seconds)
        old = {state: self.rows.filter(state=state, due_at__lt=before) for state in State if state != State.PENDING}
        return self._transact(lambda: sum(self._delete(rows, state) for state, rows in old.items()))

    def enter_loss(self, count: int, reason: str) -> None:
        """Enter events that could not be added."""
        self._transact(lambda: self._tally(reason, count))

    def count(self) -> Counter[str]:
        """Return the number of ``pending`` events, of ``delivered`` ones, and of others by reason, as of one moment."""
        tallies = OutboxTally.objects.using(self.alias).values_list("outcome", "count")
        states = self.rows.order_by().values("state").annotate(count=models.Count("pk")).values_list("state", "count")
        counts: Counter[str] = Counter()
        for outcome, count in tallies.union(states, all=True):
            # A union of two kinds of integers is a Decimal on MariaDB.
            counts[outcome] += int(count)
        return counts

    def find_oldest(self) -> datetime | None:
        """Return when the first of the pending events was recorded."""
        return self.rows.filter(state=State.PENDING).order_by("pk").values_list("created_at", flat=True).first()

    def _only(self, pks: Iterable[int]) -> models.QuerySet[OutboxEvent]:
        return self.rows.filter(pk__in=list(pks))

    def _delete(self, rows: models.QuerySet[OutboxEvent], reason: str) -> int:
        count, _ = rows.delete()
        self._tally(reason, count)
        return count

    def _tally(self, outcome: str, count: int) -> None:
        if not count:
            return
        tallies = OutboxTally.objects.using(self.alias)
        mine = tallies.filter(outcome=outcome)
        if not mine.update(count=models.F("count") + count):
            # Two processes may come to this at once.
            tallies.bulk_create([OutboxTally(outcome=outcome)], ignore_conflicts=True)
            mine.update(count=models.F("count") + count)

    def _transact(self, work: Callable[[], T]) -> T:
        for wait in _RETRY_WAITS:
            try:
                with transaction.atomic(using=self.alias):
                    return work()
            except OperationalError:
                time.sleep(wait)
        with transaction.atomic(using=self.alias):
            return work()


def _escape(reason: str) -> str:
    """Return it in ASCII: one word of the vendor's that the database cannot hold would undo the whole settlement."""
    return reason.encode("unicode_escape").decode("ascii")


def _choose_due(now: datetime, seconds: Mapping[int, float]) -> models.Case:
    """Give each row a moment of its own: a failed batch must not come back as it was, with what spoils it."""
    output = models.DateTimeField()
    whens = [
        models.When(pk=pk, then=models.Value(now + timedelta(seconds=wait), output_field=output))
        for pk, wait in seconds.items()
    ]
    return models.Case(*whens, output_field=output)

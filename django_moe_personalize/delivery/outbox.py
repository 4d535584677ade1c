"""The tables of the outbox, which several processes use at once: who may send an event, and what became of it.

A deliverer leases rows in one short transaction, sends outside any transaction, and settles the rows in another
one. Until its lease runs out, no other deliverer takes its rows. Afterwards any deliverer does, so a killed
deliverer delays its events and loses none. A row that leaves the table is counted in the same transaction, so the
counters are right whichever process is killed at whichever moment.
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

from django_moe_personalize.models import OutboxCounter, OutboxEvent, hash_customer
from django_moe_personalize.moengage.types import Event

T = TypeVar("T")

State = OutboxEvent.State

DELIVERED = "delivered"
ERASED = "erased"

_RETRY_WAITS = (0.05, 0.2)
"""Seconds to wait before a transaction is tried again after a deadlock or a lock timeout."""


@dataclass(frozen=True, slots=True)
class LeasedRow:
    """The columns that a deliverer needs. A model instance would take much longer to build."""

    pk: int
    body: str = field(repr=False)
    attempts: int


@dataclass(frozen=True, slots=True)
class Lease:
    """Rows that one deliverer may send, and the token that proves it."""

    token: uuid.UUID
    rows: Sequence[LeasedRow] = ()


@dataclass(slots=True)
class Settlement:
    """The result for each leased row by primary key: delivered, parked for a reason, or due again after seconds."""

    delivered: list[int] = field(default_factory=list)
    parked: dict[int, tuple[OutboxEvent.State, str]] = field(default_factory=dict)
    released: dict[int, float] = field(default_factory=dict)
    counts_as_attempt: bool = True


class Outbox:
    """The outbox in the database ``using``, by default the one to which the site's router writes it."""

    def __init__(self, using: str | None = None) -> None:
        self._using = using

    @property
    def alias(self) -> str:
        """The alias of the database in ``DATABASES``."""
        return self._using or router.db_for_write(OutboxEvent)

    @property
    def is_migrated(self) -> bool:
        """Whether the database has the table of the outbox."""
        return OutboxEvent._meta.db_table in connections[self.alias].introspection.table_names()

    @property
    def rows(self) -> models.QuerySet[OutboxEvent]:
        """All rows."""
        return OutboxEvent.objects.using(self.alias)

    @property
    def parked(self) -> models.QuerySet[OutboxEvent]:
        """The parked rows: a person has to decide about them."""
        return self.rows.exclude(state=State.PENDING)

    @property
    def due(self) -> models.QuerySet[OutboxEvent]:
        """The rows that a deliverer may lease now."""
        # IN, because Django writes a boolean without "= 1", and then SQLite doesn't use the index.
        return self.rows.filter(is_pending__in=[True], due_at__lte=timezone.now())

    def insert(self, events: Iterable[Event]) -> None:
        """Add events that are due at once, with one INSERT. Skip events that the table has already.

        In a transaction of the caller, a failure undoes the INSERT alone.
        """
        now = timezone.now()
        rows = [OutboxEvent.build(event, now) for event in events]
        with transaction.atomic(using=self.alias):
            self.rows.bulk_create(rows, ignore_conflicts=True)

    def lease(self, limit: int, seconds: float) -> Lease:
        """Lease up to ``limit`` due rows for ``seconds``, the longest due first.

        Raises RuntimeError inside a transaction of the caller, because other deliverers wouldn't see the lease.
        """
        token = uuid.uuid4()
        skip_locked = connections[self.alias].features.has_select_for_update_skip_locked
        with transaction.atomic(using=self.alias, durable=True):
            # SQLite has one writer. A transaction that reads first may be too late to become the writer.
            self.rows.filter(pk=0).update(attempts=0)
            due = self.due.select_for_update(skip_locked=skip_locked).order_by("due_at")
            rows = [LeasedRow(*row) for row in due.values_list("pk", "body", "attempts")[:limit]]
            until = timezone.now() + timedelta(seconds=seconds)
            self._select(row.pk for row in rows).update(lease=token, due_at=until)
        return Lease(token, rows)

    def settle(self, lease: Lease, settlement: Settlement) -> Counter[str]:
        """Store the result of each leased row. Return the number of delivered rows, and of parked rows by state.

        Leaves rows alone that another deliverer has leased, because this lease had run out.
        """
        return self._transact(lambda: self._settle(lease.token, settlement))

    def _settle(self, token: uuid.UUID, settlement: Settlement) -> Counter[str]:
        now = timezone.now()
        counts: Counter[str] = Counter()
        counts[DELIVERED], _ = self._select(settlement.delivered).filter(lease=token).delete()
        attempts = models.F("attempts")
        for pk, (state, reason) in settlement.parked.items():
            # In ASCII: a character that the database can't store would undo the whole settlement.
            reason = reason.encode("unicode_escape").decode("ascii")
            row = self._select([pk]).filter(lease=token)
            counts[state] += row.update(state=state, reason=reason, due_at=now, lease=None, attempts=attempts + 1)
        if settlement.released:
            self._select(settlement.released).filter(lease=token).update(
                due_at=_choose_due(now, settlement.released),
                lease=None,
                attempts=attempts + int(settlement.counts_as_attempt),
            )
        self._add_to_counter(DELIVERED, counts[DELIVERED])
        return +counts

    def replay(self, event_uuids: Collection[uuid.UUID] | None = None) -> int:
        """Make parked events due again, all of them or those with the given UUIDs, and return their number."""
        rows = self.parked if event_uuids is None else self.parked.filter(event_uuid__in=event_uuids)
        return rows.update(state=State.PENDING, attempts=0, reason="", lease=None, due_at=timezone.now())

    def erase(self, customer_id: str) -> int:
        """Delete all events of a customer, parked ones too, and return their number."""
        rows = self.rows.filter(customer_hash=hash_customer(customer_id))
        return self._transact(lambda: self._delete(rows, ERASED))

    def purge(self, seconds: float) -> int:
        """Delete events that were parked longer than ``seconds`` ago, and return their number. They stay counted."""
        before = timezone.now() - timedelta(seconds=seconds)
        old = {state: self.rows.filter(state=state, due_at__lt=before) for state in State if state != State.PENDING}
        return self._transact(lambda: sum(self._delete(rows, state) for state, rows in old.items()))

    def add_loss(self, count: int, reason: str) -> None:
        """Count events that could not be added."""
        self._transact(lambda: self._add_to_counter(reason, count))

    def count(self) -> Counter[str]:
        """Return the number of ``pending`` and ``delivered`` events, and of others by reason, as of one moment."""
        gone = OutboxCounter.objects.using(self.alias).values_list("outcome", "count")
        states = self.rows.order_by().values("state").annotate(count=models.Count("pk")).values_list("state", "count")
        counts: Counter[str] = Counter()
        for outcome, count in gone.union(states, all=True):
            # On MariaDB a union of two integer types is a Decimal.
            counts[outcome] += int(count)
        return counts

    def find_oldest(self) -> datetime | None:
        """Return the time at which the oldest pending event was recorded."""
        return self.rows.filter(state=State.PENDING).order_by("pk").values_list("created_at", flat=True).first()

    def _select(self, pks: Iterable[int]) -> models.QuerySet[OutboxEvent]:
        return self.rows.filter(pk__in=list(pks))

    def _delete(self, rows: models.QuerySet[OutboxEvent], reason: str) -> int:
        count, _ = rows.delete()
        self._add_to_counter(reason, count)
        return count

    def _add_to_counter(self, outcome: str, count: int) -> None:
        if not count:
            return
        counters = OutboxCounter.objects.using(self.alias)
        counter = counters.filter(outcome=outcome)
        if not counter.update(count=models.F("count") + count):
            # Two processes may get here at once.
            counters.bulk_create([OutboxCounter(outcome=outcome)], ignore_conflicts=True)
            counter.update(count=models.F("count") + count)

    def _transact(self, work: Callable[[], T]) -> T:
        for wait in _RETRY_WAITS:
            try:
                with transaction.atomic(using=self.alias):
                    return work()
            except OperationalError:
                time.sleep(wait)
        with transaction.atomic(using=self.alias):
            return work()


def _choose_due(now: datetime, seconds: Mapping[int, float]) -> models.Case:
    """Give each row its own due time, so that a bad event doesn't meet the same batch again."""
    whens = [models.When(pk=pk, then=models.Value(now + timedelta(seconds=wait))) for pk, wait in seconds.items()]
    return models.Case(*whens)

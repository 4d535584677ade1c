"""The queries on the outbox's tables. Many processes may run them at the same time.

A deliverer leases rows in one short transaction, sends their events outside any transaction, and stores the results in
another transaction. Until the lease runs out, no other deliverer leases these rows. So a killed deliverer delays its
events, and loses no event. The transaction that deletes a row also counts it, so the counters are always right.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple, TypeVar

from django.conf import settings as django_settings
from django.db import OperationalError, connections, models, router, transaction
from django.utils import timezone

from django_moe_personalize.conf import DEFAULT
from django_moe_personalize.models import OutboxCounter, OutboxEvent, hash_customer
from django_moe_personalize.moengage.types import Event

T = TypeVar("T")

State = OutboxEvent.State

DELIVERED = "delivered"
ERASED = "erased"

MAX_PARAMETERS = 500
"""The number of values in one query. Some builds of SQLite accept 999, and Debian's accepts 250,000."""

_RETRY_WAITS = (0.05, 0.2)
"""The seconds to wait before each retry of a transaction, after a deadlock or a lock timeout."""


@dataclass(frozen=True, slots=True)
class LeasedRow:
    """The columns that a deliverer needs. Building a model instance would take much longer."""

    pk: int
    body: str = field(repr=False)
    attempts: int


class Lease(NamedTuple):
    """The rows that one deliverer may send. The deliverer needs ``token`` to store the results."""

    token: uuid.UUID
    rows: Sequence[LeasedRow] = ()


@dataclass(slots=True)
class Settlement:
    """The result of each leased row by primary key: delivered, parked for a reason, or due again after some seconds."""

    delivered: list[int] = field(default_factory=list)
    parked: dict[int, tuple[OutboxEvent.State, str]] = field(default_factory=dict)
    released: dict[int, float] = field(default_factory=dict)
    counts_as_attempt: bool = True


def has_table(model: type[models.Model], alias: str | None = None) -> bool:
    """Return whether the database has the table of ``model``. By default the site's router chooses the database."""
    return model._meta.db_table in connections[alias or router.db_for_write(model)].introspection.table_names()


class Outbox:
    """The outbox of ``workspace`` in the database ``using``. By default the site's router chooses the database.

    All workspaces may share the tables. Each sees its own rows and counters, and with ``None`` those of all.
    """

    def __init__(self, using: str | None = None, workspace: str | None = DEFAULT) -> None:
        self._using = using
        self.workspace = workspace

    @property
    def alias(self) -> str:
        """The alias of the database in ``DATABASES``."""
        return self._using or router.db_for_write(OutboxEvent)

    @property
    def is_migrated(self) -> bool:
        """Whether the database has the table of the outbox."""
        return has_table(OutboxEvent, self.alias)

    @property
    def rows(self) -> models.QuerySet[OutboxEvent]:
        """All rows of the workspace."""
        return OutboxEvent.objects.using(self.alias).filter(**self._own)

    @property
    def _own(self) -> dict[str, str]:
        return {} if self.workspace is None else {"workspace": self.workspace}

    @property
    def parked(self) -> models.QuerySet[OutboxEvent]:
        """The parked rows. A person has to decide whether to send their events again."""
        return self.rows.exclude(state=State.PENDING)

    @property
    def due(self) -> models.QuerySet[OutboxEvent]:
        """The rows that a deliverer may lease now."""
        # IN, because Django omits "= 1" after a boolean column, and then SQLite doesn't use the index.
        return self.rows.filter(is_pending__in=[True], due_at__lte=timezone.now())

    def insert(self, events: Iterable[Event]) -> None:
        """Add events that are due immediately, with one INSERT. Skip events that the table already has."""
        now = timezone.now()
        rows = [OutboxEvent.build(event, now, **self._own) for event in events]
        # record() makes a savepoint in the caller's transaction.
        with transaction.atomic(using=self.alias, savepoint=False):
            self.rows.bulk_create(rows, ignore_conflicts=True)

    def lease(self, limit: int, seconds: float, *, conversions: bool = True) -> Lease:
        """Lease up to ``limit`` due rows for ``seconds``. Rows with the earliest ``due_at`` come first.

        Without ``conversions`` these rows stay.

        Raises RuntimeError inside a transaction of the caller: other deliverers wouldn't see the lease.
        """
        token = uuid.uuid4()
        skip_locked = connections[self.alias].features.has_select_for_update_skip_locked
        with transaction.atomic(using=self.alias, durable=True):
            # This UPDATE changes no row. It makes SQLite lock the database before the first read: a transaction that
            # reads first fails if another one writes before it does.
            self.rows.filter(pk=0).update(attempts=0)
            self.follow_index()
            due = self.due if conversions else self.due.filter(is_conversion__in=[False])
            due = due.select_for_update(skip_locked=skip_locked).order_by("due_at")
            rows = [LeasedRow(*row) for row in due.values_list("pk", "body", "attempts")[:limit]]
            until = timezone.now() + timedelta(seconds=seconds)
            self._select(row.pk for row in rows).update(lease=token, due_at=until)
        return Lease(token, rows)

    def follow_index(self) -> None:
        """Let PostgreSQL read due rows in the order of the index, until the end of the transaction.

        Without fresh statistics, as after an outage, it expects few rows of a workspace. So it would collect and sort
        all of them.
        """
        if connections[self.alias].vendor == "postgresql":
            with connections[self.alias].cursor() as cursor:
                cursor.execute("SET LOCAL enable_bitmapscan = off")

    def settle(self, lease: Lease, settlement: Settlement) -> Counter[str]:
        """Store the result of each leased row. Return the number of delivered rows, and of parked rows by state.

        If this lease has run out and another deliverer has leased a row, that row doesn't change.
        """
        return self._transact(lambda: self._settle(lease.token, settlement))

    def _settle(self, token: uuid.UUID, settlement: Settlement) -> Counter[str]:
        now = timezone.now()
        counts: Counter[str] = Counter()
        counts[DELIVERED], _ = self._select(settlement.delivered).filter(lease=token).delete()
        attempts = models.F("attempts")
        for pk, (state, reason) in settlement.parked.items():
            # In ASCII: a character that the database can't store would roll back all results.
            reason = reason.encode("unicode_escape").decode("ascii")
            row = self._select([pk]).filter(lease=token)
            counts[state] += row.update(state=state, reason=reason, due_at=now, lease=None, attempts=attempts + 1)
        if settlement.released:
            # Random waits give each row its own due time, so a bad event doesn't meet the same batch again.
            due = {pk: models.Value(now + timedelta(seconds=wait)) for pk, wait in settlement.released.items()}
            whens = [models.When(pk=pk, then=value) for pk, value in due.items()]
            self._select(settlement.released).filter(lease=token).update(
                due_at=models.Case(*whens),
                lease=None,
                attempts=attempts + int(settlement.counts_as_attempt),
            )
        self._add_to_counter(DELIVERED, counts[DELIVERED])
        return +counts

    def choose(self, field: str, values: Sequence[object]) -> Iterator[models.QuerySet[OutboxEvent]]:
        """Yield the rows whose ``field`` is one of ``values``, in as many querysets as the database needs."""
        for start in range(0, len(values), MAX_PARAMETERS):
            yield self.rows.filter(**{f"{field}__in": values[start : start + MAX_PARAMETERS]})

    def replay(self, chosen: Iterable[models.QuerySet[OutboxEvent]] | None = None) -> int:
        """Make parked events due again, all of them or those in the ``chosen`` querysets, and return their number.

        One UPDATE of 260,000 rows locks SQLite for 6 seconds. Batches with short locks would take 20 seconds in total.
        """
        due = {"state": State.PENDING, "attempts": 0, "reason": "", "lease": None, "due_at": timezone.now()}
        with transaction.atomic(using=self.alias):
            querysets = [self.rows] if chosen is None else chosen
            return sum(rows.exclude(state=State.PENDING).order_by().update(**due) for rows in querysets)

    def erase(self, customer_id: str) -> int:
        """Delete all events of a customer, parked ones too, and return their number.

        Events that were recorded before SECRET_KEY changed are found by the keys in SECRET_KEY_FALLBACKS.
        """
        secrets = (django_settings.SECRET_KEY, *django_settings.SECRET_KEY_FALLBACKS)
        rows = self.rows.filter(customer_hash__in=[hash_customer(customer_id, secret) for secret in secrets])
        return self._transact(lambda: self._delete(rows, ERASED))

    def purge(self, seconds: float) -> int:
        """Delete events that were parked longer than ``seconds`` ago, count them, and return their number."""
        before = timezone.now() - timedelta(seconds=seconds)
        old = {state: self.rows.filter(state=state, due_at__lt=before) for state in State if state != State.PENDING}
        return self._transact(lambda: sum(self._delete(rows, state) for state, rows in old.items()))

    def add_loss(self, count: int, reason: str) -> None:
        """Count events that an earlier INSERT failed to add."""
        self._transact(lambda: self._add_to_counter(reason, count))

    def count(self) -> Counter[str]:
        """Return the number of ``pending``, ``delivered`` and, by reason, dropped events. One query reads them all."""
        gone = OutboxCounter.objects.using(self.alias).filter(**self._own).values_list("outcome", "count")
        states = self.rows.order_by().values("state").annotate(count=models.Count("pk")).values_list("state", "count")
        counts: Counter[str] = Counter()
        for outcome, count in gone.union(states, all=True):
            # MariaDB returns a Decimal for a union of two integer types.
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
        counter = counters.filter(outcome=outcome, **self._own)
        if not counter.update(count=models.F("count") + count):
            # Two processes may add the same counter at the same time.
            counters.bulk_create([OutboxCounter(outcome=outcome, **self._own)], ignore_conflicts=True)
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

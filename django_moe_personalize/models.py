"""The outbox of ``DatabaseDelivery``: events that wait in the site's own database, and what became of the others."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from django.db import models

from django_moe_personalize.moengage.types import Event

_PENDING = "pending"


class OutboxEvent(models.Model):
    """One event that waits to be sent, or that was parked. Its row is gone once MoEngage has taken it.

    ``due_at`` is when anyone may take a pending event: a lease puts it off to the lease's end, a
    failure to the next attempt. Of a parked event it is when that was parked.
    """

    class State(models.TextChoices):
        """What is to become of an event; all but the first are parked, for a reason that is counted."""

        PENDING = _PENDING, "pending"
        REFUSED = "refused", "refused by MoEngage"
        ATTEMPTS = "attempts", "given up after too many attempts"

    event_uuid = models.UUIDField(unique=True)
    # Found by erase(). A hash, because databases differ in how they compare and bound text.
    customer_hash = models.CharField(max_length=32)
    # What is sent, as it is sent. In ASCII: not every database and encoding takes every character of a context.
    body = models.TextField()
    state = models.CharField(max_length=8, choices=State.choices, default=State.PENDING)
    # For the index: of a table it has not looked at for a while, which is what an outage makes of this one, PostgreSQL
    # expects next to no rows of one text, and would rather sort all that wait than follow an index; half, of a boolean.
    is_pending = models.GeneratedField(
        expression=models.Case(models.When(state=_PENDING, then=True), default=False),
        output_field=models.BooleanField(),
        db_persist=True,
    )
    attempts = models.PositiveIntegerField(default=0)
    due_at = models.DateTimeField()
    lease = models.UUIDField(null=True)
    reason = models.TextField(blank=True)
    created_at = models.DateTimeField()

    class Meta:
        verbose_name = "event in the outbox"
        verbose_name_plural = "events in the outbox"
        indexes: ClassVar[list[models.Index]] = [models.Index(fields=["is_pending", "due_at"], name="moe_outbox_due")]

    def __str__(self) -> str:
        return str(self.event_uuid)

    @classmethod
    def build(cls, event: Event, now: datetime) -> OutboxEvent:
        """Return the row of an event that is due at once; raises TypeError or ValueError if it is no JSON."""
        return cls(
            event_uuid=uuid.UUID(event.event_uuid),
            customer_hash=hash_customer(event.customer_id),
            body=event.element,
            due_at=now,
            created_at=now,
        )

    def read_action(self) -> Mapping[str, Any]:
        """Return what ``body`` says that happened, without whose it was; raises ValueError where it says nothing."""
        try:
            (action,) = json.loads(self.body)["actions"]
            return dict(action)
        except (LookupError, TypeError) as error:
            raise ValueError("no event") from error


class OutboxTally(models.Model):
    """How many events left the outbox with one outcome: ``delivered``, or a reason for dropping."""

    outcome = models.CharField(max_length=20, primary_key=True)
    count = models.PositiveBigIntegerField(default=0)

    class Meta:
        verbose_name = "tally of the outbox"
        verbose_name_plural = "tallies of the outbox"

    def __str__(self) -> str:
        return self.outcome


def hash_customer(customer_id: str) -> str:
    """Return what the events of one customer have in common."""
    return hashlib.blake2b(customer_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

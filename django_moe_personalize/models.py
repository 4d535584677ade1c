"""The tables of ``DatabaseDelivery``: the outbox with its events, and the counters of the events that left it."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from django.db import models

from django_moe_personalize.moengage.types import Event


class OutboxEvent(models.Model):
    """A pending or a parked event. When MoEngage accepts the event, the deliverer deletes the row.

    A deliverer may lease a pending event from the time ``due_at`` on. A lease sets ``due_at`` to the end of the lease,
    and a failure sets it to the time of the next attempt. For a parked event ``due_at`` is the time of parking.
    """

    class State(models.TextChoices):
        """Pending, or parked for a reason."""

        PENDING = "pending", "pending"
        REFUSED = "refused", "refused by MoEngage"
        ATTEMPTS = "attempts", "given up after too many attempts"

    event_uuid = models.UUIDField(unique=True)
    # erase() finds rows by this hash. Databases differ in how they compare and limit the text of an id.
    customer_hash = models.CharField(max_length=32)
    # The JSON for MoEngage. In ASCII, because some databases and encodings can't store all characters.
    body = models.TextField()
    state = models.CharField(max_length=8, choices=State.choices, default=State.PENDING)
    # The index uses this boolean instead of ``state``. Without fresh statistics, as after an outage, PostgreSQL expects
    # few rows with one text, so it would ignore the index and sort. For a boolean it expects half of the rows.
    is_pending = models.GeneratedField(
        expression=models.Case(models.When(state=State.PENDING, then=True), default=False),
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
        """Return the unsaved row of an event, due now. Raises TypeError or ValueError if JSON can't express it."""
        return cls(
            event_uuid=uuid.UUID(event.event_uuid),
            customer_hash=hash_customer(event.customer_id),
            body=event.element,
            due_at=now,
            created_at=now,
        )

    def read_action(self) -> Mapping[str, Any]:
        """Return the action in ``body``, or ``{}`` without an action. An action doesn't name the customer."""
        try:
            (action,) = json.loads(self.body)["actions"]
            return dict(action)
        except (LookupError, TypeError, ValueError):
            return {}


class OutboxCounter(models.Model):
    """The number of events that left the outbox with one outcome: ``delivered``, or a reason for dropping."""

    outcome = models.CharField(max_length=20, primary_key=True)
    count = models.PositiveBigIntegerField(default=0)

    class Meta:
        verbose_name = "counter of the outbox"
        verbose_name_plural = "counters of the outbox"

    def __str__(self) -> str:
        return self.outcome


def hash_customer(customer_id: str) -> str:
    """Return the hash that all events of one customer share."""
    return hashlib.sha256(customer_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]

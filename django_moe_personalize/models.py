"""The tables: the outbox of ``DatabaseDelivery`` with its events and its counters, and the kill switch."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import models
from django.utils.crypto import salted_hmac
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

if TYPE_CHECKING:
    from django_moe_personalize.moengage.types import Event

DEFAULT = "default"
"""The name of the workspace without a name, as in conf. A command that reads no settings doesn't load conf."""

# Short words have the context "outbox". Django merges the catalogs of all apps, and without a context our "state" would
# also be the translation of another app's "state".


class OutboxEvent(models.Model):
    """A pending or a parked event. When MoEngage accepts the event, the deliverer deletes the row.

    A deliverer may lease a pending event from the time ``due_at`` on. A lease sets ``due_at`` to the end of the lease,
    and a failure sets it to the time of the next attempt. For a parked event ``due_at`` is the time of parking.
    """

    class State(models.TextChoices):
        """Pending, or parked for a reason."""

        PENDING = "pending", pgettext_lazy("outbox", "pending")
        REFUSED = "refused", _("refused by MoEngage")
        ATTEMPTS = "attempts", _("given up after too many attempts")

    # No index of its own: the one below begins with it.
    workspace = models.CharField(pgettext_lazy("outbox", "workspace"), max_length=32, default="default")
    event_uuid = models.UUIDField(_("event UUID"), unique=True)
    # erase() finds rows by this hash. Databases differ in how they compare and limit the text of an id.
    customer_hash = models.CharField(_("hash of the customer id"), max_length=32)
    # The JSON for MoEngage. In ASCII, because some databases and encodings can't store all characters.
    body = models.TextField(_("JSON for MoEngage"))
    # The Data API may fail alone. Then deliverers lease only the other events for a while.
    is_conversion = models.BooleanField(pgettext_lazy("outbox", "conversion"), default=False, db_default=False)
    state = models.CharField(
        pgettext_lazy("outbox", "state"), max_length=8, choices=State.choices, default=State.PENDING
    )
    # The index uses this boolean instead of ``state``. Without fresh statistics, as after an outage, PostgreSQL expects
    # few rows with one text, so it would ignore the index and sort. For a boolean it expects half of the rows.
    is_pending = models.GeneratedField(
        expression=models.Case(models.When(state=State.PENDING, then=True), default=False),
        output_field=models.BooleanField(),
        db_persist=True,
        verbose_name=pgettext_lazy("outbox", "pending"),
    )
    attempts = models.PositiveIntegerField(pgettext_lazy("outbox", "attempts"), default=0)
    due_at = models.DateTimeField(pgettext_lazy("outbox", "due at"))
    lease = models.UUIDField(pgettext_lazy("outbox", "lease"), null=True)
    reason = models.TextField(pgettext_lazy("outbox", "reason"), blank=True)
    created_at = models.DateTimeField(pgettext_lazy("outbox", "created at"))

    class Meta:
        verbose_name = _("event in the outbox")
        verbose_name_plural = _("events in the outbox")
        indexes: ClassVar[list[models.Index]] = [
            # The workspace first: an outage of one workspace leaves many due rows, and the others don't read them.
            models.Index(fields=["workspace", "is_pending", "due_at"], name="moe_outbox_due")
        ]
        # The package has no model for previews. A permission needs one.
        permissions = (("preview", "Can view pages as another visitor"),)

    def __str__(self) -> str:
        return str(self.event_uuid)

    @classmethod
    def build(cls, event: Event, now: datetime, workspace: str = "default") -> OutboxEvent:
        """Return the unsaved row of an event, due now. Raises TypeError or ValueError if JSON can't express it."""
        return cls(
            workspace=workspace,
            event_uuid=uuid.UUID(event.event_uuid),
            customer_hash=hash_customer(event.customer_id),
            body=event.element,
            is_conversion=event.is_conversion,
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
    """The events of a workspace that left the outbox with one outcome: ``delivered``, or a reason for dropping."""

    workspace = models.CharField(pgettext_lazy("outbox", "workspace"), max_length=32, default="default")
    outcome = models.CharField(pgettext_lazy("outbox", "outcome"), max_length=20)
    count = models.PositiveBigIntegerField(pgettext_lazy("outbox", "count"), default=0)

    class Meta:
        verbose_name = _("counter of the outbox")
        verbose_name_plural = _("counters of the outbox")
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["workspace", "outcome"], name="moe_outbox_counter")
        ]

    def __str__(self) -> str:
        return self.outcome


def hash_customer(customer_id: str, secret: str | bytes | None = None) -> str:
    """Return the hash that all events of one customer share. Its key comes from ``secret``, by default SECRET_KEY.

    An attacker can't confirm a guessed id without the key. The algorithm is SHA-256, because FIPS builds of Python have
    it.
    """
    text = customer_id.encode("utf-8", "surrogatepass")
    return salted_hmac("moe_personalize.outbox", text, secret, algorithm="sha256").hexdigest()[:32]


class Switch(models.Model):
    """An experience that an operator has switched off, or switched on again. An empty key stands for all experiences.

    A row stays after the experience is switched on, because it says who did so.
    """

    # Databases differ in how they compare and limit texts, so a hash finds the row.
    switch_id = models.CharField(pgettext_lazy("kill switch", "id"), max_length=32, primary_key=True, editable=False)
    workspace = models.CharField(pgettext_lazy("kill switch", "workspace"), max_length=100, default="default")
    experience_key = models.TextField(pgettext_lazy("kill switch", "experience key"), blank=True)
    is_off = models.BooleanField(pgettext_lazy("kill switch", "switched off"), default=True)
    until = models.DateTimeField(pgettext_lazy("kill switch", "off until"), null=True, blank=True)
    changed_by = models.CharField(pgettext_lazy("kill switch", "changed by"), max_length=150, blank=True)
    changed_at = models.DateTimeField(pgettext_lazy("kill switch", "changed at"))

    class Meta:
        verbose_name = pgettext_lazy("kill switch", "kill switch")
        verbose_name_plural = pgettext_lazy("kill switch", "kill switches")

    def __str__(self) -> str:
        return self.experience_key or str(pgettext_lazy("kill switch", "All experiences"))

    @staticmethod
    def build_id(workspace: str, experience_key: str) -> str:
        """Return the primary key of the switch."""
        return hashlib.sha256(f"{workspace}\0{experience_key}".encode("utf-8", "surrogatepass")).hexdigest()[:32]

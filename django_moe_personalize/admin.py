"""The outbox in the admin: what waits, what was parked and why, and the books. Nobody's customer id is shown."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.timesince import timesince

from django_moe_personalize.delivery.base import DeliveryCounts
from django_moe_personalize.delivery.database import DatabaseDelivery, find_outbox_delivery
from django_moe_personalize.models import OutboxEvent


@admin.register(OutboxEvent)
class OutboxEventAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # generic in the stubs alone
    """Show events without whose they are; who may change them may have parked ones sent again."""

    list_display = ("experience", "action", "state", "age", "attempts", "reason", "event_uuid")
    list_filter = ("state",)
    fields = (*list_display, "created_at", "due_at")
    readonly_fields = fields
    ordering = ("-pk",)
    actions = ("send_again",)
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[OutboxEvent]:
        """See ModelAdmin.get_queryset()."""
        rows = super().get_queryset(request)
        delivery = find_outbox_delivery()
        return rows if delivery is None else rows.using(delivery.outbox.alias)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Events are recorded by pages alone."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: OutboxEvent | None = None) -> bool:
        """What happened is not to be edited."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: OutboxEvent | None = None) -> bool:
        """What was recorded is not to be made undone, least of all past the books."""
        return False

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Whether the user may have events sent again: who may change them by Django's permissions."""
        return request.user.has_perm("moe_personalize.change_outboxevent")

    @admin.display(description="action")
    def action(self, row: OutboxEvent) -> str:
        """Return what happened, in short: ``shown`` or ``clicked``."""
        return str(_read(row).get("action", "")).removeprefix("MOE_PERSONALIZATION_MESSAGE_").lower()

    @admin.display(description="experience")
    def experience(self, row: OutboxEvent) -> str:
        """Return the experience's name."""
        attributes = _read(row).get("attributes")
        return str(attributes.get("experience", "")) if isinstance(attributes, dict) else ""

    @admin.display(description="age", ordering="created_at")
    def age(self, row: OutboxEvent) -> str:
        """Return how long ago the event was recorded."""
        return timesince(row.created_at)

    @admin.action(description="Send again what is parked", permissions=["replay"])
    def send_again(self, request: HttpRequest, queryset: QuerySet[OutboxEvent]) -> None:
        """Make the parked ones of the chosen events due again."""
        delivery = find_outbox_delivery()
        count = 0
        if delivery is not None:
            count = delivery.outbox.replay(list(queryset.values_list("event_uuid", flat=True)))
        level = messages.SUCCESS if count else messages.WARNING
        self.message_user(request, f"{count} parked events are due again.", level)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Put the books on top of the list."""
        delivery = find_outbox_delivery()
        books = [] if delivery is None else _describe_books(delivery)
        return super().changelist_view(request, {"books": books, **(extra_context or {})})


def _read(row: OutboxEvent) -> dict[str, Any]:
    try:
        return dict(row.read_action())
    except ValueError:
        return {}


def _describe_books(delivery: DatabaseDelivery) -> list[tuple[str, str]]:
    """Return the counts of all processes as (label, value)."""
    counts: DeliveryCounts = delivery.counts()
    oldest = delivery.outbox.find_oldest()
    lines = [("accepted", counts.accepted), ("delivered", counts.delivered)]
    lines += [(f"dropped: {reason}", count) for reason, count in sorted(counts.dropped.items())]
    lines += [("of these parked", delivery.outbox.parked.count()), ("pending", counts.pending)]
    waits = [] if oldest is None else [("oldest pending", timesince(oldest, timezone.now()))]
    return [(label, f"{count:,}") for label, count in lines] + waits

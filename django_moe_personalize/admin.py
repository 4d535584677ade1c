"""The outbox in Django's admin: pending and parked events, and the counters, without customer ids."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.timesince import timesince

from django_moe_personalize.delivery.base import find_delivery
from django_moe_personalize.delivery.database import DatabaseDelivery
from django_moe_personalize.models import OutboxEvent


@admin.register(OutboxEvent)
class OutboxEventAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # generic in the stubs alone
    """Show events without their customers. Users with the permission to change events may send parked events again."""

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
        delivery = find_delivery(DatabaseDelivery)
        return rows if delivery is None else rows.using(delivery.outbox.alias)

    def _refuse(self, request: HttpRequest, obj: OutboxEvent | None = None) -> bool:
        """Refuse to add, change and delete. A deleted event would be in no counter."""
        return False

    has_add_permission = has_change_permission = has_delete_permission = _refuse

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Whether the user may send parked events again. Users need Django's permission to change events."""
        return request.user.has_perm("moe_personalize.change_outboxevent")

    def action(self, row: OutboxEvent) -> str:
        """Return the action in one word: ``shown`` or ``clicked``."""
        return str(row.read_action().get("action", "")).removeprefix("MOE_PERSONALIZATION_MESSAGE_").lower()

    def experience(self, row: OutboxEvent) -> str:
        """Return the name of the experience."""
        attributes = row.read_action().get("attributes")
        return str(attributes.get("experience", "")) if isinstance(attributes, dict) else ""

    @admin.display(ordering="created_at")
    def age(self, row: OutboxEvent) -> str:
        """Return the time since the event was recorded."""
        return timesince(row.created_at)

    @admin.action(description="Send parked events again", permissions=["replay"])
    def send_again(self, request: HttpRequest, queryset: QuerySet[OutboxEvent]) -> None:
        """Make the selected parked events due again."""
        delivery = find_delivery(DatabaseDelivery)
        count = 0 if delivery is None else delivery.outbox.replay(list(queryset.values_list("event_uuid", flat=True)))
        level = messages.SUCCESS if count else messages.WARNING
        self.message_user(request, f"{count} parked events are due again.", level)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the counters above the list."""
        delivery = find_delivery(DatabaseDelivery)
        counters = [] if delivery is None else _describe_counters(delivery)
        return super().changelist_view(request, {"counters": counters, **(extra_context or {})})


def _describe_counters(delivery: DatabaseDelivery) -> list[tuple[str, str]]:
    """Return the counters of all processes as (label, value)."""
    counts = delivery.counts()
    oldest = delivery.outbox.find_oldest()
    lines = [("accepted", counts.accepted), ("delivered", counts.delivered)]
    lines += [(f"dropped: {reason}", count) for reason, count in sorted(counts.dropped.items())]
    lines += [("of these parked", delivery.outbox.parked.count()), ("pending", counts.pending)]
    ages = [] if oldest is None else [("oldest pending", timesince(oldest, timezone.now()))]
    return [(label, f"{count:,}") for label, count in lines] + ages

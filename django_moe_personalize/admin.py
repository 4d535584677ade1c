"""The outbox in Django's admin: pending and parked events, and the counters, without customer ids."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import get_content_type_for_model
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.formats import number_format
from django.utils.timesince import timesince
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext, pgettext, pgettext_lazy

from django_moe_personalize.models import OutboxEvent

if TYPE_CHECKING:
    from django_moe_personalize.delivery.database import DatabaseDelivery
    from django_moe_personalize.delivery.outbox import Outbox

ACTIONS = {
    "MOE_PERSONALIZATION_MESSAGE_SHOWN": pgettext_lazy("outbox", "shown"),
    "MOE_PERSONALIZATION_MESSAGE_CLICKED": pgettext_lazy("outbox", "clicked"),
    "MOE_OFFERING_SHOWN": pgettext_lazy("outbox", "offering shown"),
    "MOE_OFFERING_CLICKED": pgettext_lazy("outbox", "offering clicked"),
}

DROPPED = {
    "attempts": pgettext_lazy("outbox, dropped", "attempts"),
    "erased": pgettext_lazy("outbox, dropped", "erased"),
    "error": pgettext_lazy("outbox, dropped", "error"),
    "refused": pgettext_lazy("outbox, dropped", "refused"),
}


@admin.register(OutboxEvent)
class OutboxEventAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # generic in the stubs alone
    """Show events without their customers. Users with the permission to change events may send parked events again.

    A filter on any other field than the state would confirm guesses about customers: Django's default accepts
    ``?body__startswith=``. So the admin filters by state, searches for whole UUIDs, and accepts no other lookup.
    """

    list_display = ("experience", "action", "state", "age", "reason", "event_uuid")
    list_filter = ("state",)
    search_fields = ("event_uuid",)
    search_help_text = _("Enter the whole UUID of an event.")
    fields = (*list_display, "attempts", "created_at", "due_at")
    readonly_fields = fields
    ordering = ("-pk",)
    actions = ("send_again",)
    show_full_result_count = False

    class Media:
        css: ClassVar = {"all": ("moe_personalize/admin.css",)}

    def get_queryset(self, request: HttpRequest) -> QuerySet[OutboxEvent]:
        """See ModelAdmin.get_queryset()."""
        rows = super().get_queryset(request)
        outbox = _find_outbox()
        return rows if outbox is None else rows.using(outbox.alias)

    def get_list_display(self, request: HttpRequest) -> Any:
        """Add the workspace on a site with several. See ModelAdmin.get_list_display()."""
        return (*self.list_display, "workspace") if _count_workspaces() > 1 else self.list_display

    def get_list_filter(self, request: HttpRequest) -> Any:
        """Add the workspace on a site with several. See ModelAdmin.get_list_filter()."""
        return (*self.list_filter, "workspace") if _count_workspaces() > 1 else self.list_filter

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Allow the filters by state and by workspace. See ModelAdmin.lookup_allowed()."""
        return lookup == "workspace" or (lookup == "state__exact" and value in OutboxEvent.State.values)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[OutboxEvent], search_term: str
    ) -> tuple[QuerySet[OutboxEvent], bool]:
        """Find the event with this UUID. See ModelAdmin.get_search_results()."""
        if not search_term:
            return queryset, False
        try:
            return queryset.filter(event_uuid=uuid.UUID(search_term.strip())), False
        except ValueError:
            return queryset.none(), False

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        """Leave out actions of the whole admin site: an export, for example, would contain customer ids."""
        # Django has the locations since 6.1.
        location = {} if action_location is None else {"action_location": action_location}
        found = super().get_actions(request, **location)
        return {name: action for name, action in found.items() if name in self.actions}

    def _refuse(self, request: HttpRequest, obj: OutboxEvent | None = None) -> bool:
        """Refuse to add, change and delete. A deleted event would be in no counter."""
        return False

    has_add_permission = has_change_permission = has_delete_permission = _refuse

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Whether the user may send parked events again. Users need Django's permission to change events."""
        return request.user.has_perm("moe_personalize.change_outboxevent")

    @admin.display(description=pgettext_lazy("outbox", "action"))
    def action(self, row: OutboxEvent) -> str:
        """Return the action in one word."""
        return str(ACTIONS.get(str(row.read_action().get("action")), ""))

    @admin.display(description=pgettext_lazy("outbox", "experience"))
    def experience(self, row: OutboxEvent) -> str:
        """Return the name of the experience."""
        attributes = row.read_action().get("attributes")
        return str(attributes.get("experience", "")) if isinstance(attributes, dict) else ""

    @admin.display(description=pgettext_lazy("outbox", "age"), ordering="created_at")
    def age(self, row: OutboxEvent) -> str:
        """Return the time since the event was recorded."""
        return timesince(row.created_at)

    @admin.action(description=_("Send parked events again"), permissions=["replay"])
    def send_again(self, request: HttpRequest, queryset: QuerySet[OutboxEvent]) -> None:
        """Make the selected parked events due again. One entry in the admin's history names their number."""
        outbox = _find_outbox()
        count = 0 if outbox is None else _replay(request, queryset, outbox)
        self.message_user(request, _describe_replay(count), messages.SUCCESS if count else messages.WARNING)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the counters above the list."""
        counters = [line for delivery in _find_deliveries() for line in _describe_counters(delivery)]
        return super().changelist_view(request, {"counters": counters, **(extra_context or {})})


def _count_workspaces() -> int:
    from django_moe_personalize.conf import list_workspaces

    return len(list_workspaces())


def _find_deliveries() -> list[DatabaseDelivery]:
    """Return the deliveries of the workspaces that have an outbox."""
    # Every command of a site with an admin imports this module at its start, so it doesn't import the delivery.
    from django_moe_personalize.conf import list_workspaces
    from django_moe_personalize.delivery.base import find_delivery
    from django_moe_personalize.delivery.database import DatabaseDelivery
    from django_moe_personalize.runtime import get_runtime

    found = (find_delivery(DatabaseDelivery, get_runtime(name)) for name in list_workspaces())
    return [delivery for delivery in found if delivery is not None]


def _find_outbox() -> Outbox | None:
    """Return the outbox of all workspaces in the database of the first one, or ``None`` without an outbox."""
    from django_moe_personalize.delivery.outbox import Outbox

    return next((Outbox(delivery.using, workspace=None) for delivery in _find_deliveries()), None)


def _replay(request: HttpRequest, queryset: QuerySet[OutboxEvent], outbox: Outbox) -> int:
    """Make the selected parked events due again, write one entry into the admin's history, and return their number."""
    # Without the app django.contrib.admin, this module can be imported, but these models can't.
    from django.contrib.admin.models import CHANGE, LogEntry

    selected = request.POST.getlist(ACTION_CHECKBOX_NAME)
    is_across = forms.BooleanField(required=False).to_python(request.POST.get("select_across"))
    with transaction.atomic(using=outbox.alias):
        # Without "select all", ``queryset`` has all selected keys in one query. SQLite refuses too many of them.
        count = outbox.replay([queryset] if is_across else outbox.choose("pk", selected))
        if count:
            LogEntry.objects.create(
                user_id=request.user.pk,
                content_type=get_content_type_for_model(OutboxEvent),
                object_repr=_describe_replay(count),
                action_flag=CHANGE,
                change_message=_describe_replay(count),
            )
    return count


def _describe_replay(count: int) -> str:
    text = ngettext("%(count)d parked event is due again.", "%(count)d parked events are due again.", count)
    return text % {"count": count}


def _describe_counters(delivery: DatabaseDelivery) -> list[tuple[str, str]]:
    """Return the counters of all processes as (label, value)."""
    counts = delivery.counts()
    oldest = delivery.outbox.find_oldest()
    lines = [(pgettext("outbox", "accepted"), counts.accepted), (pgettext("outbox", "delivered"), counts.delivered)]
    for reason, count in sorted(counts.dropped.items()):
        lines.append((pgettext("outbox", "dropped: %(reason)s") % {"reason": DROPPED.get(reason, reason)}, count))
    lines.append((pgettext("outbox", "of these parked"), delivery.outbox.parked.count()))
    lines.append((pgettext("outbox", "pending"), counts.pending))
    ages = [] if oldest is None else [(pgettext("outbox", "oldest pending"), timesince(oldest, timezone.now()))]
    counters = [(label, number_format(count, force_grouping=True)) for label, count in lines] + ages
    place = f"{delivery.outbox.workspace}: " if _count_workspaces() > 1 else ""
    return [(place + label, value) for label, value in counters]

"""Django's admin: the outbox without customer ids, and the kill switch."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
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
from django.utils.translation import gettext as translate
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext, pgettext, pgettext_lazy

from django_moe_personalize.models import DEFAULT, OutboxEvent, Switch

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
        return (*self.list_display, "workspace") if len(_list_workspaces()) > 1 else self.list_display

    def get_list_filter(self, request: HttpRequest) -> Any:
        """Add the workspace on a site with several. See ModelAdmin.get_list_filter()."""
        return (*self.list_filter, "workspace") if len(_list_workspaces()) > 1 else self.list_filter

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
        """Return the action in one word, or the name of a conversion."""
        action = str(row.read_action().get("action"))
        return action if row.is_conversion else str(ACTIONS.get(action, ""))

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


def _list_workspaces() -> Sequence[str]:
    # Every command of a site with an admin imports this module at its start, so it doesn't import the settings.
    from django_moe_personalize.conf import list_workspaces

    return list_workspaces()


def _find_deliveries() -> list[DatabaseDelivery]:
    """Return the deliveries of the workspaces that have an outbox."""
    from django_moe_personalize.delivery.base import find_delivery
    from django_moe_personalize.delivery.database import DatabaseDelivery
    from django_moe_personalize.runtime import get_runtime

    found = (find_delivery(DatabaseDelivery, get_runtime(name)) for name in _list_workspaces())
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
    place = f"{delivery.outbox.workspace}: " if len(_list_workspaces()) > 1 else ""
    return [(place + label, value) for label, value in counters]


class SwitchForm(forms.ModelForm):  # type: ignore[type-arg] # generic in the stubs alone
    """Switch an experience off. An unknown key needs a confirmation: with a typing error, nothing would be off."""

    is_all = forms.BooleanField(label=pgettext_lazy("kill switch", "All experiences"), required=False)
    is_forced = forms.BooleanField(
        label=_("Accept a key that the workspace lacks"),
        required=False,
        help_text=_("The known experiences may be a few minutes old."),
    )

    class Meta:
        model = Switch
        fields: ClassVar = ["workspace", "experience_key", "until"]
        widgets: ClassVar = {"experience_key": forms.TextInput(attrs={"class": "vTextField", "autocomplete": "off"})}
        help_texts: ClassVar = {
            "experience_key": _("The pages of the site stop showing this experience within seconds."),
            "until": _("Leave these fields empty to keep it off until someone switches it on again."),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if (field := self.fields.get("workspace")) is not None:
            names = [(name, name) for name in _list_workspaces()]
            self.fields["workspace"] = forms.ChoiceField(label=field.label, choices=names)
        if (until := self.fields.get("until")) is not None:
            # Django 5.2 shows these texts, its own, but not as labels.
            for widget, label in zip(until.widget.widgets, ("Date:", "Time:"), strict=True):
                widget.attrs["aria-label"] = translate(label)

    def clean_until(self) -> datetime | None:
        """Refuse a time that is over."""
        until: datetime | None = self.cleaned_data["until"]
        if until is not None and until <= timezone.now():
            raise forms.ValidationError(_("This time is over. Enter a later time."))
        return until

    def clean(self) -> dict[str, Any]:
        """Refuse an unknown key, with near matches, as far as the experiences of the workspace are known."""
        from django_moe_personalize.fetching.metadata import get_metadata_store
        from django_moe_personalize.runtime import use_workspace

        data = super().clean() or {}
        key, workspace = data.get("experience_key"), data.get("workspace", DEFAULT)
        if bool(key) is bool(data.get("is_all")):
            # An empty form, saved by mistake, must not switch everything off.
            self.add_error("experience_key", _("Enter a key, or choose all experiences."))
        if key and not data.get("is_forced"):
            with use_workspace(workspace):
                unknown = get_metadata_store().find_unknown([key])
            if unknown:
                self.add_error("experience_key", unknown)
        return data


@admin.register(Switch)
class SwitchAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # generic in the stubs alone
    """Switch experiences off with "Add". The actions switch them on again, or off for an unlimited time.

    Nothing is deleted or changed otherwise: the processes of the site read who has changed a switch, and when.
    """

    form = SwitchForm
    list_display = ("name", "state", "until", "changed_by", "changed_at")
    ordering = ("-is_off", "experience_key")
    actions = ("switch_on", "switch_off")

    def get_fields(self, request: HttpRequest, obj: Switch | None = None) -> Any:
        """See ModelAdmin.get_fields()."""
        names = ("experience_key", "is_all", "until", "is_forced") if obj is None else self.list_display
        return names if len(_list_workspaces()) == 1 else ("workspace", *names)

    def get_list_display(self, request: HttpRequest) -> Any:
        """See ModelAdmin.get_list_display()."""
        return self.list_display if len(_list_workspaces()) == 1 else (*self.list_display, "workspace")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Switch]:
        """See ModelAdmin.get_queryset()."""
        return super().get_queryset(request).filter(workspace__in=_list_workspaces())

    def _refuse(self, request: HttpRequest, obj: Switch | None = None) -> bool:
        """Refuse to edit and delete a row. The actions change it."""
        return False

    has_change_permission = has_delete_permission = _refuse

    def has_view_permission(self, request: HttpRequest, obj: Switch | None = None) -> bool:
        """Whether the user may see the switches. See ModelAdmin.has_view_permission()."""
        return super().has_view_permission(request, obj) or self.has_turn_permission(request)

    def has_turn_permission(self, request: HttpRequest) -> bool:
        """Whether the user may switch experiences on and off. Users need Django's permission to change switches."""
        return request.user.has_perm("moe_personalize.change_switch")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """See has_turn_permission()."""
        return self.has_turn_permission(request)

    @admin.display(description=pgettext_lazy("kill switch", "experience"), ordering="experience_key")
    def name(self, row: Switch) -> str:
        """Return the key, or that the row stands for all experiences."""
        return str(row)

    @admin.display(description=pgettext_lazy("kill switch", "state"), ordering="is_off")
    def state(self, row: Switch) -> str:
        """Return whether the experience is off now."""
        is_over = row.until is not None and row.until <= timezone.now()
        return pgettext("kill switch", "off") if row.is_off and not is_over else pgettext("kill switch", "on")

    def save_model(self, request: HttpRequest, obj: Switch, form: Any, change: bool) -> None:
        """Switch the experience off in all processes."""
        self._turn(request, obj.workspace, [obj.experience_key], is_off=True, until=obj.until)
        obj.pk = Switch.build_id(obj.workspace, obj.experience_key)

    @admin.action(description=pgettext_lazy("kill switch", "Switch on again"), permissions=["turn"])
    def switch_on(self, request: HttpRequest, queryset: QuerySet[Switch]) -> None:
        """Switch the selected experiences on in all processes."""
        self._turn_selected(request, queryset, is_off=False)

    @admin.action(description=pgettext_lazy("kill switch", "Switch off"), permissions=["turn"])
    def switch_off(self, request: HttpRequest, queryset: QuerySet[Switch]) -> None:
        """Switch the selected experiences off in all processes."""
        self._turn_selected(request, queryset, is_off=True)

    def _turn_selected(self, request: HttpRequest, queryset: QuerySet[Switch], *, is_off: bool) -> None:
        keys: dict[str, list[str]] = {}
        for row in queryset:
            keys.setdefault(row.workspace, []).append(row.experience_key)
        for workspace, selected in keys.items():
            self._turn(request, workspace, selected, is_off=is_off)
        told = _("Switched off: %(names)s.") if is_off else _("Switched on again: %(names)s.")
        text = told % {"names": ", ".join(map(str, queryset))}
        for row in queryset:
            self.log_change(request, row, text)
        self.message_user(request, text, messages.SUCCESS)

    def _turn(
        self, request: HttpRequest, workspace: str, keys: list[str], *, is_off: bool, until: datetime | None = None
    ) -> None:
        from django_moe_personalize.fetching.switch import get_switch
        from django_moe_personalize.runtime import get_runtime

        get_switch(get_runtime(workspace)).turn(keys, is_off=is_off, until=until, by=request.user.get_username())

"""``manage.py moe_erase``: erase the waiting events of one customer."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from django_moe_personalize import api
from django_moe_personalize.conf import get_settings
from django_moe_personalize.management import WorkspaceCommand

REMAINS = """\
Other processes and queues may hold more events of this customer. They drop these events instead of sending them, if
all processes share the cache.
Cached responses contain no personal data and expire within {seconds:g} seconds.
The anonymous cookie is in the browser, the profile at MoEngage. Ask MoEngage to erase the profile."""


class Command(WorkspaceCommand):
    """Erase the waiting events of a customer that this process can reach, and stop the customer's other events."""

    without = "the only one"
    help = "Erases the waiting events of one customer, and lists the data that remains."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """See BaseCommand.add_arguments()."""
        super().add_arguments(parser)
        parser.add_argument("customer_id", help="The customer id at MoEngage, or an anonymous id.")

    def handle(self, *args: Any, customer_id: str, **options: Any) -> None:
        """Erase the events, print their number, and list the remaining data. Raises CommandError for an empty id.

        With several workspaces, someone must name one: an id may belong to another person in another workspace.
        """
        self.check_chosen(options["workspace"])
        if not customer_id.strip():
            raise CommandError("The customer id is empty. Give the id of a customer.")
        count = api.erase(customer_id=customer_id)
        self.stdout.write(f"Erased {count} waiting event{'' if count == 1 else 's'}.")
        self.stdout.write(REMAINS.format(seconds=get_settings().cache_stale_ttl))

"""``manage.py moe_erase``: forget what waits to be reported of one customer."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_moe_personalize import api
from django_moe_personalize.conf import get_settings

REMAINS = """\
What other processes hold of this customer is dropped when its turn comes to be sent.
Cached answers hold no personal data and end by themselves within {seconds:g} seconds.
The anonymous cookie is the browser's, the profile MoEngage's: ask for its erasure there."""


class Command(BaseCommand):
    """Erase the events of a customer that wait for their delivery, and let none recorded until now be sent."""

    help = "Erase what waits to be reported of one customer, and say what else there is."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the customer's id."""
        parser.add_argument("customer_id", help="The id under which MoEngage knows the customer, or an anonymous id.")

    def handle(self, *args: Any, customer_id: str, **options: Any) -> None:
        """Erase, and print what was erased and what remains. Raises CommandError without an id."""
        if not customer_id.strip():
            raise CommandError("Give the id of a customer: it is empty.")
        count = api.erase(customer_id=customer_id)
        self.stdout.write(f"Erased {count} event{'' if count == 1 else 's'} that waited for delivery.")
        self.stdout.write(REMAINS.format(seconds=get_settings().cache_stale_ttl))
